# Tests.cmake - the C test programs. They are linked with the library's objects, not with libliger.so, because they
# look inside: kernel tables, problems, each instruction set.
file(GLOB harness_sources CONFIGURE_DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/tests/harness/*.c")
file(GLOB driver_sources CONFIGURE_DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/tests/*.c")
list(FILTER driver_sources EXCLUDE REGEX "/harness_selftest\\.c$")

# Compiled once for all programs, without the library's CUDA or ISA flags: plain C.
add_library(liger_harness OBJECT ${harness_sources} ${LIGER_ROOM_TEST_SOURCES})

function(liger_test_target name)
  target_link_libraries(${name} PRIVATE liger_flags)
  target_compile_definitions(${name} PRIVATE ${LIGER_CUDA_DEFINITIONS})
  target_compile_options(${name} PRIVATE -Wno-missing-field-initializers) # a case names only what it needs
endfunction()
liger_test_target(liger_harness)

function(liger_test_program name)
  add_executable(${name} ${ARGN} $<TARGET_OBJECTS:liger_harness> ${LIGER_OBJECTS})
  liger_test_target(${name})
  target_link_libraries(${name} PRIVATE ${LIGER_SYSTEM_LIBRARIES})
  set_target_properties(${name} PROPERTIES LINKER_LANGUAGE C)
  if(TARGET liger_cuda_objects)
    add_dependencies(${name} liger_cuda_objects)
  endif()
endfunction()

if(driver_sources)
  liger_test_program(liger_test ${driver_sources})
  add_test(NAME liger_test COMMAND liger_test)
endif()
if(EXISTS "${CMAKE_CURRENT_SOURCE_DIR}/tests/harness_selftest.c")
  liger_test_program(harness_selftest "${CMAKE_CURRENT_SOURCE_DIR}/tests/harness_selftest.c")
  add_test(NAME harness_selftest COMMAND harness_selftest)
endif()

# The bench driver runs the same cases; nothing to measure in a build that checks.
file(GLOB bench_sources CONFIGURE_DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/bench/*.c")
if(bench_sources AND NOT LIGER_SANITIZE)
  liger_test_program(liger_bench ${bench_sources})
endif()

# Right calls, spoiled ones, and noise; a longer run is `liger_fuzz ROUNDS SEED`.
file(GLOB fuzz_sources CONFIGURE_DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/tests/fuzz/*.c")
if(fuzz_sources)
  liger_test_program(liger_fuzz ${fuzz_sources})
  add_test(NAME liger_fuzz COMMAND liger_fuzz)
endif()
