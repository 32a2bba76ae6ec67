/* cross_entropy_resident.cuh - the row kernel for rows that fit into the registers of a block or a cluster.
 *
 * A row is read once, stays in registers as f32, and its gradient is written once: one exponential per element and one
 * barrier per row. Each thread takes the exponentials relative to its own maximum; the states are merged across lanes,
 * warps and the cluster in a fixed order, and the thread's factor corrects the rest.
 * Blocks are persistent: while a row is worked on, the next STAGES rows of the block are on their way to shared memory
 * (cp.async; a second stage brought nothing). A thread copies exactly what it will read itself, so no barrier guards the copies. */
#ifndef LIGER_OPS_CROSS_ENTROPY_RESIDENT_CUH
#define LIGER_OPS_CROSS_ENTROPY_RESIDENT_CUH

#include "liger/ops/cross_entropy/cross_entropy_row.cuh"

namespace cross_entropy {

enum { VECTORS = 4, STAGES = 1, MOST_THREADS = 1024, OPTIONS_THREADS = 512, MAX_CLUSTER = 8 };

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
template <int PENDING>
__device__ __forceinline__ void copy_wait() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
#endif
}

/* Where this thread stands in a row: its vectors are first + j·THREADS for j < VECTORS, those below `end`. The distance is
 * known when compiling: addresses are then one register and an immediate. */
template <int THREADS>
struct place {
    static constexpr int step = THREADS;
    int first, end;
    __device__ __forceinline__ bool has(int j) const { return first + j * THREADS < end; }
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

template <typename T, typename P>
__device__ __forceinline__ void prefetch(const problem &p, const P &at, int64_t i, bool wanted, uint4 *stage) {
    if (wanted) {
        const T *row = (const T *)p.logits + row_at(p, i) * p.logits_stride + at.first * (int64_t)pack_size<T>;
#pragma unroll
        for (int j = 0; j < VECTORS; j++)
            if (at.has(j)) copy_async(stage + j * at.step, row + j * at.step * pack_size<T>);
    }
    copy_commit();
}

template <typename A, typename B>
struct same {
    static constexpr bool value = false;
};
template <typename A>
struct same<A, A> {
    static constexpr bool value = true;
};

/* Two values in one register, for a packed maximum: half the instructions. */
template <typename T>
struct pair_of;
template <>
struct pair_of<f16> {
    using type = __half2;
};
template <>
struct pair_of<bf16> {
    using type = __nv_bfloat162;
};

template <typename T>
struct row_part {
    pack<T, pack_size<T>> vector[VECTORS];

    /* This thread's vectors; -inf where the row has ended. */
    template <typename P>
    __device__ __forceinline__ void load(const P &at, const uint4 *stage) {
        constexpr uint32_t EMPTY = sizeof(T) == 4 ? 0xff800000u : same<T, bf16>::value ? 0xff80ff80u : 0xfc00fc00u;
#pragma unroll
        for (int j = 0; j < VECTORS; j++)
            *(uint4 *)&vector[j] = at.has(j) ? stage[j * at.step] : make_uint4(EMPTY, EMPTY, EMPTY, EMPTY);
    }
    __device__ __forceinline__ float value(int k) const {
        return to_f32(vector[k / pack_size<T>].value[k % pack_size<T>]);
    }
    /* NaN is no maximum. */
    __device__ __forceinline__ float max() const {
        if constexpr (sizeof(T) == 4) {
            float most[2] = {-FLT_MAX, -FLT_MAX};
#pragma unroll
            for (int k = 0; k < VECTORS * pack_size<T>; k++) most[k % 2] = fmaxf(most[k % 2], value(k));
            return fmaxf(most[0], most[1]);
        } else {
            using pair = typename pair_of<T>::type;
            pair most[2];
#pragma unroll
            for (int k = 0; k < VECTORS * pack_size<T> / 2; k++) {
                const pair next = ((const pair *)&vector[k / (pack_size<T> / 2)])[k % (pack_size<T> / 2)];
                most[k % 2] = k < 2 ? next : __hmax2(most[k % 2], next);
            }
            const pair both = __hmax2(most[0], most[1]);
            return fmaxf(fmaxf(to_f32(both.x), to_f32(both.y)), -FLT_MAX);
        }
    }
};

template <typename T, typename P, typename F>
__device__ __forceinline__ void write_row(const problem &p, const P &at, int64_t r, F gradient) {
    constexpr int N = pack_size<T>;
    T *row = (T *)p.dlogits + r * p.dlogits_stride + at.first * (int64_t)N;
#pragma unroll
    for (int j = 0; j < VECTORS; j++) {
        pack<T, N> out;
#pragma unroll
        for (int k = 0; k < N; k++) out.value[k] = from_f32<T>(gradient(j * N + k));
        if (at.has(j)) store_stream(row + j * at.step * N, out);
    }
}

/* The blocks of a cluster tell each other what they found. One place per warp of the cluster, twice: rows take turns, so
 * that one barrier per row is enough. */
template <typename S, int WARPS, bool CLUSTERED>
struct exchange {
    S *slots;               /* 2 · clusters · WARPS */
    byte_barrier *barriers; /* 2 */
    unsigned rounds;

