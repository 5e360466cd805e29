# SPDX-License-Identifier: MIT
#
# Everything that the map at the top of mha/mha.hpp names as a header must be included by mha/mha.hpp.
string(REPLACE "|" ";-isystem;" system_includes "|${SYSTEM_INCLUDE_DIRS}")
file(READ ${INCLUDE_DIR}/mha/mha.hpp text)
string(REGEX REPLACE "#pragma once.*" "" map "${text}")
string(REGEX MATCHALL "[a-z_]+\\.hpp" names "${map}")
list(REMOVE_DUPLICATES names)
list(REMOVE_ITEM names mha.hpp)
list(LENGTH names count)
if(count LESS 20)
  message(FATAL_ERROR "expected a map of at least 20 headers, got ${count}: ${names}")
endif()
file(WRITE ${WORK_DIR}/all.cpp "#include <mha/mha.hpp>\n")
execute_process(COMMAND ${COMPILER} -std=c++20 -M -I${INCLUDE_DIR} ${system_includes} all.cpp
  WORKING_DIRECTORY ${WORK_DIR}
  RESULT_VARIABLE result OUTPUT_VARIABLE included ERROR_VARIABLE errors)
if(NOT result EQUAL 0)
  message(FATAL_ERROR "${errors}")
endif()
set(missing "")
foreach(name IN LISTS names)
  if(NOT included MATCHES "/mha/([a-z_]+/)*${name}[ \n]")
    list(APPEND missing ${name})
  endif()
endforeach()
if(missing)
  message(FATAL_ERROR "the map of mha/mha.hpp names what it does not include: ${missing}")
endif()
