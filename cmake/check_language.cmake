# SPDX-License-Identifier: MIT
#
# Includes each header that a user may include in a source that is compiled as C++17: the compiler
# must name the flag that is missing, and say little else: at most 6 lines where a header includes
# mha/internal/support/language.hpp itself, else at most 10.
string(REPLACE "|" ";-isystem;" system_includes "|${SYSTEM_INCLUDE_DIRS}")
file(GLOB headers RELATIVE ${INCLUDE_DIR}
  ${INCLUDE_DIR}/mha/*.hpp ${INCLUDE_DIR}/mha/rules/*.hpp ${INCLUDE_DIR}/mha/reference/*.hpp
  ${INCLUDE_DIR}/mha/io/*.hpp)
list(LENGTH headers count)
if(count LESS 40)
  message(FATAL_ERROR "expected the headers of the library in ${INCLUDE_DIR}, got ${count} files")
endif()
set(failures "")
foreach(header IN LISTS headers)
  file(WRITE ${WORK_DIR}/first.cpp "#include <${header}>\nint main() {}\n")
  execute_process(
    COMMAND ${COMPILER} -std=c++17 -fsyntax-only -I${INCLUDE_DIR} ${system_includes} first.cpp
    WORKING_DIRECTORY ${WORK_DIR}
    RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE output)
  string(REGEX MATCHALL "\n" lines "${output}")
  list(LENGTH lines lines)
  set(most 10)
  file(STRINGS ${INCLUDE_DIR}/${header} direct REGEX "#include .mha/internal/support/language.hpp.")
  if(direct)
    set(most 6)
  endif()
  if(result EQUAL 0 OR NOT output MATCHES "error: .?mha needs C\\+\\+20: compile with -std=c\\+\\+20")
    string(APPEND failures "${header}: does not say what is needed, but:\n${output}\n")
  elseif(lines GREATER most)
    string(APPEND failures "${header}: expected at most ${most} lines, got ${lines}:\n${output}\n")
  endif()
endforeach()
if(failures)
  message(FATAL_ERROR "${failures}")
endif()
