# SPDX-License-Identifier: MIT
#
# Runs FIRST and SECOND: every line that SECOND prints must be one of FIRST's, and there must be some.
cmake_policy(SET CMP0057 NEW)  # IN_LIST
execute_process(COMMAND "${FIRST}" OUTPUT_VARIABLE first COMMAND_ERROR_IS_FATAL ANY)
execute_process(COMMAND "${SECOND}" OUTPUT_VARIABLE second COMMAND_ERROR_IS_FATAL ANY)
string(REGEX MATCHALL "[^\n]+" first_lines "${first}")
string(REGEX MATCHALL "[^\n]+" second_lines "${second}")
if(NOT second_lines)
  message(FATAL_ERROR "${SECOND} prints nothing")
endif()
foreach(line IN LISTS second_lines)
  if(NOT line IN_LIST first_lines)
    message(FATAL_ERROR "${SECOND} prints\n${line}\nbut ${FIRST}\n${first}")
  endif()
endforeach()
