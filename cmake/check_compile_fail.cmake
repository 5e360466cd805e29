# SPDX-License-Identifier: MIT
#
# Compiles SOURCE, which must succeed; then again with MHA_SHOULD_FAIL defined, which must fail
# and say MESSAGE (a regular expression). COMMAND_LINE is the compiler and its flags, separated
# by "|".
string(REPLACE "|" ";" command "${COMMAND_LINE}")

execute_process(COMMAND ${command} "${SOURCE}"
  RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE output)
if(NOT result EQUAL 0)
  message(FATAL_ERROR "must compile without MHA_SHOULD_FAIL, but does not:\n${output}")
endif()

execute_process(COMMAND ${command} -DMHA_SHOULD_FAIL "${SOURCE}"
  RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE output)
if(result EQUAL 0)
  message(FATAL_ERROR "compiles with MHA_SHOULD_FAIL, but must not")
endif()
if(NOT output MATCHES "${MESSAGE}")
  message(FATAL_ERROR "fails as it should, but without saying \"${MESSAGE}\":\n${output}")
endif()
