# Binding.cmake - the CPython extension. Limited API of 3.10: one file for every later Python, and no torch headers.
set(Python_FIND_STRATEGY LOCATION) # the python3 that is first on PATH, not the newest there is
find_package(Python 3.10 COMPONENTS Interpreter Development.Module)
if(NOT Python_Development.Module_FOUND)
  if(LIGER_WHEEL)
    message(FATAL_ERROR "The wheel needs the headers of Python (Debian: python3-dev).")
  endif()
  message(STATUS "liger: no Python binding (no Python >= 3.10 with headers)")
  return()
endif()

set(native_dir "${CMAKE_CURRENT_SOURCE_DIR}/python/liger_kernel/_native")
file(GLOB room_headers CONFIGURE_DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/liger/ops/*/*.h")
add_custom_command(
  OUTPUT "${CMAKE_BINARY_DIR}/binding_ops.c"
  COMMAND "${Python_EXECUTABLE}" "${CMAKE_CURRENT_SOURCE_DIR}/tools/gen_binding.py" "${CMAKE_BINARY_DIR}/binding_ops.c"
  COMMAND "${CMAKE_COMMAND}" -E touch "${CMAKE_BINARY_DIR}/binding_ops.c"
  DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/tools/gen_binding.py" "${ops_def}" ${room_headers}
  COMMENT "Generating binding_ops.c" VERBATIM COMMAND_EXPAND_LISTS)
set(binding_sources binding arguments contexts dispatch_word errors host_memory results torch_functions torch_threads)
list(TRANSFORM binding_sources REPLACE "(.+)" "${native_dir}/\\1.c")
add_library(liger_binding MODULE ${binding_sources} "${CMAKE_BINARY_DIR}/binding_ops.c")
target_compile_definitions(liger_binding PRIVATE Py_LIMITED_API=0x030A0000)
target_include_directories(liger_binding PRIVATE "${native_dir}")
target_include_directories(liger_binding SYSTEM PRIVATE ${Python_INCLUDE_DIRS})
target_link_libraries(liger_binding PRIVATE liger liger_flags Threads::Threads ${CMAKE_DL_LIBS})
set_target_properties(liger_binding PROPERTIES PREFIX "" OUTPUT_NAME _binding SUFFIX .abi3.so
                      BUILD_RPATH_USE_ORIGIN ON BUILD_RPATH "$ORIGIN" INSTALL_RPATH "$ORIGIN")
