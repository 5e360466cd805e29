# SPDX-License-Identifier: MIT
#
# Runs PROGRAM with ARGUMENT and expects that it dies, not returns, after writing MESSAGE (a regular
# expression) to its standard error.
execute_process(COMMAND "${PROGRAM}" "${ARGUMENT}"
  RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE error)
if(result MATCHES "^[0-9]+$")
  message(FATAL_ERROR "expected an abort, the program returned ${result}\n${output}${error}")
endif()
if(NOT error MATCHES "${MESSAGE}")
  message(FATAL_ERROR "expected \"${MESSAGE}\" on standard error, got:\n${error}")
endif()
message(STATUS "ended with \"${result}\" and said: ${error}")
