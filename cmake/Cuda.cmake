# Cuda.cmake - the CUDA backend, when nvcc is there.
#
# nvcc is called by custom commands, not through CMake's CUDA language: that one links with the C++ driver and adds the
# C++ runtime, and libliger.so must need libc only. A build with N jobs compiles N .cu files at a time. cudart is linked
# statically and cuBLASLt is opened at run time, so that the same library loads on a machine without CUDA.
set(LIGER_CUDA_OBJECTS)
set(LIGER_CUDA_LIBRARIES)
set(LIGER_CUDA_DEFINITIONS)
set(LIGER_CUDA_C_SOURCES)
if(LIGER_CUDA STREQUAL "OFF" OR CMAKE_CROSSCOMPILING)
  message(STATUS "liger: no CUDA backend (LIGER_CUDA=${LIGER_CUDA})")
  return()
endif()

find_program(LIGER_NVCC nvcc HINTS "$ENV{CUDA_HOME}/bin" "$ENV{CUDA_PATH}/bin" /usr/local/cuda/bin)
if(NOT LIGER_NVCC)
  if(LIGER_CUDA STREQUAL "ON")
    message(FATAL_ERROR "LIGER_CUDA=ON, but there is no nvcc on PATH, in CUDA_HOME or in /usr/local/cuda.")
  endif()
  message(STATUS "liger: no CUDA backend (nvcc not found)")
  return()
endif()
execute_process(COMMAND "${LIGER_NVCC}" --version OUTPUT_VARIABLE nvcc_text COMMAND_ERROR_IS_FATAL ANY)
string(REGEX MATCH "release ([0-9.]+)" nvcc_text "${nvcc_text}")
set(nvcc_version ${CMAKE_MATCH_1})

# Release list: 80 is Ampere, 90a is Hopper with its own instructions, PTX serves what comes after.
set(archs ${LIGER_CUDA_ARCHS})
set(ptx ${LIGER_CUDA_PTX})
if(archs STREQUAL "release")
  set(archs 75 80 86 89 90a 100 120)
  set(ptx 120)
  if(nvcc_version VERSION_LESS 12.8) # knows nothing after Hopper
    set(archs 75 80 86 89 90a)
    set(ptx 90)
  endif()
endif()
set(gencode)
foreach(arch IN LISTS archs)
  list(APPEND gencode -gencode=arch=compute_${arch},code=sm_${arch})
endforeach()
foreach(arch IN LISTS ptx)
  list(APPEND gencode -gencode=arch=compute_${arch},code=compute_${arch})
endforeach()

# readlink: nvcc is often a link (/usr/bin/nvcc, /usr/local/cuda); the toolkit is where it points.
file(REAL_PATH "${LIGER_NVCC}" nvcc_real)
get_filename_component(cuda_root "${nvcc_real}" DIRECTORY)
get_filename_component(cuda_root "${cuda_root}" DIRECTORY)
find_library(LIGER_CUDART NAMES cudart_static PATHS "${cuda_root}" /usr/local/cuda
             PATH_SUFFIXES lib64 lib targets/x86_64-linux/lib targets/sbsa-linux/lib REQUIRED)
find_path(LIGER_CUDA_INCLUDE cuda_runtime.h PATHS "${cuda_root}" /usr/local/cuda
          PATH_SUFFIXES include targets/x86_64-linux/include targets/sbsa-linux/include REQUIRED)

file(GLOB cuda_sources CONFIGURE_DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/liger/cuda/*.cu")
file(GLOB LIGER_CUDA_C_SOURCES CONFIGURE_DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/liger/cuda/*.c")
set(nvcc_flags -std=c++17 -O3 -I${CMAKE_CURRENT_SOURCE_DIR} ${gencode} -Wno-deprecated-gpu-targets
    -Xfatbin=-compress-all -Xptxas=-v -DLIGER_HAS_CUDA=1
    -Xcompiler=-fPIC,-fno-exceptions,-fno-rtti,-fno-threadsafe-statics,-fvisibility=hidden,-ffp-contract=off,-Wall,-Wextra)
if("90a" IN_LIST archs) # host code cannot see it
  list(APPEND nvcc_flags -DLIGER_HAS_90A=1)
endif()
if(LIGER_WERROR)
  list(APPEND nvcc_flags --Werror=all-warnings)
endif()
foreach(source IN LISTS cuda_sources LIGER_ROOM_CUDA_SOURCES)
  get_filename_component(name "${source}" NAME)
  set(object "${CMAKE_BINARY_DIR}/cuda/${name}.o")
  add_custom_command(
    OUTPUT "${object}"
    BYPRODUCTS "${object}.ptxas"
    COMMAND "${CMAKE_CURRENT_SOURCE_DIR}/tools/nvcc_said.sh" "${object}.ptxas"
            "${LIGER_NVCC}" ${nvcc_flags} -MD -MF "${object}.d" -c "${source}" -o "${object}"
    DEPENDS "${source}" DEPFILE "${object}.d" COMMENT "nvcc ${name}" VERBATIM COMMAND_EXPAND_LISTS)
  set_source_files_properties("${object}" PROPERTIES EXTERNAL_OBJECT ON GENERATED ON)
  list(APPEND LIGER_CUDA_OBJECTS "${object}")
endforeach()
file(MAKE_DIRECTORY "${CMAKE_BINARY_DIR}/cuda")
# One target owns the custom commands, or the library and the tests would both run them.
add_custom_target(liger_cuda_objects DEPENDS ${LIGER_CUDA_OBJECTS})
set(LIGER_CUDA_DEFINITIONS LIGER_HAS_CUDA=1)
set(LIGER_CUDA_LIBRARIES "${LIGER_CUDART}" rt)
include_directories(SYSTEM "${LIGER_CUDA_INCLUDE}")
message(STATUS "liger: CUDA backend, nvcc ${nvcc_version}, ${archs}, PTX ${ptx}")