    __device__ __forceinline__ S operator()(S mine, S empty) {
        const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, turn = rounds & 1;
        const int clusters = CLUSTERED ? cluster_size() : 1, count = clusters * WARPS;
        S *const here = slots + turn * count;
        mine = warp_merge(mine);
        if (CLUSTERED) {
            if (threadIdx.x == 0) byte_barrier_expect(barriers + turn, count * (int)sizeof(S));
            if (lane < clusters) cluster_send(here + cluster_rank() * WARPS + warp, mine, barriers + turn, lane);
            byte_barrier_wait(barriers + turn, rounds >> 1 & 1);
        } else {
            if (lane == 0) here[warp] = mine;
            __syncthreads();
        }
        rounds++;
        S all = lane < count ? here[lane] : empty;
#pragma unroll 1
        for (int i = lane + WARP; i < count; i += WARP) all = merge(all, here[i]);
        return warp_merge(all);
    }
};

/* Which of this thread's values is the target; -1: none. */
template <int N, typename P>
__device__ __forceinline__ int own_value(const P &at, int y) {
    int own = -1;
#pragma unroll
    for (int j = 0; j < VECTORS; j++) {
        if (at.first + j * at.step == (y >= 0 ? y / N : -1) && at.has(j)) own = j * N + y % N;
    }
    return own;
}

/* By the thread that has the target; without a target the row's first. The target's gradient is formed in f32 and stored
 * over the vector's element: a thread's stores to one address keep their order. */
template <typename T, typename P>
__device__ __forceinline__ void write_results(const problem &p, const batch &b, const P &at, int64_t r, int y, int own,
                                              const row_sums &sums) {
    if (y < 0 && at.first == 0) spoil_row(p, r, sums.predicted);
    if (own < 0) return;
    /* Taken again: kept over the stores, the factors would be spilled. */
    const factors f = factors_of(p, b, r, y, sums.target, sums.others);
    const float d = finish_row(p, b, r, y, f, sums);
    if (p.dlogits) ((T *)p.dlogits + r * p.dlogits_stride)[y] = from_f32<T>(d);
}

/* The plain row: no label smoothing, no soft cap, nobody asks for the prediction. */
template <typename T, typename P, typename X>
__device__ __forceinline__ void plain_row(const problem &p, const batch &b, const P &at, int64_t r, int y,
                                          const row_part<T> &part, X &exchanged) {
    constexpr int COUNT = VECTORS * pack_size<T>;
    const int own = own_value<pack_size<T>>(at, y);
    const float target = y >= 0 ? to_f32(((const T *)p.logits + r * p.logits_stride)[y]) : 0.0f;
    const float max = softmax_scale(part.max());
    float x[COUNT], sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
    for (int k = 0; k < COUNT; k++) {
        x[k] = softmax_term(part.value(k), max);
        sum[k % 4] += x[k];
    }
    if (own >= 0) { /* once more, without the target */
        sum[0] = sum[1] = sum[2] = sum[3] = 0.0f;
#pragma unroll
        for (int k = 0; k < COUNT; k++) sum[k % 4] += k == own ? 0.0f : x[k];
    }
    const softmax_state mine = {max, (sum[0] + sum[1]) + (sum[2] + sum[3])};
    const softmax_state all = exchanged(mine, softmax_empty());
    if (p.dlogits) {
        const factors f = y >= 0 ? factors_of(p, b, r, y, target, all) : factors{NAN, NAN};
        const float factor = f.probability * exp2_approx(max - all.max);
        write_row<T>(p, at, r, [&](int k) { return x[k] * factor; });
    }
    write_results<T>(p, b, at, r, y, own, {target, all, 0.0f, 0.0f, -1});
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
template <typename T, typename P, typename X>
__device__ __forceinline__ void optioned_row(const problem &p, const batch &b, const P &at, int64_t r, int y,
                                             const row_part<T> &part, X &exchanged) {
    constexpr int N = pack_size<T>, COUNT = VECTORS * N;
    const T *logits = (const T *)p.logits + r * p.logits_stride;
    const bool smooth = p.label_smoothing > 0.0f, cap = p.softcap > 0.0f;
    const int own = own_value<N>(at, y);
    const float target = y >= 0 ? capped(p, to_f32(logits[y])) : 0.0f;
    float x[COUNT], base = smooth ? capped(p, to_f32(logits[0])) : 0.0f;
    if (!isfinite(base)) base = 0.0f;
    summary mine = empty_summary();
#pragma unroll
    for (int k = 0; k < COUNT; k++) x[k] = part.value(k);
    if (cap) {
#pragma unroll
        for (int k = 0; k < COUNT; k++)
            if (at.first + k / N * at.step < at.end) x[k] = capped(p, x[k]);
    }
    int best = -1;
#pragma unroll
    for (int k = 0; k < COUNT; k++)
        if (x[k] > mine.best) mine.best = x[k], best = k;
    if (best >= 0) mine.index = (at.first + best / N * at.step) * N + best % N;
    if (smooth) {
#pragma unroll
        for (int j = 0; j < VECTORS; j++) {
            const int vector = at.first + j * at.step;
            if (vector < at.end) mine.shape += smooth_sum<N>(p, &x[j * N], vector * N, base);
        }
    }
    mine.softmax.max = softmax_scale(fmaxf(mine.best, -FLT_MAX));
#pragma unroll
    for (int k = 0; k < COUNT; k++) {
        const float e = softmax_term(x[k], mine.softmax.max);
        mine.softmax.sum += k == own ? 0.0f : e;
    }
    summary all = exchanged(mine, empty_summary());
    if (all.index == INT64_MAX) all.index = 0; /* nothing above -inf */
    const factors f = y >= 0 ? factors_of(p, b, r, y, target, all.softmax) : factors{NAN, NAN};
#pragma unroll
    for (int k = 0; p.dlogits && k < COUNT; k++) {
        const float slope = cap ? cap_slope(p, x[k]) : 1.0f;
        const int j = (at.first + k / N * at.step) * N + k % N;
        const float uniform = p.weight && smooth && j < p.vocab ? f.uniform * p.weight[j] : f.uniform;
        x[k] = (softmax_term(x[k], all.softmax.max) * f.probability - uniform) * slope;
    }
    if (p.dlogits) write_row<T>(p, at, r, [&](int k) { return x[k]; });
    write_results<T>(p, b, at, r, y, own, {target, all.softmax, all.shape, base, all.index});
}

template <bool OPTIONS>
struct slot_of {
    using type = softmax_state;
};
template <>
struct slot_of<true> {
    using type = summary;
};

template <typename T, bool OPTIONS, int THREADS, bool CLUSTERED>
__global__ void __launch_bounds__(THREADS, OPTIONS ? 1 : MOST_THREADS / THREADS)
    resident_kernel(const __grid_constant__ problem p) {
    using slot = typename slot_of<OPTIONS>::type;
    constexpr int STAGE = VECTORS * THREADS;
    extern __shared__ uint4 shared[];
    __shared__ byte_barrier barriers[2];
    __shared__ batch b; /* not in registers: there are none to spare */
    const int rank = CLUSTERED ? cluster_rank() : 0, clusters = CLUSTERED ? cluster_size() : 1;
    const int vectors = (int)(p.vocab / pack_size<T>), per_block = (vectors + clusters - 1) / clusters;
    const int begin = rank * per_block, end = begin + per_block;
    const place<THREADS> at = {begin + (int)threadIdx.x, end < vectors ? end : vectors};
    const int step = (int)gridDim.x / clusters;
    exchange<slot, THREADS / WARP, CLUSTERED> exchanged = {(slot *)(shared + STAGES * STAGE), barriers, 0};
    uint4 *stages = shared + threadIdx.x;
    if (threadIdx.x == 0) {
        b = batch_of(p);
        byte_barrier_init(barriers);
        byte_barrier_init(barriers + 1);
    }

    /* A warp holds the targets of its next 32 rows, one per lane. They are needed ahead of the logits: an ignored row's
     * logits are not read at all. */
    int64_t i = blockIdx.x / clusters;
    int window = TARGET_IGNORED, next = 0, y[STAGES + 1];
    const auto take_target = [&](int64_t row) {
        if (next == 0) {
            const int64_t mine = row + (int64_t)(threadIdx.x % WARP) * step;
            window = mine < p.rows ? short_target(p, row_at(p, mine)) : TARGET_IGNORED;
        }
        const int target = __shfl_sync(0xffffffffu, window, next);
        next = (next + 1) % WARP;
        return target;
    };
#pragma unroll
    for (int s = 0; s <= STAGES; s++) y[s] = take_target(i + (int64_t)s * step);
#pragma unroll
    for (int s = 0; s < STAGES; s++)
        prefetch<T>(p, at, i + (int64_t)s * step, y[s] != TARGET_IGNORED, stages + s * STAGE);
    if (CLUSTERED) cluster_barrier(clusters);
    else __syncthreads();

    for (int stage = 0; i < p.rows; i += step, stage = (stage + 1) % STAGES) {
        const int64_t r = row_at(p, i), later = i + (int64_t)STAGES * step;
        row_part<T> part;
        const int target = y[0];
        copy_wait<STAGES - 1>();
        if (target != TARGET_IGNORED) part.load(at, stages + stage * STAGE);
        prefetch<T>(p, at, later, y[STAGES] != TARGET_IGNORED, stages + stage * STAGE);
#pragma unroll
        for (int s = 0; s < STAGES; s++) y[s] = y[s + 1];
        y[STAGES] = take_target(later + step);
        if (target == TARGET_IGNORED) {
            if (at.first == 0) ignore_row(p, r);
            if (p.dlogits) write_row<T>(p, at, r, [](int) { return 0.0f; });
            continue;
        }
        if constexpr (OPTIONS) optioned_row<T>(p, b, at, r, target, part, exchanged);
        else plain_row<T>(p, b, at, r, target, part, exchanged);
    }
    if (CLUSTERED) cluster_barrier(cluster_size());
}

} // namespace cross_entropy

#endif
