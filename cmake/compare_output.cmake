# SPDX-License-Identifier: MIT
#
# Runs PROGRAM and compares what it prints with the comment lines that follow "// Output:" in
# SOURCE. Each expected line is indented by three spaces; a lone "//" is an empty line. Empty lines
# at the end and spaces at the ends of lines do not count.
execute_process(COMMAND "${PROGRAM}"
  OUTPUT_VARIABLE output ERROR_VARIABLE error RESULT_VARIABLE result)
if(NOT result EQUAL 0)
  message(FATAL_ERROR "${PROGRAM} ended with ${result}\n${output}${error}")
endif()

file(READ "${SOURCE}" text)
string(REPLACE "\r" "" text "${text}")
if(NOT "${text}" MATCHES "\n// Output:\n((//   [^\n]*\n|// *\n)+)")
  message(FATAL_ERROR "${SOURCE} has no \"// Output:\" block")
endif()
set(expected "\n${CMAKE_MATCH_1}")
string(REGEX REPLACE "\n// ? ? ?" "\n" expected "${expected}")

foreach(side expected output)
  string(REGEX REPLACE "[ \r]+\n" "\n" ${side} "${${side}}\n")
  string(REGEX REPLACE "^\n+" "" ${side} "${${side}}")
  string(REGEX REPLACE "\n+$" "" ${side} "${${side}}")
endforeach()
if(NOT "${output}" STREQUAL "${expected}")
  message(FATAL_ERROR "the output differs from the comment in ${SOURCE}\n"
    "expected:\n${expected}\nprinted:\n${output}\n${error}")
endif()
