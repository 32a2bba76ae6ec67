/* pack.cuh - several values of a row moved by one instruction.
 *
 * A pack of 16 bytes per thread per access is what reaches the memory's bandwidth. Where a row, a stride or a pointer is
 * not aligned for it, kernels fall back to packs of one value. */
#ifndef LIGER_CUDA_PACK_CUH
#define LIGER_CUDA_PACK_CUH

#include <type_traits>

#include "liger/core/rows.h"
#include "liger/cuda/dtype.cuh"

enum { PACK_BYTES = 16 };
template <typename T>
constexpr int pack_size = PACK_BYTES / (int)sizeof(T);

/* One that is wider, floats beside 16-bit elements, is moved in pieces of 16 bytes: no more alignment than that is asked of
 * pointers, and of a type that promised more the compiler would make one access, where the processor has it. */
template <typename T, int N>
struct alignas(sizeof(T) * N < 16 ? sizeof(T) * N : 16) pack {
    T value[N];
};

/* What a kernel reads beside what it writes. Hints to leave the caches early cost 1 to 3 % here: the plain forms won on an
 * H200 in every kernel that does both. */
template <typename T, int N>
__device__ __forceinline__ pack<T, N> load_pack(const T *p) {
    return *(const pack<T, N> *)p;
}
template <typename T, int N>
__device__ __forceinline__ void store_pack(T *p, pack<T, N> x) {
    *(pack<T, N> *)p = x;
}
/* The same to global memory, by instruction. For kernels in which the compiler has made of that assignment one store for each
 * value, at half the speed (what it does so to does not meet the eye: cuobjdump -sass shows it). Not for all: no load is moved
 * before it. */
template <typename T, int N>
__device__ __forceinline__ void store_whole_pack(T *p, pack<T, N> x) {
    if constexpr (sizeof(x) % 16 == 0) {
        const uint32_t *const word = (const uint32_t *)&x;
#pragma unroll
        for (int i = 0; i < (int)sizeof(x) / 16; i++)
            asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"((char *)p + 16 * i), "r"(word[4 * i]),
                         "r"(word[4 * i + 1]), "r"(word[4 * i + 2]), "r"(word[4 * i + 3])
                         : "memory");
    } else if constexpr (sizeof(x) == 8) {
        const uint32_t *const word = (const uint32_t *)&x;
        asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(p), "r"(word[0]), "r"(word[1]) : "memory");
    } else {
        store_pack<T, N>(p, x);
    }
}
/* Input of a kernel that only reads: the first to leave the caches. */
template <typename T, int N>
__device__ __forceinline__ pack<T, N> load_stream(const T *p) {
    pack<T, N> out;
    if constexpr (sizeof(out) == 16) {
        *(uint4 *)&out = __ldcs((const uint4 *)p);
    } else {
        out = *(const pack<T, N> *)p;
    }
    return out;
}
/* Input that many rows read: weights, cos and sin. */
template <typename T, int N>
__device__ __forceinline__ pack<T, N> load_shared(const T *p) {
    pack<T, N> out;
    if constexpr (sizeof(out) % 16 == 0) {
        for (int i = 0; i < (int)sizeof(out) / 16; i++) ((uint4 *)&out)[i] = __ldg((const uint4 *)p + i);
    } else {
        out = *(const pack<T, N> *)p;
    }
    return out;
}
/* The i-th value of a pack. A bf16 is the upper half of a float: taken out of the register that holds two of them by one
 * instruction, where a value of 16 bits would first be moved into a register of its own. */
