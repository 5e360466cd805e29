# SPDX-License-Identifier: MIT
#
# Runs COMMAND_LINE, a program and its arguments separated by "|", which must succeed.
string(REPLACE "|" ";" command "${COMMAND_LINE}")
execute_process(COMMAND ${command} COMMAND_ERROR_IS_FATAL ANY)
