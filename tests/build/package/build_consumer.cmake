# SPDX-License-Identifier: MIT
#
# Configures, builds and runs the project SOURCE in BUILD_DIR, and checks that it compiled its own
# sources only (and that of mha::compiled), with no flag but the language standard, include folders and
# what says that it is linked to mha::compiled.
foreach(variable CXXFLAGS CPPFLAGS LDFLAGS)
  unset(ENV{${variable}})
endforeach()
file(REMOVE_RECURSE "${BUILD_DIR}")
file(MAKE_DIRECTORY "${BUILD_DIR}")

set(arguments "")
foreach(entry IN LISTS CACHE_ENTRIES)
  list(APPEND arguments -D "${entry}")
endforeach()
execute_process(
  COMMAND ${CMAKE_COMMAND} -S "${SOURCE}" -B "${BUILD_DIR}" -G "${GENERATOR}"
    -D "CMAKE_CXX_COMPILER=${COMPILER}" -D CMAKE_EXPORT_COMPILE_COMMANDS=ON ${arguments}
  COMMAND_ERROR_IS_FATAL ANY)
execute_process(COMMAND ${CMAKE_COMMAND} --build "${BUILD_DIR}" COMMAND_ERROR_IS_FATAL ANY)

file(READ "${BUILD_DIR}/compile_commands.json" commands)
string(JSON count LENGTH "${commands}")
math(EXPR last "${count} - 1")
foreach(index RANGE ${last})
  string(JSON file GET "${commands}" ${index} file)
  if(NOT file MATCHES "/tests/build/package/[a-z_]+\\.cpp$|/mha_compiled\\.cpp$")
    message(FATAL_ERROR "the consumer has to compile ${file}")
  endif()
  string(JSON command GET "${commands}" ${index} command)
  separate_arguments(words UNIX_COMMAND "${command}")
  list(REMOVE_AT words 0)
  set(value_follows FALSE)
  foreach(word IN LISTS words)
    if(value_follows)
      set(value_follows FALSE)
    elseif(word MATCHES "^-(isystem|o)$")
      set(value_follows TRUE)
    elseif(word MATCHES "^-" AND NOT word MATCHES "^(-I.+|-c|-DMHA_COMPILED|-std=(c|gnu)\\+\\+20)$")
      message(FATAL_ERROR "the consumer inherits the flag ${word} in: ${command}")
    endif()
  endforeach()
endforeach()

execute_process(COMMAND "${BUILD_DIR}/consumer" OUTPUT_VARIABLE output
  COMMAND_ERROR_IS_FATAL ANY)
if(NOT output MATCHES "^mha [0-9]+\\.[0-9]+\\.[0-9]+: 5\\.000\n$")
  message(FATAL_ERROR "unexpected output: ${output}")
endif()
