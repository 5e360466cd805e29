# SPDX-License-Identifier: MIT
#
# Where the dependencies come from. Each is an existing target, else what find_package finds, else
# downloaded if MHA_FETCH_DEPENDENCIES is on. FETCHCONTENT_SOURCE_DIR_<NAME> names a local copy to
# use in place of a download: EIGEN3, NLOHMANN_JSON, CATCH2, BENCHMARK.
include(FetchContent)

# Downloads without adding the project's own CMakeLists.txt, which would bring its tests, options
# and install rules along. SOURCE_SUBDIR names a folder that does not exist for this reason.
macro(mha_download name repository commit)
  FetchContent_Declare(${name}
    GIT_REPOSITORY ${repository}
    GIT_TAG ${commit}
    SOURCE_SUBDIR without-its-cmake-project)
  FetchContent_MakeAvailable(${name})
endmacro()

function(mha_missing name debian_package advice)
  message(FATAL_ERROR "mha needs ${name}, which was not found. Install it (Debian: "
    "apt-get install ${debian_package}), or name its location in CMAKE_PREFIX_PATH, or set "
    "MHA_FETCH_DEPENDENCIES=ON to download it${advice}.")
endfunction()

# Eigen's own version file lets "3.4" match 3.x only, so any version is searched for and the
# check is made here.
function(mha_require_eigen)
  if(NOT TARGET Eigen3::Eigen)
    find_package(Eigen3 CONFIG QUIET)
  endif()
  if(TARGET Eigen3::Eigen)
    if(Eigen3_VERSION AND Eigen3_VERSION VERSION_LESS 3.4)
      message(FATAL_ERROR "mha needs Eigen 3.4 or newer, found ${Eigen3_VERSION} (Eigen3_DIR is "
        "${Eigen3_DIR})")
    endif()
  elseif(MHA_FETCH_DEPENDENCIES)
    mha_download(Eigen3 https://gitlab.com/libeigen/eigen.git
      bc3b39870ecb690a623a3f49149a358b95c5781d) # 5.0.1
    add_library(Eigen3::Eigen INTERFACE IMPORTED GLOBAL)
    target_include_directories(Eigen3::Eigen INTERFACE ${eigen3_SOURCE_DIR})
  else()
    mha_missing("Eigen 3.4 or newer" libeigen3-dev "")
  endif()
endfunction()

function(mha_require_json)
  if(NOT TARGET nlohmann_json::nlohmann_json)
    find_package(nlohmann_json 3.9 CONFIG QUIET)
  endif()
  if(TARGET nlohmann_json::nlohmann_json)
    return()
  elseif(MHA_FETCH_DEPENDENCIES)
    mha_download(nlohmann_json https://github.com/nlohmann/json.git
      9cca280a4d0ccf0c08f47a99aa71d1b0e52f8d03) # 3.11.3
    add_library(nlohmann_json::nlohmann_json INTERFACE IMPORTED GLOBAL)
    target_include_directories(nlohmann_json::nlohmann_json
      INTERFACE ${nlohmann_json_SOURCE_DIR}/include)
  else()
    mha_missing("nlohmann/json 3.9 or newer" nlohmann-json3-dev
      ", or set MHA_IO=OFF to do without mha::io")
  endif()
endfunction()

# The headers of a downloaded library that is built here count as system headers.
function(mha_mark_as_system target)
  get_target_property(directories ${target} INTERFACE_INCLUDE_DIRECTORIES)
  set_property(TARGET ${target} PROPERTY INTERFACE_SYSTEM_INCLUDE_DIRECTORIES ${directories})
endfunction()

# Catch2 2.13 or 3.x. Sets MHA_CATCH_DISCOVER to the file that defines catch_discover_tests.
function(mha_require_catch2)
  if(NOT TARGET Catch2::Catch2)
    find_package(Catch2 CONFIG QUIET)
  endif()
  if(TARGET Catch2::Catch2)
    set(discover Catch)
    if(EXISTS "${Catch2_DIR}/Catch.cmake")
      set(discover "${Catch2_DIR}/Catch.cmake")
    endif()
  elseif(MHA_FETCH_DEPENDENCIES)
    mha_download(Catch2 https://github.com/catchorg/Catch2.git
      fa43b77429ba76c462b1898d6cd2f2d7a9416b14) # 3.7.1
    add_subdirectory(${catch2_SOURCE_DIR} ${catch2_BINARY_DIR} EXCLUDE_FROM_ALL)
    mha_mark_as_system(Catch2)
    set(discover "${catch2_SOURCE_DIR}/extras/Catch.cmake")
  else()
    mha_missing("Catch2 for its tests" catch2 ", or set MHA_BUILD_TESTS=OFF")
  endif()
  set(MHA_CATCH_DISCOVER "${discover}" PARENT_SCOPE)
endfunction()

function(mha_require_benchmark)
  if(NOT TARGET benchmark::benchmark)
    find_package(benchmark CONFIG QUIET)
  endif()
  if(TARGET benchmark::benchmark)
    return()
  elseif(MHA_FETCH_DEPENDENCIES)
    mha_download(benchmark https://github.com/google/benchmark.git
      192ef10025eb2c4cdd392bc502f0c852196baa48) # 1.9.5
    set(BENCHMARK_ENABLE_TESTING OFF)
    set(BENCHMARK_ENABLE_WERROR OFF)
    set(BENCHMARK_ENABLE_INSTALL OFF)
    set(BENCHMARK_INSTALL_DOCS OFF)
    set(BENCHMARK_INSTALL_TOOLS OFF)
    add_subdirectory(${benchmark_SOURCE_DIR} ${benchmark_BINARY_DIR} EXCLUDE_FROM_ALL)
    mha_mark_as_system(benchmark)
  else()
    mha_missing("Google Benchmark for its benchmarks" libbenchmark-dev
      ", or set MHA_BUILD_BENCH=OFF")
  endif()
endfunction()

# What the benchmarks compare with if it is there; never downloaded.
# mha_torch: libtorch, with Torch_VERSION.
macro(mha_find_torch)
  find_package(Torch CONFIG QUIET)
  if(Torch_FOUND)
    add_library(mha_torch INTERFACE)
    target_link_libraries(mha_torch INTERFACE ${TORCH_LIBRARIES})
  endif()
endmacro()

# mha_openblas: OpenBLAS with its C interface.
function(mha_find_openblas)
  find_path(MHA_OPENBLAS_INCLUDE NAMES openblas_config.h
    PATH_SUFFIXES openblas-pthread openblas openblas-openmp)
  find_library(MHA_OPENBLAS_LIBRARY NAMES openblas
    PATH_SUFFIXES openblas-pthread openblas openblas-openmp)
  mark_as_advanced(MHA_OPENBLAS_INCLUDE MHA_OPENBLAS_LIBRARY)
  if(MHA_OPENBLAS_INCLUDE AND MHA_OPENBLAS_LIBRARY)
    add_library(mha_openblas INTERFACE)
    target_include_directories(mha_openblas SYSTEM INTERFACE ${MHA_OPENBLAS_INCLUDE})
    target_link_libraries(mha_openblas INTERFACE ${MHA_OPENBLAS_LIBRARY})
  endif()
endfunction()
