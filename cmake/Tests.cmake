# Tests.cmake - the C test programs. They are linked with the library's objects, not with libliger.so, because they
# look inside: kernel tables, problems, each instruction set.
file(GLOB harness_sources CONFIGURE_DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/tests/harness/*.c")
file(GLOB driver_sources CONFIGURE_DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/tests/*.c")
list(FILTER driver_sources EXCLUDE REGEX "/harness_selftest\\.c$")

# The harness is compiled without the library's CUDA or ISA flags: a plain C program.
function(liger_test_program name)
  add_executable(${name} ${ARGN} ${LIGER_OBJECTS})
  target_link_libraries(${name} PRIVATE liger_flags ${LIGER_SYSTEM_LIBRARIES})
  target_compile_definitions(${name} PRIVATE ${LIGER_CUDA_DEFINITIONS})
  target_compile_options(${name} PRIVATE -Wno-missing-field-initializers) # a case names only what it needs
  set_target_properties(${name} PROPERTIES LINKER_LANGUAGE C)
  if(TARGET liger_cuda_objects)
    add_dependencies(${name} liger_cuda_objects)
  endif()
endfunction()

if(driver_sources)
  liger_test_program(liger_test ${driver_sources} ${harness_sources} ${LIGER_ROOM_TEST_SOURCES})
  add_test(NAME liger_test COMMAND liger_test)
endif()
if(EXISTS "${CMAKE_CURRENT_SOURCE_DIR}/tests/harness_selftest.c")
  liger_test_program(harness_selftest "${CMAKE_CURRENT_SOURCE_DIR}/tests/harness_selftest.c" ${harness_sources})
  add_test(NAME harness_selftest COMMAND harness_selftest)
endif()

# The bench driver runs the same cases.
file(GLOB bench_sources CONFIGURE_DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/bench/*.c")
if(bench_sources)
  set(bench_harness ${harness_sources})
  list(FILTER bench_harness EXCLUDE REGEX "/modes[a-z_]*\\.c$")
  liger_test_program(liger_bench ${bench_sources} ${bench_harness} ${LIGER_ROOM_TEST_SOURCES})
endif()

# Right calls and spoiled ones; a longer run is `liger_fuzz ROUNDS SEED`. What cases call is caught by the linker.
file(GLOB fuzz_sources CONFIGURE_DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/tests/fuzz/*.c")
if(fuzz_sources)
  liger_test_program(liger_fuzz ${fuzz_sources} ${harness_sources} ${LIGER_ROOM_TEST_SOURCES})
  foreach(function IN LISTS LIGER_FUNCTIONS)
    target_link_options(liger_fuzz PRIVATE "-Wl,--wrap=liger_${function}")
  endforeach()
  add_test(NAME liger_fuzz COMMAND liger_fuzz)
endif()
