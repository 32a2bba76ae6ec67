/* swiglu_cuda.cu - SwiGLU on the GPU: element-wise and memory-bound, so that nothing matters but wide streaming loads.
 *
 * A thread moves one or two packs per tensor, all loads before the first use. Tensors in one piece come as one long row
 * and run on a flat grid; rows with gaps add a second grid dimension. What is left of a row behind its last whole pack
 * is done one element at a time. Inputs are read before outputs are written and never through the read-only
 * cache, because an output may be an input. */
#include "liger/cuda/launch.cuh"
#include "liger/cuda/pack.cuh"
#include "liger/ops/swiglu/swiglu_problem.h"

namespace {

enum { THREADS = 256, MAX_GRID_Y = 65535 };

/* 1/(1 + e^-g) within 3 ulp: expf within 1, and the hardware's reciprocal within 1. (e^-g overflows below g = -88.7,
 * the reciprocal is flushed below -87.3: 0 either way.) */
__device__ __forceinline__ float sigmoid(float g) {
    float reciprocal;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(reciprocal) : "f"(1.0f + expf(-g)));
    return reciprocal;
}

template <typename T>
__device__ __forceinline__ T *row_at(liger_rows rows, int64_t r) {
    return rows.data ? (T *)rows.data + liger_row_offset(rows, r) : nullptr;
}

/* N neighbouring elements of one row: the body of both kernels' loops, for a pack and for one element. */
template <typename T, bool ROUNDS_TO_T>
struct forward_body {
    enum { PACKS = 2 }; /* per thread and tensor: at 64 registers 64 KB of loads are in flight on a multiprocessor */
    struct row {
        const T *gate, *up;
        T *y;
    };
    template <int N>
    struct inputs {
        pack<T, N> gate, up;
    };
    static __device__ __forceinline__ row row_of(const swiglu_forward_problem &p, int64_t r) {
        return {row_at<const T>(p.gate, r), row_at<const T>(p.up, r), row_at<T>(p.y, r)};
    }
    template <int N>
    static __device__ __forceinline__ void load(const row &at, int64_t i, inputs<N> &in) {
        in.gate = load_stream<T, N>(at.gate + i);
        in.up = load_stream<T, N>(at.up + i);
    }
    template <int N>
    static __device__ __forceinline__ void finish(const swiglu_forward_problem &p, const row &at, int64_t i,
                                                  const inputs<N> &in) {
        pack<T, N> y;
#pragma unroll
        for (int k = 0; k < N; k++) {
            const float g = to_f32(in.gate.value[k]) * p.gate_multiplier;
            const float silu = g * sigmoid(g);
            const float activation = ROUNDS_TO_T ? round_to<T>(silu) : round_to_dtype(p.activation_dtype, silu);
            float product = activation * to_f32(in.up.value[k]);
            if (p.down_multiplier != 1.0f) product = round_to<T>(product) * p.down_multiplier;
            y.value[k] = from_f32<T>(product);
        }
        store_stream<T, N>(at.y + i, y);
    }
};

template <typename T>
struct backward_body {
    enum { PACKS = 1 }; /* two would take 110 registers, and bring no more bytes in flight than one with its 60 */
    struct row {
        const T *dy, *gate, *up;
        T *dgate, *dup;
    };
    template <int N>
    struct inputs {
        pack<T, N> dy, gate, up;
    };
    static __device__ __forceinline__ row row_of(const swiglu_backward_problem &p, int64_t r) {
        return {row_at<const T>(p.dy, r), row_at<const T>(p.gate, r), row_at<const T>(p.up, r), row_at<T>(p.dgate, r),
                row_at<T>(p.dup, r)};
    }
    template <int N>
    static __device__ __forceinline__ void load(const row &at, int64_t i, inputs<N> &in) {
        in.dy = load_stream<T, N>(at.dy + i);
        in.gate = load_stream<T, N>(at.gate + i);
        in.up = load_stream<T, N>(at.up + i);
    }
    template <int N>
    static __device__ __forceinline__ void finish(const swiglu_backward_problem &p, const row &at, int64_t i,
                                                  const inputs<N> &in) {
        pack<T, N> dgate, dup;
#pragma unroll
        for (int k = 0; k < N; k++) {
            const float dc = to_f32(in.dy.value[k]) * p.down_multiplier;
            const float g = to_f32(in.gate.value[k]) * p.gate_multiplier;
            const float s = sigmoid(g), silu = g * s, slope = fmaf(silu, 1.0f - s, s);
            dup.value[k] = from_f32<T>(dc * silu);
            dgate.value[k] = from_f32<T>(dc * to_f32(in.up.value[k]) * slope * p.gate_multiplier);
        }
        if (at.dup) store_stream<T, N>(at.dup + i, dup);
        if (at.dgate) store_stream<T, N>(at.dgate + i, dgate);
    }
};

