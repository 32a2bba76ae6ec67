/* dtype.cuh - the float types of CUDA kernels, and the one macro that turns a runtime dtype into one of them. */
#ifndef LIGER_CUDA_DTYPE_CUH
#define LIGER_CUDA_DTYPE_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

#include "liger/core/tensor.h"

using f16 = __half;
using bf16 = __nv_bfloat16;

__device__ __forceinline__ float to_f32(float x) { return x; }
__device__ __forceinline__ float to_f32(f16 x) { return __half2float(x); }
__device__ __forceinline__ float to_f32(bf16 x) { return __bfloat162float(x); }

/* Round to nearest, ties to even. */
template <typename T>
__device__ __forceinline__ T from_f32(float x);
template <>
__device__ __forceinline__ float from_f32<float>(float x) {
    return x;
}
template <>
__device__ __forceinline__ f16 from_f32<f16>(float x) {
    return __float2half_rn(x);
}
template <>
__device__ __forceinline__ bf16 from_f32<bf16>(float x) {
    return __float2bfloat16_rn(x);
}

/* x rounded to T and widened again. */
template <typename T>
__device__ __forceinline__ float round_to(float x) {
    return to_f32(from_f32<T>(x));
}
/* The same for a dtype that is known at run time only; LIGER_DTYPE_NONE and F32 leave x alone. */
__device__ __forceinline__ float round_to_dtype(liger_dtype dtype, float x) {
    if (dtype == LIGER_BF16) return round_to<bf16>(x);
    return dtype == LIGER_F16 ? round_to<f16>(x) : x;
}

/* The i-th of indices that are i32 or i64. */
__device__ __forceinline__ int64_t index_at(const void *indices, liger_dtype dtype, int64_t i) {
    return dtype == LIGER_I32 ? (int64_t)((const int32_t *)indices)[i] : ((const int64_t *)indices)[i];
}

/* The i-th of values whose dtype is known at run time only. */
__device__ __forceinline__ float load_as(const void *from, liger_dtype dtype, int64_t i) {
    if (dtype == LIGER_F32) return ((const float *)from)[i];
    return dtype == LIGER_F16 ? to_f32(((const f16 *)from)[i]) : to_f32(((const bf16 *)from)[i]);
}
/* Stores x as the i-th of values whose dtype is known at run time only. */
__device__ __forceinline__ void store_as(void *to, liger_dtype dtype, int64_t i, float x) {
    if (dtype == LIGER_F32) ((float *)to)[i] = x;
    else if (dtype == LIGER_F16) ((f16 *)to)[i] = from_f32<f16>(x);
    else ((bf16 *)to)[i] = from_f32<bf16>(x);
}

/* Runs the statements with T = the C++ type of a runtime float dtype. */
#define LIGER_FOR_FLOAT(dtype, T, ...)                                                                                 \
    switch (dtype) {                                                                                                   \
        case LIGER_F32: {                                                                                              \
            using T = float;                                                                                           \
            __VA_ARGS__;                                                                                               \
        } break;                                                                                                       \
        case LIGER_F16: {                                                                                              \
            using T = f16;                                                                                             \
            __VA_ARGS__;                                                                                               \
        } break;                                                                                                       \
        case LIGER_BF16: {                                                                                             \
            using T = bf16;                                                                                            \
            __VA_ARGS__;                                                                                               \
        } break;                                                                                                       \
        default: break;                                                                                                \
    }

/* The same for activations of type T with parameters that are T or f32. */
#define LIGER_FOR_FLOAT_AND_WEIGHT(dtype, weight_dtype, T, TW, ...)                                                    \
    LIGER_FOR_FLOAT(                                                                                                   \
        dtype, T,                                                                                                      \
        if (weight_dtype == LIGER_F32) {                                                                               \
            using TW = float;                                                                                          \
            __VA_ARGS__;                                                                                               \
        } else {                                                                                                       \
            using TW = T;                                                                                              \
            __VA_ARGS__;                                                                                               \
        })

#endif
