# SPDX-License-Identifier: MIT
#
# cmake -DSOURCE=... -DOUTPUT=... -P write_commit.cmake: a header with the commit that is being
# built; left alone if that has not changed.
cmake_minimum_required(VERSION 3.20...3.31)
set(commit unknown)
find_package(Git QUIET)
if(GIT_FOUND)
  execute_process(COMMAND ${GIT_EXECUTABLE} describe --always --dirty --exclude=*
    WORKING_DIRECTORY ${SOURCE} OUTPUT_VARIABLE commit OUTPUT_STRIP_TRAILING_WHITESPACE
    ERROR_QUIET RESULT_VARIABLE result)
  if(NOT result EQUAL 0)
    set(commit unknown)
  endif()
endif()
file(CONFIGURE OUTPUT ${OUTPUT} CONTENT "#define MHA_BENCH_COMMIT \"@commit@\"\n" @ONLY)
