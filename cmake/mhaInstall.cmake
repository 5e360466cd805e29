# SPDX-License-Identifier: MIT
#
# Install rules: headers, CMake package, pkg-config file. Nothing installed is specific to an
# architecture, and nothing contains an absolute path, so the tree may be moved.
include(CMakePackageConfigHelpers)

set(package_dir ${CMAKE_INSTALL_DATADIR}/cmake/mha)
set(pkgconfig_dir ${CMAKE_INSTALL_DATADIR}/pkgconfig)

if(CMAKE_VERSION VERSION_GREATER_EQUAL 3.23)
  install(TARGETS mha EXPORT mhaTargets FILE_SET HEADERS)
else()
  install(TARGETS mha EXPORT mhaTargets)
  install(DIRECTORY include/mha DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}
    FILES_MATCHING PATTERN "*.hpp"
    PATTERN "io" EXCLUDE)
endif()
# The readers are installed whether or not this build found nlohmann/json: the package looks for it
# when a user asks for the component io.
install(FILES ${MHA_IO_HEADERS} DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/mha/io)

install(EXPORT mhaTargets NAMESPACE mha:: DESTINATION ${package_dir})
configure_package_config_file(cmake/mhaConfig.cmake.in ${PROJECT_BINARY_DIR}/mhaConfig.cmake
  INSTALL_DESTINATION ${package_dir})
# Before 1.0 a new minor version may break its users.
write_basic_package_version_file(${PROJECT_BINARY_DIR}/mhaConfigVersion.cmake
  COMPATIBILITY SameMinorVersion
  ARCH_INDEPENDENT)
install(FILES
  ${PROJECT_BINARY_DIR}/mhaConfig.cmake
  ${PROJECT_BINARY_DIR}/mhaConfigVersion.cmake
  ${PROJECT_SOURCE_DIR}/cmake/mha_compiled.cpp
  DESTINATION ${package_dir})

# pkg-config finds the headers relative to the place of its own file.
get_filename_component(full_pkgconfig_dir ${pkgconfig_dir} ABSOLUTE
  BASE_DIR ${CMAKE_INSTALL_PREFIX})
file(RELATIVE_PATH MHA_PC_INCLUDEDIR ${full_pkgconfig_dir} ${CMAKE_INSTALL_FULL_INCLUDEDIR})
configure_file(mha.pc.in ${PROJECT_BINARY_DIR}/mha.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/mha.pc DESTINATION ${pkgconfig_dir})

install(FILES LICENSE DESTINATION ${CMAKE_INSTALL_DATADIR}/licenses/mha)