template <typename T, int N>
__device__ __forceinline__ float value_of(const pack<T, N> &in, int i) {
    if constexpr (std::is_same_v<T, bf16> && N % 2 == 0) {
        const unsigned two = ((const unsigned *)&in)[i / 2];
        return __uint_as_float(i % 2 == 0 ? two << 16 : two & 0xffff0000u);
    } else {
        return to_f32(in.value[i]);
    }
}
/* A pack as floats, and floats as a pack. In pairs: one instruction rounds two values to 16 bits. */
template <int N>
__device__ __forceinline__ void unpack(const pack<float, N> &in, float (&out)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) out[i] = in.value[i];
}
template <int N>
__device__ __forceinline__ void unpack(const pack<f16, N> &in, float (&out)[N]) {
#pragma unroll
    for (int i = 0; i + 1 < N; i += 2) {
        const float2 two = __half22float2(*(const __half2 *)&in.value[i]);
        out[i] = two.x, out[i + 1] = two.y;
    }
    if constexpr (N % 2) out[N - 1] = to_f32(in.value[N - 1]);
}
template <int N>
__device__ __forceinline__ void unpack(const pack<bf16, N> &in, float (&out)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) out[i] = value_of(in, i);
}
template <int N>
__device__ __forceinline__ void repack(const float (&in)[N], pack<float, N> &out) {
#pragma unroll
    for (int i = 0; i < N; i++) out.value[i] = in[i];
}
template <int N>
__device__ __forceinline__ void repack(const float (&in)[N], pack<f16, N> &out) {
#pragma unroll
    for (int i = 0; i + 1 < N; i += 2) *(__half2 *)&out.value[i] = __floats2half2_rn(in[i], in[i + 1]);
    if constexpr (N % 2) out.value[N - 1] = from_f32<f16>(in[N - 1]);
}
template <int N>
__device__ __forceinline__ void repack(const float (&in)[N], pack<bf16, N> &out) {
#pragma unroll
    for (int i = 0; i + 1 < N; i += 2) *(__nv_bfloat162 *)&out.value[i] = __floats2bfloat162_rn(in[i], in[i + 1]);
    if constexpr (N % 2) out.value[N - 1] = from_f32<bf16>(in[N - 1]);
}
template <typename T, int N>
__device__ __forceinline__ void store_each(T *to, const pack<T, N> &out) {
#pragma unroll
    for (int k = 0; k < N; k++) to[k] = out.value[k];
}

/* An output's rows may lie otherwise than the inputs'. */
template <typename T, int N>
__device__ __forceinline__ void store_anywhere(T *to, const pack<T, N> &out) {
    if ((uintptr_t)to % sizeof(out) == 0) store_whole_pack(to, out);
    else store_each(to, out);
}

/* Rounds to T and widens again. */
template <typename T, int N>
__device__ __forceinline__ void round_all(float (&x)[N]) {
    if constexpr (sizeof(T) < sizeof(float)) {
        pack<T, N> narrow;
        repack(x, narrow);
        unpack(narrow, x);
    }
}

/* N parameters of type T or f32 as floats. */
template <typename T, int N>
__device__ __forceinline__ void load_parameters(const void *parameters, liger_dtype dtype, int64_t c, float (&out)[N]) {
    if (sizeof(T) < sizeof(float) && dtype != LIGER_F32) unpack(load_shared<T, N>((const T *)parameters + c), out);
    else unpack(load_shared<float, N>((const float *)parameters + c), out);
}

/* N floats to parameters of type T or f32. */
template <typename T, int N>
__device__ __forceinline__ void store_parameters(void *parameters, liger_dtype dtype, int64_t c, const float (&x)[N]) {
    if (sizeof(T) < sizeof(float) && dtype != LIGER_F32) {
        pack<T, N> out;
        repack(x, out);
        store_pack<T, N>((T *)parameters + c, out);
    } else {
        pack<float, N> out;
        repack(x, out);
        store_pack<float, N>((float *)parameters + c, out);
    }
}

template <typename T>
__device__ __forceinline__ T *row_at(liger_rows rows, int64_t r) {
    return (T *)rows.data + liger_row_offset(rows, r);
}

/* The i-th row, counted from the end. What the operator before has written last may still be in L2, a fifth of a tensor of
 * 134 MB: losses, and backwards that walk rows or packs, begin there, and leave the first rows to whoever comes next (the
 * backward of such a loss begins with these). */
template <typename R>
__device__ __forceinline__ R from_the_end(int64_t rows, R i) {
    return (R)rows - 1 - i;
}

/* How many of a row's elements stand in front of its first boundary of PACK_BYTES. */
template <typename T>
__device__ __forceinline__ int64_t to_boundary(const T *row, int64_t cols) {
    const int64_t misaligned = ((uintptr_t)row % PACK_BYTES) / sizeof(T);
    const int64_t elements = misaligned ? pack_size<T> - misaligned : 0;
    return elements < cols ? elements : cols;
}

/* May every row of the view be moved in packs of 16 bytes? */
static inline bool rows_are_packable(liger_rows rows, size_t element) {
    const uintptr_t bits = (uintptr_t)rows.data | (uintptr_t)(rows.inner_stride * (int64_t)element) |
                           (uintptr_t)(rows.outer_stride * (int64_t)element);
    return bits % PACK_BYTES == 0;
}
/* A matrix of one stride, perhaps absent. */
static inline bool matrix_is_packable(const void *data, int64_t stride, int64_t cols, size_t element) {
    return data == NULL || ((uintptr_t)data | (uintptr_t)((stride | cols) * (int64_t)element)) % PACK_BYTES == 0;
}
static inline bool pointer_is_packable(const void *p) { return (uintptr_t)p % PACK_BYTES == 0; }

#endif
