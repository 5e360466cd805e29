# SPDX-License-Identifier: MIT
#
# Installs the build tree BUILD_DIR to FIRST and moves the result to FINAL.
set(ENV{DESTDIR} "")
file(REMOVE_RECURSE "${FIRST}" "${FINAL}")
execute_process(COMMAND ${CMAKE_COMMAND} --install "${BUILD_DIR}" --prefix "${FIRST}"
  COMMAND_ERROR_IS_FATAL ANY)
file(RENAME "${FIRST}" "${FINAL}")

file(GLOB_RECURSE installed RELATIVE "${FINAL}" "${FINAL}/*")
foreach(path IN LISTS installed)
  if(NOT path MATCHES "^(include/mha/|share/(cmake/mha|pkgconfig|licenses/mha)/)")
    message(FATAL_ERROR "installs a file that is not part of the library: ${path}")
  endif()
  file(READ "${FINAL}/${path}" text)
  string(FIND "${text}" "${BUILD_DIR}" position)
  if(NOT position EQUAL -1)
    message(FATAL_ERROR "installs a path of this machine in ${path}")
  endif()
endforeach()
