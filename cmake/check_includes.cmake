# SPDX-License-Identifier: MIT
#
# Includes point one way: a room may include itself and the rooms before it in the list below. What is public
# and belongs to no room is named with its place. And nobody outside of include/ looks into mha/internal.
#   INCLUDE_DIR, SOURCE_DIR
set(order
  "(compiled|internal/support/(language|error|sizes))"
  "(types|dual|version|workspace|storage)"
  "internal/support/[a-z_]+"
  "rules/rule"
  "(index_list|executor|softmax|rotary)"
  "rules/[a-z_]+"
  "reference/[a-z_]+"
  "internal/kernels/[a-z_/]+"
  "internal/call/[a-z_]+"
  "internal/cache/[a-z_]+"
  "kv_pool"
  "kv_cache"
  "internal/projection/[a-z_]+"
  "(projection|multi_head_config)"
  "packed_projection"
  "internal/layer/(layer_view|memory|sequences|plan|check)"
  "multi_head_training"
  "internal/layer/[a-z_]+"
  "(mask|instruction_set|gradient_check)"
  "score"
  "attention"
  "(attention_gradient|attention_scores|partial|cached_attention|layer_calls)"
  "(multi_head|inference)"
  "mha"
  "io/[a-z_]+")

function(place_of header result)
  set(place 0)
  foreach(pattern IN LISTS order)
    math(EXPR place "${place} + 1")
    if(header MATCHES "^mha/${pattern}\\.hpp$")
      set(${result} ${place} PARENT_SCOPE)
      return()
    endif()
  endforeach()
  message(FATAL_ERROR "${header} has no place in cmake/check_includes.cmake")
endfunction()

set(failures "")
file(GLOB_RECURSE headers RELATIVE ${INCLUDE_DIR} ${INCLUDE_DIR}/mha/*.hpp)
list(LENGTH headers count)
if(count LESS 60)
  message(FATAL_ERROR "expected the headers of the library in ${INCLUDE_DIR}, got ${count} files")
endif()
foreach(header IN LISTS headers)
  place_of(${header} place)
  file(READ ${INCLUDE_DIR}/${header} text)
  string(REGEX MATCHALL "\n" newlines "${text}")
  list(LENGTH newlines length)
  if(length GREATER 400)
    string(APPEND failures "${header} has ${length} lines\n")
  endif()
  file(STRINGS ${INCLUDE_DIR}/${header} lines REGEX "^#include \"mha/")
  foreach(line IN LISTS lines)
    string(REGEX REPLACE ".*\"(mha/[^\"]*)\".*" "\\1" other "${line}")
    place_of(${other} other_place)
    if(other_place GREATER place)
      string(APPEND failures "${header} includes ${other}, which stands above it\n")
    endif()
  endforeach()
endforeach()
file(GLOB_RECURSE sources ${SOURCE_DIR}/examples/*.?pp ${SOURCE_DIR}/bench/*.?pp)
foreach(source IN LISTS sources)
  file(STRINGS ${source} lines REGEX "^#include .mha/internal/")
  if(lines)
    string(APPEND failures "${source} includes what may change any day: ${lines}\n")
  endif()
endforeach()
if(failures)
  message(FATAL_ERROR "${failures}")
endif()
