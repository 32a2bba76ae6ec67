/* cross_entropy_resident.cuh - the row kernel for rows that fit into the registers of a block or a cluster.
 *
 * A row is read once, stays in registers as f32, and its gradient is written once: one exponential per element and one
 * barrier per row. Each thread takes the exponentials relative to its own maximum; the states are merged across lanes,
 * warps and the cluster in a fixed order, and the thread's factor corrects the rest.
 * Blocks are persistent: while a row is worked on, the next STAGES rows of the block are on their way to shared memory
 * (cp.async). A thread copies exactly what it will read itself, so no barrier guards the copies. */
#ifndef LIGER_OPS_CROSS_ENTROPY_RESIDENT_CUH
#define LIGER_OPS_CROSS_ENTROPY_RESIDENT_CUH

#include "liger/ops/cross_entropy/cross_entropy_row.cuh"

namespace cross_entropy {

enum { VECTORS = 4, STAGES = 2, PLAIN_THREADS = 1024, OPTIONS_THREADS = 512, MAX_CLUSTER = 8 };

/* 16 bytes from global to shared memory, in the background; before capability 8 in the foreground. */
__device__ __forceinline__ void copy_async(void *shared, const void *global) {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"((uint32_t)__cvta_generic_to_shared(shared)),
                 "l"(global)
                 : "memory");
#else
    *(uint4 *)shared = *(const uint4 *)global;
#endif
}
__device__ __forceinline__ void copy_commit() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
template <int PENDING> __device__ __forceinline__ void copy_wait() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
#endif
}

/* Where this thread stands in a row: its vectors are first + j·step for j < VECTORS, those below `end`. */
struct place {
    int first, end, step;
};

/* A target in a register: all rows here are far shorter than 2^31. */
enum { TARGET_IGNORED = -1, TARGET_OUT_OF_RANGE = -2 };
__device__ __forceinline__ int short_target(const problem &p, int64_t r) {
    const int64_t y = target_at(p, r);
    if (y == p.ignore_index) return TARGET_IGNORED;
    return y >= 0 && y < p.vocab ? (int)y : TARGET_OUT_OF_RANGE;
}

/* A row number counted from the end: the tail of the logits was written last and may still be in L2. */
__device__ __forceinline__ int64_t row_at(const problem &p, int64_t i) { return p.rows - 1 - i; }

template <typename T>
__device__ __forceinline__ void prefetch(const problem &p, const place &at, int64_t i, bool wanted, uint4 *stage) {
    if (wanted) {
        const T *row = (const T *)p.logits + row_at(p, i) * p.logits_stride;
#pragma unroll
        for (int j = 0; j < VECTORS; j++) {
            const int v = at.first + j * at.step;
            if (v < at.end) copy_async(stage + j * at.step, row + v * pack_size<T>);
        }
    }
    copy_commit();
}

/* Widens this thread's vectors; -inf where the row has ended. */
template <typename T>
__device__ __forceinline__ void widen(const place &at, const uint4 *stage, float (&x)[VECTORS * pack_size<T>]) {
    constexpr int N = pack_size<T>;
#pragma unroll
    for (int j = 0; j < VECTORS; j++) {
        const bool inside = at.first + j * at.step < at.end;
        pack<T, N> raw;
        if (inside) *(uint4 *)&raw = stage[j * at.step];
#pragma unroll
        for (int k = 0; k < N; k++) x[j * N + k] = inside ? to_f32(raw.value[k]) : -INFINITY;
    }
}

template <typename T, typename F>
__device__ __forceinline__ void write_row(const problem &p, const place &at, int64_t r, F gradient) {
    constexpr int N = pack_size<T>;
    T *row = (T *)p.dlogits + r * p.dlogits_stride;
#pragma unroll
    for (int j = 0; j < VECTORS; j++) {
        const int v = at.first + j * at.step;
        if (v >= at.end) continue;
        pack<T, N> out;
#pragma unroll
        for (int k = 0; k < N; k++) out.value[k] = from_f32<T>(gradient(j * N + k, v * N + k));
        store_stream(row + v * N, out);
    }
}

/* Gives every thread of the cluster the merged state. `slots` has one place per warp of the cluster, twice: rows take
 * turns, so that one barrier per row is enough. */
