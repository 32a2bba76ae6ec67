/* cross_entropy_loss.cuh - the row kernel for a loss without gradient: rows are read once and nothing is kept.
 *
 * One block per row and many blocks per multiprocessor, so that one block's reduction hides behind the loads of others.
 * Each thread keeps its own online softmax and looks at its maximum once per four packs: the special-function unit, one
 * exponential per element, is then what is busy besides memory. */
#ifndef LIGER_OPS_CROSS_ENTROPY_LOSS_CUH
#define LIGER_OPS_CROSS_ENTROPY_LOSS_CUH

#include "liger/ops/cross_entropy/cross_entropy_resident.cuh"

namespace cross_entropy {

enum { LOSS_THREADS = 256, LOSS_PACKS = 4 };

/* The largest value of a pack; in pairs where the type has packed instructions. NaN is left to the sum. */
template <int N>
__device__ __forceinline__ float largest(const pack<float, N> &x) {
    float most = x.value[0];
#pragma unroll
    for (int i = 1; i < N; i++) most = fmaxf(most, x.value[i]);
    return most;
}
template <int N>
__device__ __forceinline__ float largest(const pack<f16, N> &x) {
    const __half2 *two = (const __half2 *)x.value;
    __half2 most = two[0];
#pragma unroll
    for (int i = 1; i < N / 2; i++) most = __hmax2(most, two[i]);
    return fmaxf(__low2float(most), __high2float(most));
}
template <int N>
__device__ __forceinline__ float largest(const pack<bf16, N> &x) {
    const __nv_bfloat162 *two = (const __nv_bfloat162 *)x.value;
    __nv_bfloat162 most = two[0];
#pragma unroll
    for (int i = 1; i < N / 2; i++) most = __hmax2(most, two[i]);
    return fmaxf(__low2float(most), __high2float(most));
}

/* Four packs more. The target's own term is left out of the sum: its element reads as -inf. */
template <typename T>
__device__ __forceinline__ softmax_state push_packs(softmax_state s, pack<T, pack_size<T>> (&raw)[LOSS_PACKS],
                                                    int64_t v, int64_t packs, int64_t y) {
    constexpr int N = pack_size<T>;
    float most = -INFINITY;
#pragma unroll
    for (int u = 0; u < LOSS_PACKS; u++) {
        const int64_t first = (v + u * LOSS_THREADS) * N;
        if (v + u * LOSS_THREADS >= packs) continue;
        if ((uint64_t)(y - first) < (uint64_t)N) {
#pragma unroll
            for (int i = 0; i < N; i++)
                if (first + i == y) raw[u].value[i] = from_f32<T>(-INFINITY);
        }
        most = fmaxf(most, largest(raw[u]));
    }
    const float max = fmaxf(s.max, softmax_max(most));
    const softmax_unit unit = softmax_unit_of(max);
    float sum = s.sum * softmax_rescale(s.max, unit);
#pragma unroll
    for (int u = 0; u < LOSS_PACKS; u++) {
        if (v + u * LOSS_THREADS >= packs) continue;
        float x[N], part = 0.0f;
        unpack(raw[u], x);
#pragma unroll
        for (int i = 0; i < N; i++) part += softmax_term(x[i], unit);
        sum += part;
    }
    return {max, sum};
}

template <typename T>
__device__ __forceinline__ softmax_state read_row(const T *row, int64_t packs, int64_t y) {
    constexpr int N = pack_size<T>;
    softmax_state s = softmax_empty();
    for (int64_t v = threadIdx.x; v < packs; v += LOSS_PACKS * LOSS_THREADS) {
        pack<T, N> raw[LOSS_PACKS];
#pragma unroll
        for (int u = 0; u < LOSS_PACKS; u++)
            if (v + u * LOSS_THREADS < packs) raw[u] = load_stream<T, N>(row + (v + u * LOSS_THREADS) * N);
        s = push_packs<T>(s, raw, v, packs, y);
    }
    return s;
}

/* The sum of the whole block, by the first warp. */
__device__ __forceinline__ softmax_state block_softmax(softmax_state s) {
    __shared__ softmax_state slots[LOSS_THREADS / WARP];
    s = warp_merge(s);
    if (threadIdx.x % WARP == 0) slots[threadIdx.x / WARP] = s;
    __syncthreads();
    return warp_merge(threadIdx.x < LOSS_THREADS / WARP ? slots[threadIdx.x] : softmax_empty());
}

template <typename T>
__global__ void __launch_bounds__(LOSS_THREADS) loss_kernel(const __grid_constant__ problem p) {
    const int64_t r = row_at(p, blockIdx.x), y = target_at(p, r);
    if (y == p.ignore_index) {
        if (threadIdx.x == 0) ignore_row(p, r);
        return;
    }
    if (y < 0 || y >= p.vocab) {
        if (threadIdx.x == 0) spoil_row(p, r, 0);
        return;
    }
    const T *row = (const T *)p.logits + r * p.logits_stride;
    const softmax_state others = block_softmax(read_row<T>(row, p.vocab / pack_size<T>, y));
    if (threadIdx.x != 0) return;
    const float target = to_f32(row[y]), max = fmaxf(others.max, softmax_max(target));
    const softmax_state all = {max, others.sum * softmax_rescale(others.max, softmax_unit_of(max))};
    const batch b = batch_of(p);
    finish_row(p, b, r, y, factors_of(p, b, r, y, target, all), {target, all, 0.0f, 0.0f, 0});
}

} // namespace cross_entropy

#endif
