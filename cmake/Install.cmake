# Install.cmake - the wheel's two files, or a C installation: library, public headers, pkg-config, CMake package.
if(LIGER_WHEEL)
  install(TARGETS liger liger_binding LIBRARY DESTINATION liger_kernel/_native)
  return()
endif()

include(GNUInstallDirs)
install(TARGETS liger EXPORT liger-targets LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})

# Public headers keep their place in the tree: #include "liger/ops/rms_norm/rms_norm.h" works in the sources and here.
install(FILES liger/liger.h DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/liger)
install(FILES liger/core/status.h liger/core/tensor.h liger/core/context.h liger/core/reduction.h
              liger/core/version.h
        DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/liger/core)
file(STRINGS liger/liger.h room_includes REGEX "#include \"liger/ops/")
foreach(line IN LISTS room_includes)
  string(REGEX REPLACE "#include \"(liger/ops/[a-z0-9_]+)/([a-z0-9_]+\\.h)\"" "\\1;\\2" parts "${line}")
  list(GET parts 0 folder)
  list(GET parts 1 file)
  install(FILES "${folder}/${file}" DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/${folder})
endforeach()

# Relative to the .pc file, so that an installed tree may be moved.
file(RELATIVE_PATH up "/${CMAKE_INSTALL_LIBDIR}/pkgconfig" "/")
string(REGEX REPLACE "/$" "" up "${up}")
set(LIGER_PC_PREFIX "\${pcfiledir}/${up}")
configure_file(cmake/liger.pc.in liger.pc @ONLY)
install(FILES "${CMAKE_CURRENT_BINARY_DIR}/liger.pc" DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)

include(CMakePackageConfigHelpers)
set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/liger)
install(EXPORT liger-targets NAMESPACE liger:: DESTINATION ${package_dir})
write_basic_package_version_file(liger-config-version.cmake COMPATIBILITY SameMinorVersion)
file(WRITE "${CMAKE_CURRENT_BINARY_DIR}/liger-config.cmake" "include(\"\${CMAKE_CURRENT_LIST_DIR}/liger-targets.cmake\")\n")
install(FILES "${CMAKE_CURRENT_BINARY_DIR}/liger-config.cmake" "${CMAKE_CURRENT_BINARY_DIR}/liger-config-version.cmake"
        DESTINATION ${package_dir})