template <typename S> __device__ __forceinline__ S exchange(S mine, S *slots, int rank, int clusters, S empty) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    mine = warp_merge(mine);
    if (lane < clusters) *cluster_map(slots + rank * warps + warp, lane) = mine;
    cluster_barrier(clusters);
    S all = lane < clusters * warps ? slots[lane] : empty;
    if constexpr (sizeof(S) == sizeof(softmax_state)) {
        for (int i = lane + WARP; i < clusters * warps; i += WARP) all = softmax_merge(all, slots[i]);
    } else {
        for (int i = lane + WARP; i < clusters * warps; i += WARP) all = merge(all, slots[i]);
    }
    return warp_merge(all);
}

/* The plain row: no label smoothing, no soft cap, nobody asks for the prediction. */
template <typename T>
__device__ __forceinline__ void plain_row(const problem &p, const batch &b, const place &at, int64_t r, int y,
                                          float (&x)[VECTORS * pack_size<T>], softmax_state *slots, int rank,
                                          int clusters) {
    constexpr int N = pack_size<T>, COUNT = VECTORS * N;
    const bool in_range = y >= 0;
    const int v = in_range ? y / N : 0; /* the thread that has the target writes what is left of the row */
    const bool owner = v >= at.first && v < at.end && (v - at.first) % at.step == 0;
    const float target = in_range ? to_f32(((const T *)p.logits + r * p.logits_stride)[y]) : 0.0f;
    float max[4] = {-FLT_MAX, -FLT_MAX, -FLT_MAX, -FLT_MAX}, sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
    for (int k = 0; k < COUNT; k++) max[k % 4] = fmaxf(max[k % 4], x[k]);
    const float own_max = fmaxf(fmaxf(max[0], max[1]), fmaxf(max[2], max[3]));
#pragma unroll
    for (int k = 0; k < COUNT; k++) {
        x[k] = exp_for<T>(x[k] - own_max);
        sum[k % 4] += x[k];
    }
    if (owner) { /* once more without the target */
        const int own = (v - at.first) / at.step * N + y % N;
        sum[0] = sum[1] = sum[2] = sum[3] = 0.0f;
#pragma unroll
        for (int k = 0; k < COUNT; k++) sum[k % 4] += k == own && in_range ? 0.0f : x[k];
    }
    const softmax_state mine = {own_max, (sum[0] + sum[1]) + (sum[2] + sum[3])};
    const softmax_state all = exchange(mine, slots, rank, clusters, softmax_empty());
    const factors f = in_range ? finish_row(p, b, r, y, target, all, 0.0f, 0.0f, -1, owner)
                               : spoil_row(p, r, -1, owner);
    if (p.dlogits == nullptr) return;
    const float factor = f.probability * expf(own_max - all.max);
    write_row<T>(p, at, r, [&](int k, int) { return x[k] * factor; });
    /* Formed in f32 and stored over the vector's element: a thread's stores to one address keep their order. */
    if (owner && in_range) ((T *)p.dlogits + r * p.dlogits_stride)[y] = from_f32<T>(f.own);
}

/* Σ w (x - base) of one vector. */
template <int N>
__device__ __forceinline__ float smooth_sum(const problem &p, const float *x, int first, float base) {
    float sum = 0.0f;
#pragma unroll
    for (int k = 0; k < N; k++) sum += (p.weight ? p.weight[first + k] : 1.0f) * (x[k] - base);
    return sum;
}

