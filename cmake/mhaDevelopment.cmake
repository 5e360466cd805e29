# SPDX-License-Identifier: MIT
#
# What the project's own programs are built with. All flags sit on mha_dev, which tests, examples
# and benchmarks link privately, so that no user of mha::mha inherits one.
option(MHA_WERROR "Treat warnings as errors in the project's own programs" OFF)
option(MHA_CLANG_TIDY "Run clang-tidy over the project's own programs" OFF)
set(MHA_SANITIZE "" CACHE STRING "Sanitizers for the project's own programs, as in -fsanitize=")

set(THREADS_PREFER_PTHREAD_FLAG ON)
find_package(Threads REQUIRED)
add_library(mha_dev INTERFACE)
target_link_libraries(mha_dev INTERFACE mha::mha Threads::Threads)
if(MSVC)
  target_compile_options(mha_dev INTERFACE /W4 /bigobj $<$<BOOL:${MHA_WERROR}>:/WX>)
else()
  target_compile_options(mha_dev INTERFACE
    -Wall -Wextra -Wpedantic -Wconversion -Wsign-conversion -Wshadow
    $<$<BOOL:${MHA_WERROR}>:-Werror>)
endif()
if(MHA_SANITIZE)
  target_compile_options(mha_dev INTERFACE
    -fsanitize=${MHA_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer)
  target_link_options(mha_dev INTERFACE -fsanitize=${MHA_SANITIZE})
  if(MHA_SANITIZE MATCHES "thread" AND CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    target_compile_options(mha_dev INTERFACE -Wno-tsan)  # fences in Eigen's thread pool
  endif()
endif()

find_program(MHA_CCACHE ccache DOC "Compiler cache for the project's own programs")
if(MHA_CLANG_TIDY)
  find_program(MHA_CLANG_TIDY_PROGRAM NAMES clang-tidy clang-tidy-19 clang-tidy-14 REQUIRED)
endif()

# Gives a target of this project its flags, and the tools around the compiler that are at hand.
function(mha_development_target target)
  target_link_libraries(${target} PRIVATE mha_dev)
  set_property(TARGET ${target} PROPERTY CXX_EXTENSIONS OFF)
  if(MHA_CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
    set_property(TARGET ${target} PROPERTY CXX_COMPILER_LAUNCHER ${MHA_CCACHE})
  endif()
  if(MHA_CLANG_TIDY)
    set_property(TARGET ${target} PROPERTY CXX_CLANG_TIDY ${MHA_CLANG_TIDY_PROGRAM})
  endif()
endfunction()
