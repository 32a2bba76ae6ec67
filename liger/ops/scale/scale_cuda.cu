/* scale_cuda.cu - y = x · scale on CUDA, at the speed of a copy.
 *
 * The factor is read on the device. If it is 1 and y is x every block returns at once: the usual backward of a loss costs
 * a launch and no traffic. The grid is persistent, so that this holds for any size. */
#include "liger/core/kernel_table.h"
#include "liger/cuda/launch.cuh"
#include "liger/cuda/pack.cuh"
#include "liger/ops/scale/scale_problem.h"

namespace {

enum { THREADS = 256, BLOCKS_PER_MULTIPROCESSOR = 4, UNROLL = 4 };

/* Packs of N values, N values fill 16 bytes of the narrower type; the wider one takes one or two accesses. */
template <typename T, int N>
__device__ __forceinline__ pack<T, N> load_wide(const T *p) {
    pack<T, N> out;
#pragma unroll
    for (int i = 0; i < (int)sizeof(out) / 16; i++) ((uint4 *)&out)[i] = ((const uint4 *)p)[i];
    return out;
}
template <typename T, int N>
__device__ __forceinline__ void store_wide(T *p, const pack<T, N> &x) {
#pragma unroll
    for (int i = 0; i < (int)sizeof(x) / 16; i++) ((uint4 *)p)[i] = ((const uint4 *)&x)[i];
}

template <typename TX, typename TY, int N>
__device__ __forceinline__ pack<TY, N> scaled(const pack<TX, N> &x, float factor) {
    pack<TY, N> y;
#pragma unroll
    for (int k = 0; k < N; k++) y.value[k] = from_f32<TY>(to_f32(x.value[k]) * factor);
    return y;
}

template <typename TX, typename TY>
__global__ void __launch_bounds__(THREADS, BLOCKS_PER_MULTIPROCESSOR)
    scale_kernel(const scale_problem p, bool packable) {
    constexpr int N = PACK_BYTES / (sizeof(TX) < sizeof(TY) ? sizeof(TX) : sizeof(TY));
    const float factor = p.scale ? *p.scale : 1.0f;
    if (factor == 1.0f && p.x == p.y) return;
    const TX *x = (const TX *)p.x;
    TY *y = (TY *)p.y;
    const int64_t packs = packable ? p.count / N : 0, step = (int64_t)gridDim.x * THREADS;
    const int64_t thread = blockIdx.x * (int64_t)THREADS + threadIdx.x;
    if (p.target && !isfinite(factor)) { /* zeros of ignored rows stay */
        const int64_t cols = p.count / p.rows;
        for (int64_t j = thread; j < p.count; j += step) {
            const float value = to_f32(x[j]);
            const bool ignored = index_at(p.target, p.target_dtype, j / cols) == p.ignore_index;
            y[j] = from_f32<TY>(ignored && value == 0.0f ? value : value * factor);
        }
        return;
    }
    int64_t i = thread;
    for (; i + (UNROLL - 1) * step < packs; i += UNROLL * step) {
        pack<TX, N> in[UNROLL];
#pragma unroll
        for (int u = 0; u < UNROLL; u++) in[u] = load_wide<TX, N>(x + (i + u * step) * N);
#pragma unroll
        for (int u = 0; u < UNROLL; u++) store_wide<TY, N>(y + (i + u * step) * N, scaled<TX, TY, N>(in[u], factor));
    }
    for (; i < packs; i += step) store_wide<TY, N>(y + i * N, scaled<TX, TY, N>(load_wide<TX, N>(x + i * N), factor));
    for (int64_t j = packs * N + thread; j < p.count; j += step) y[j] = from_f32<TY>(to_f32(x[j]) * factor);
}

template <typename TX, typename TY>
void launch(const liger_context *context, const scale_problem &p, liger_stream stream) {
    const bool packable = pointer_is_packable(p.x) && pointer_is_packable(p.y);
    const int64_t most = (int64_t)context->cuda->multiprocessors * BLOCKS_PER_MULTIPROCESSOR;
    const unsigned grid = grid_size(p.count, THREADS * (packable ? 8 : 1), most);
    scale_kernel<TX, TY><<<grid, THREADS, 0, (cudaStream_t)stream>>>(p, packable);
}

} // namespace

extern "C" liger_status scale_cuda(liger_context *context, const struct scale_problem *problem, liger_stream stream) {
    if (problem->count == 0) return LIGER_OK;
    LIGER_ON_DEVICE(context, "scale");
    LIGER_FOR_FLOAT(problem->x_dtype, TX,
                    LIGER_FOR_FLOAT(problem->y_dtype, TY, launch<TX, TY>(context, *problem, stream)))
    return launched(context, "scale", stream);
}