/* Every option. Registers hold the soft-capped logits, so the exponentials are taken twice. */
template <typename T>
__device__ __forceinline__ void optioned_row(const problem &p, const batch &b, const place &at, int64_t r, int y,
                                             float (&x)[VECTORS * pack_size<T>], summary *slots, int rank,
                                             int clusters) {
    constexpr int N = pack_size<T>, COUNT = VECTORS * N;
    const T *logits = (const T *)p.logits + r * p.logits_stride;
    const bool in_range = y >= 0, smooth = p.label_smoothing > 0.0f;
    const int v = in_range ? y / N : 0;
    const bool owner = v >= at.first && v < at.end && (v - at.first) % at.step == 0;
    const float target = in_range ? capped(p, to_f32(logits[y])) : 0.0f;
    float base = capped(p, to_f32(logits[0]));
    if (!isfinite(base)) base = 0.0f;
    summary mine = empty_summary();
    int best = -1;
#pragma unroll
    for (int k = 0; k < COUNT; k++) {
        const int vector = at.first + k / N * at.step, j = vector * N + k % N;
        if (p.softcap > 0.0f && vector < at.end) x[k] = capped(p, x[k]);
        if (x[k] > mine.best) mine.best = x[k], best = j;
    }
    if (best >= 0) mine.index = best;
    if (smooth) {
#pragma unroll
        for (int j = 0; j < VECTORS; j++) {
            const int vector = at.first + j * at.step;
            if (vector < at.end) mine.shape += smooth_sum<N>(p, &x[j * N], vector * N, base);
        }
    }
    mine.softmax.max = fmaxf(mine.softmax.max, mine.best);
#pragma unroll
    for (int k = 0; k < COUNT; k++) {
        const float e = exp_for<T>(x[k] - mine.softmax.max);
        mine.softmax.sum += (at.first + k / N * at.step) * N + k % N == y ? 0.0f : e;
    }
    summary all = exchange(mine, slots, rank, clusters, empty_summary());
    if (all.index == INT64_MAX) all.index = 0; /* nothing above -inf */
    const factors f = in_range ? finish_row(p, b, r, y, target, all.softmax, all.shape, base, all.index, owner)
                               : spoil_row(p, r, all.index, owner);
    if (p.dlogits == nullptr) return;
    write_row<T>(p, at, r, [&](int k, int j) {
        float d = exp_for<T>(x[k] - all.softmax.max) * f.probability;
        if (smooth) d -= f.uniform * (p.weight ? __ldg(p.weight + j) : 1.0f);
        return d * cap_slope(p, x[k]);
    });
    if (owner && in_range) ((T *)p.dlogits + r * p.dlogits_stride)[y] = from_f32<T>(f.own);
}

template <bool OPTIONS> struct slot_of { using type = softmax_state; };
template <> struct slot_of<true> { using type = summary; };

template <typename T, bool OPTIONS>
__global__ void __launch_bounds__(OPTIONS ? OPTIONS_THREADS : PLAIN_THREADS, 1) resident_kernel(const problem p) {
    using slot = typename slot_of<OPTIONS>::type;
    extern __shared__ uint4 shared[];
    const int rank = cluster_rank(), clusters = cluster_size(), warps = (int)blockDim.x / WARP;
    const int vectors = (int)(p.vocab / pack_size<T>), per_block = (vectors + clusters - 1) / clusters;
    const int begin = rank * per_block, end = begin + per_block;
    const place at = {begin + (int)threadIdx.x, end < vectors ? end : vectors, (int)blockDim.x};
    const int step = (int)gridDim.x / clusters, stage_size = VECTORS * (int)blockDim.x;
    slot *slots = (slot *)(shared + STAGES * stage_size);
    uint4 *stages = shared + threadIdx.x;
    __shared__ batch b; /* not in registers: there are none to spare */
    if (threadIdx.x == 0) b = batch_of(p);

    /* Targets are read one row ahead of the logits: an ignored row's logits are not read at all. */
    int64_t i = blockIdx.x / clusters;
    int y[STAGES + 1];
#pragma unroll
    for (int s = 0; s <= STAGES; s++) y[s] = i + s * step < p.rows ? short_target(p, row_at(p, i + s * step)) : TARGET_IGNORED;
#pragma unroll
    for (int s = 0; s < STAGES; s++)
        prefetch<T>(p, at, i + s * step, y[s] != TARGET_IGNORED, stages + s * stage_size);
    cluster_barrier(clusters);

    for (int stage = 0, turn = 0; i < p.rows; i += step, stage = stage + 1 == STAGES ? 0 : stage + 1) {
        const int64_t r = row_at(p, i), later = i + STAGES * step;
        float x[VECTORS * pack_size<T>];
        const int target = y[0];
        copy_wait<STAGES - 1>();
        if (target != TARGET_IGNORED) widen<T>(at, stages + stage * stage_size, x);
        prefetch<T>(p, at, later, y[STAGES] != TARGET_IGNORED, stages + stage * stage_size);
#pragma unroll
        for (int s = 0; s < STAGES; s++) y[s] = y[s + 1];
        y[STAGES] = later + step < p.rows ? short_target(p, row_at(p, later + step)) : TARGET_IGNORED;
        if (target == TARGET_IGNORED) {
            if (rank == 0 && threadIdx.x == 0) ignore_row(p, r);
            if (p.dlogits) write_row<T>(p, at, r, [](int, int) { return 0.0f; });
            continue;
        }
        slot *turn_slots = slots + turn * clusters * warps;
        if constexpr (OPTIONS) optioned_row<T>(p, b, at, r, target, x, turn_slots, rank, clusters);
        else plain_row<T>(p, b, at, r, target, x, turn_slots, rank, clusters);
        turn ^= 1;
    }
    cluster_barrier(clusters);
}

} // namespace cross_entropy

#endif
