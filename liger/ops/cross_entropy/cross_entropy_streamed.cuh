/* cross_entropy_streamed.cuh - the row kernel for everything that cross_entropy_resident.cuh does not take: rows that do
 * not fit into a cluster's shared memory, rows that are not aligned to 16 bytes, devices without clusters.
 *
 * One block per row, two walks: online softmax, then the gradient, for which the row is found in L2 if it is not huge.
 * Elements before the first and after the last 16-byte boundary are taken one by one. */
#ifndef LIGER_OPS_CROSS_ENTROPY_STREAMED_CUH
#define LIGER_OPS_CROSS_ENTROPY_STREAMED_CUH

#include "liger/ops/cross_entropy/cross_entropy_resident.cuh"

namespace cross_entropy {

enum { STREAMED_THREADS = 512 };

/* Calls visit(pack, index of its first element) for the packs of a row that belong to this thread. */
template <typename T, typename F>
__device__ __forceinline__ void walk(const T *row, int64_t vocab, F visit) {
    constexpr int N = pack_size<T>, UNROLL = 4;
    const int64_t misaligned = ((uintptr_t)row % PACK_BYTES) / sizeof(T);
    const int64_t to_boundary = misaligned ? N - misaligned : 0, head = to_boundary < vocab ? to_boundary : vocab;
    const int64_t vectors = (vocab - head) / N, tail = head + vectors * N;
    if (threadIdx.x < head) visit(*(const pack<T, 1> *)(row + threadIdx.x), (int64_t)threadIdx.x);
    for (int64_t v = threadIdx.x; v < vectors; v += UNROLL * blockDim.x) {
        pack<T, N> raw[UNROLL];
#pragma unroll
        for (int u = 0; u < UNROLL; u++)
            if (v + u * blockDim.x < vectors) raw[u] = *(const pack<T, N> *)(row + head + (v + u * blockDim.x) * N);
#pragma unroll
        for (int u = 0; u < UNROLL; u++)
            if (v + u * blockDim.x < vectors) visit(raw[u], head + (v + u * blockDim.x) * N);
    }
    if (tail + threadIdx.x < vocab) visit(*(const pack<T, 1> *)(row + tail + threadIdx.x), tail + threadIdx.x);
}

template <typename T, int N>
__device__ __forceinline__ void push(const problem &p, summary &s, const pack<T, N> &raw, int64_t first, float base,
                                     int64_t y) {
    float x[N], most = -FLT_MAX;
#pragma unroll
    for (int k = 0; k < N; k++) x[k] = to_f32(raw.value[k]);
    if (p.softcap > 0.0f) {
#pragma unroll
        for (int k = 0; k < N; k++) x[k] = capped(p, x[k]);
    }
#pragma unroll
    for (int k = 0; k < N; k++) most = fmaxf(most, x[k]);
    if (most >= s.best && (p.accuracy || p.predicted)) {
#pragma unroll
        for (int k = 0; k < N; k++) take_better(s.best, s.index, x[k], first + k);
    }
    const float max = fmaxf(s.softmax.max, softmax_max(most));
    const softmax_unit unit = softmax_unit_of(max);
    s.softmax.sum *= softmax_rescale(s.softmax.max, unit);
    s.softmax.max = max;
#pragma unroll
    for (int k = 0; k < N; k++) {
        const float e = softmax_term(x[k], unit);
        s.softmax.sum += first + k == y ? 0.0f : e;
    }
    if (p.label_smoothing > 0.0f) {
#pragma unroll
        for (int k = 0; k < N; k++) s.shape += (p.weight ? p.weight[first + k] : 1.0f) * (x[k] - base);
    }
}

template <typename T, int N>
__device__ __forceinline__ void store_gradient(const problem &p, const factors &f, const softmax_unit &unit,
                                               const pack<T, N> &raw, int64_t first, T *row) {
    const bool weighted = p.weight && p.label_smoothing > 0.0f;
    pack<T, N> out;
#pragma unroll
    for (int k = 0; k < N; k++) {
        const float x = capped(p, to_f32(raw.value[k])),
                    uniform = weighted ? f.uniform * p.weight[first + k] : f.uniform;
        const float d = (softmax_term(x, unit) * f.probability - uniform) * cap_slope(p, x);
        out.value[k] = from_f32<T>(d);
    }
    if ((uintptr_t)(row + first) % sizeof(out) == 0) {
        store_pack(row + first, out);
    } else {
#pragma unroll
        for (int k = 0; k < N; k++) row[first + k] = out.value[k];
    }
}

template <typename T, typename X>
__device__ __forceinline__ void streamed_row(const problem &p, const batch &b, int64_t r, int64_t y, X &exchanged) {
    const T *logits = (const T *)p.logits + r * p.logits_stride;
    const bool in_range = y >= 0 && y < p.vocab, first = threadIdx.x == 0;
    const float target = in_range ? capped(p, to_f32(logits[y])) : -FLT_MAX;
    float base = capped(p, to_f32(logits[0]));
    summary s = empty_summary();
    s.softmax.max = softmax_max(fmaxf(target, base)); /* received before it may be overwritten: see row_state */
    if (!isfinite(base)) base = 0.0f;
    walk(logits, p.vocab, [&](const auto &raw, int64_t index) { push(p, s, raw, index, base, y); });
    exchanged.send(s);
    s = exchanged.receive(empty_summary());
    if (s.index == INT64_MAX) s.index = 0;
    const factors f = in_range ? factors_of(p, b, r, y, target, s.softmax) : factors{NAN, NAN};
    T *row = (T *)p.dlogits + r * p.dlogits_stride;
    if (p.dlogits) {
        const softmax_unit unit = softmax_unit_of(s.softmax.max);
        walk(logits, p.vocab, [&](const auto &raw, int64_t index) { store_gradient(p, f, unit, raw, index, row); });
        __syncthreads(); /* whoever stored the target's element has done so: the first thread replaces it */
    }
    if (!first) return;
    if (!in_range) {
        spoil_row(p, r, s.index);
        return;
    }
    const float d = finish_row(p, b, r, y, f, {target, s.softmax, s.shape, base, s.index});
    if (p.dlogits) row[y] = from_f32<T>(d);
}

template <typename T>
__global__ void __launch_bounds__(STREAMED_THREADS, 1) streamed_kernel(const __grid_constant__ problem p) {
    constexpr int WARPS = STREAMED_THREADS / WARP;
    __shared__ summary slots[TURNS * WARPS];
    __shared__ shared_barrier barriers[TURNS];
    exchange<summary, WARPS, false> exchanged = {slots, barriers, 0, 0};
    if (threadIdx.x == 0) exchanged.init();
    __syncthreads();
    const batch b = batch_of(p);
    for (int64_t i = blockIdx.x; i < p.rows; i += gridDim.x) {
        const int64_t r = p.rows - 1 - i, y = target_at(p, r); /* from the end, as resident_kernel */
        if (y != p.ignore_index) {
            streamed_row<T>(p, b, r, y, exchanged);
            continue;
        }
        if (threadIdx.x == 0) ignore_row(p, r);
        T *row = (T *)p.dlogits + r * p.dlogits_stride;
        if (p.dlogits)
            for (int64_t j = threadIdx.x; j < p.vocab; j += blockDim.x) row[j] = from_f32<T>(0.0f);
    }
}

} // namespace cross_entropy

#endif