template <typename BODY, int N, typename PROBLEM>
__global__ void __launch_bounds__(THREADS) swiglu_kernel(const __grid_constant__ PROBLEM p) {
    const int64_t packs = p.cols / N, step = (int64_t)gridDim.x * blockDim.x * BODY::PACKS;
    for (int64_t r = (int64_t)blockIdx.y * blockDim.y + threadIdx.y; r < p.rows; r += (int64_t)gridDim.y * blockDim.y) {
        const typename BODY::row at = BODY::row_of(p, r);
        for (int64_t c = (int64_t)blockIdx.x * blockDim.x * BODY::PACKS + threadIdx.x; c < packs; c += step) {
            typename BODY::template inputs<N> in[BODY::PACKS];
#pragma unroll
            for (int k = 0; k < BODY::PACKS; k++)
                if (c + k * blockDim.x < packs) BODY::template load<N>(at, (c + k * blockDim.x) * N, in[k]);
#pragma unroll
            for (int k = 0; k < BODY::PACKS; k++)
                if (c + k * blockDim.x < packs) BODY::template finish<N>(p, at, (c + k * blockDim.x) * N, in[k]);
        }
        if constexpr (N > 1) {
            if (blockIdx.x != 0) continue;
            for (int64_t i = packs * N + threadIdx.x; i < p.cols; i += blockDim.x) {
                typename BODY::template inputs<1> in;
                BODY::template load<1>(at, i, in);
                BODY::template finish<1>(p, at, i, in);
            }
        }
    }
}

/* Narrow rows share a block. */
template <typename BODY, int N, typename PROBLEM>
void launch(const PROBLEM &p, cudaStream_t stream) {
    const int64_t packs = p.cols / N;
    unsigned x = THREADS;
    while (x > 1 && (int64_t)x * BODY::PACKS / 2 >= packs && p.rows > 1) x /= 2;
    const unsigned y = THREADS / x;
    const dim3 grid(grid_size(packs, (int64_t)x * BODY::PACKS), grid_size(p.rows, y, MAX_GRID_Y));
    swiglu_kernel<BODY, N, PROBLEM><<<grid, dim3(x, y), 0, stream>>>(p);
}

template <typename BODY, typename T, typename PROBLEM>
void launch_widest(const PROBLEM &p, bool packable, cudaStream_t stream) {
    if (packable) launch<BODY, pack_size<T>>(p, stream);
    else launch<BODY, 1>(p, stream);
}

} // namespace

extern "C" liger_status swiglu_forward_cuda(liger_context *context, const swiglu_forward_problem *problem,
                                            liger_stream stream) {
    const swiglu_forward_problem &p = *problem;
    const device_scope device(context);
    const size_t element = liger_dtype_size(p.dtype);
    const bool packable =
        rows_are_packable(p.gate, element) && rows_are_packable(p.up, element) && rows_are_packable(p.y, element);
    LIGER_FOR_FLOAT(p.dtype, T,
                    if (p.activation_dtype == p.dtype)
                        launch_widest<forward_body<T, true>, T>(p, packable, (cudaStream_t)stream);
                    else launch_widest<forward_body<T, false>, T>(p, packable, (cudaStream_t)stream));
    return launched(context, "swiglu_forward", stream);
}

extern "C" liger_status swiglu_backward_cuda(liger_context *context, const swiglu_backward_problem *problem,
                                             liger_stream stream) {
    const swiglu_backward_problem &p = *problem;
    const device_scope device(context);
    const size_t element = liger_dtype_size(p.dtype);
    const bool packable = rows_are_packable(p.dy, element) && rows_are_packable(p.gate, element) &&
                          rows_are_packable(p.up, element) && rows_are_packable(p.dgate, element) &&
                          rows_are_packable(p.dup, element);
    LIGER_FOR_FLOAT(p.dtype, T, launch_widest<backward_body<T>, T>(p, packable, (cudaStream_t)stream));
    return launched(context, "swiglu_backward", stream);
}
