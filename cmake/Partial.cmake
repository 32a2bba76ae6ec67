# Partial.cmake - weak stand-ins for the kernels that are not written yet (LIGER_PARTIAL=ON).
set(stubs "/* Generated: stand-ins for missing kernels. */\n#include \"liger/core/fail.h\"\n#include \"liger/core/kernel_table.h\"\n")
set(suffixes)
foreach(isa IN LISTS LIGER_ISAS)
  list(APPEND suffixes cpu_${isa})
endforeach()
if(LIGER_CUDA_DEFINITIONS)
  list(APPEND suffixes cuda)
endif()
foreach(slot IN LISTS LIGER_SLOTS)
  foreach(suffix IN LISTS suffixes)
    string(APPEND stubs "__attribute__((weak)) liger_status ${slot}_${suffix}(liger_context *context, const struct ${slot}_problem *problem, liger_stream stream);\n"
           "liger_status ${slot}_${suffix}(liger_context *context, const struct ${slot}_problem *problem, liger_stream stream) {\n"
           "    (void)context, (void)problem, (void)stream;\n"
           "    return liger_fail(LIGER_ERR_UNSUPPORTED, \"${slot}_${suffix} is not in this partial build\");\n}\n")
  endforeach()
endforeach()
file(CONFIGURE OUTPUT "${CMAKE_BINARY_DIR}/partial_stubs.c" CONTENT "${stubs}" @ONLY)
target_sources(liger_once PRIVATE "${CMAKE_BINARY_DIR}/partial_stubs.c")
