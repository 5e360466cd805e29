# SPDX-License-Identifier: MIT
#
# The README's first program, compiled by the README's line, word for word, must print what the
# README says. SOURCE_DIR is the repository, WORK_DIR a folder that takes its place.
file(READ ${SOURCE_DIR}/README.md readme)
if(NOT readme MATCHES "```cpp\n([^`]+)```\n\n```\n([^`]+)```\n[^`]*[^\n]*\n[^`]*[^\n]*\n+```sh\n(g[+][+] [^\n]+)\n```")
  message(FATAL_ERROR "README.md does not begin with a program, its output and a line that compiles it")
endif()
set(program "${CMAKE_MATCH_1}")
set(expected "${CMAKE_MATCH_2}")
set(line "${CMAKE_MATCH_3}")
file(MAKE_DIRECTORY ${WORK_DIR})
file(WRITE ${WORK_DIR}/first.cpp "${program}")
file(CREATE_LINK ${SOURCE_DIR}/include ${WORK_DIR}/include SYMBOLIC)
execute_process(COMMAND sh -c "${line}" WORKING_DIRECTORY ${WORK_DIR}
  RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE errors)
if(NOT result EQUAL 0 OR NOT output STREQUAL expected)
  message(FATAL_ERROR "${line}\nexpected:\n${expected}got (${result}):\n${output}${errors}")
endif()
