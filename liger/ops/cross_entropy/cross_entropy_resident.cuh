/* cross_entropy_resident.cuh - the row kernel for rows that fit into the shared memory of a block or a cluster.
 *
 * A row is read once and its gradient is written once. Blocks are persistent; rows pass through shared memory (cp.async),
 * and a row is worked on twice: first its softmax, relative to each thread's own maximum, is sent to all warps of the block
 * or cluster; then, after the next row's first half, what the others have sent is merged in a fixed order and the gradient
 * is written. So nobody waits for the exchange. The second half takes the exponentials again: there are no registers to
 * keep them in over another row's first half. A thread copies exactly what it will read itself, so no barrier guards the
 * copies. */
#ifndef LIGER_OPS_CROSS_ENTROPY_RESIDENT_CUH
#define LIGER_OPS_CROSS_ENTROPY_RESIDENT_CUH

#include "liger/cuda/shared_memory.cuh"
#include "liger/ops/cross_entropy/cross_entropy_row.cuh"

namespace cross_entropy {

enum { VECTORS = 4, MOST_THREADS = 1024, OPTIONS_THREADS = 512, MAX_CLUSTER = 8, MOST_ROWS = 1 << 30 };

/* Rows in shared memory: one in its second half, and one on its way or in its first. A third on its way made it slower. */
enum { RING = 2 };
/* Exchanges take turns: a warp may send for row n + 1 while another still reads what was sent for row n - 2, and a turn is
 * used again only after everybody has been seen behind it. */
enum { TURNS = 4 };

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
__device__ __forceinline__ void copy_wait() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_all;" ::: "memory");
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

/* A row number, below MOST_ROWS, counted from the end: the tail of the logits was written last and may still be in L2. */
__device__ __forceinline__ int row_at(const problem &p, int i) { return (int)p.rows - 1 - i; }

template <typename T, typename P>
__device__ __forceinline__ void prefetch(const problem &p, const P &at, int i, bool wanted, uint4 *stage) {
    if (!wanted) return;
    const T *row = (const T *)p.logits + row_at(p, i) * p.logits_stride + at.first * (int64_t)pack_size<T>;
#pragma unroll
    for (int j = 0; j < VECTORS; j++)
        if (at.has(j)) copy_async(stage + j * at.step, row + j * at.step * pack_size<T>);
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

/* -inf, as often as it fits. */
template <typename T>
constexpr uint32_t EMPTY = sizeof(T) == 4         ? 0xff800000u
                           : same<T, bf16>::value ? 0xff80ff80u
                                                  : 0xfc00fc00u;

/* This thread's vectors of a row; -inf where the row has ended. */
template <typename T>
struct row_part {
    pack<T, pack_size<T>> vector[VECTORS];

    template <typename P>
    __device__ __forceinline__ void load(const P &at, const uint4 *stage) {
#pragma unroll
        for (int j = 0; j < VECTORS; j++)
            *(uint4 *)&vector[j] = at.has(j) ? stage[j * at.step] : make_uint4(EMPTY<T>, EMPTY<T>, EMPTY<T>, EMPTY<T>);
    }
    __device__ __forceinline__ float value(int k) const {
        return to_f32(vector[k / pack_size<T>].value[k % pack_size<T>]);
    }
    /* The target is no part of the sum: its exponential is added where nothing can cancel. */
    __device__ __forceinline__ void remove(int k) {
#pragma unroll
        for (int i = 0; i < VECTORS * pack_size<T>; i++)
            if (i == k) vector[i / pack_size<T>].value[i % pack_size<T>] = from_f32<T>(-INFINITY);
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
        if (at.has(j)) store_pack(row + j * at.step * N, out);
    }
}

template <typename T, typename P>
__device__ __forceinline__ void ignore(const problem &p, const P &at, int64_t r) {
    if (at.first == 0) ignore_row(p, r);
    if (p.dlogits) write_row<T>(p, at, r, [](int) { return 0.0f; });
}

/* What every thread knows of a row. In the second half dlogits may overwrite the logits: a thread must have received all
 * that it needs of them before it sends. So target and base enter the maximum that is sent. */
struct row_state {
    int y;        /* the target, or what is wrong with it */
    float target; /* its logit; soft-capped in the first half */
    float base;   /* for label smoothing */
};

template <typename T>
__device__ __forceinline__ row_state state_of(const problem &p, int i, int y) {
    return {y, y >= 0 ? to_f32(((const T *)p.logits + row_at(p, i) * p.logits_stride)[y]) : -FLT_MAX, -FLT_MAX};
}

/* All warps of a block or cluster tell each other what they found: one place per warp and turn. */
template <typename S, int WARPS, bool CLUSTERED>
struct exchange {
    S *slots;                 /* TURNS · clusters · WARPS */
    shared_barrier *barriers; /* TURNS */
    unsigned sent, received;

    /* By one thread, before the barrier that starts the kernel. */
    __device__ __forceinline__ void init() {
        for (int turn = 0; turn < TURNS; turn++) shared_barrier_init(barriers + turn, CLUSTERED ? 1 : WARPS);
    }
    __device__ __forceinline__ void send(S mine) {
        const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, turn = sent++ % TURNS;
        const int clusters = CLUSTERED ? cluster_size() : 1, count = clusters * WARPS;
        S *const here = slots + turn * count;
        mine = warp_merge(mine);
        if (CLUSTERED) {
            if (threadIdx.x == 0) shared_barrier_expect(barriers + turn, count * (int)sizeof(S));
            if (lane < clusters) cluster_send(here + cluster_rank() * WARPS + warp, mine, barriers + turn, lane);
            return;
        }
        __syncwarp(); /* what this warp has read comes before whatever others write once they have received */
        if (lane == 0) {
            here[warp] = mine;
            shared_barrier_arrive(barriers + turn);
        }
    }
    __device__ __forceinline__ S receive(S empty) {
        const int lane = threadIdx.x % WARP, turn = received % TURNS, parity = received / TURNS % 2;
        const int count = (CLUSTERED ? cluster_size() : 1) * WARPS;
        const S *const here = slots + turn * count;
        shared_barrier_wait(barriers + turn, parity);
        received++;
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
                                              const factors &f, const row_sums &sums) {
    if (y < 0 && at.first == 0) spoil_row(p, r, sums.predicted);
    if (own < 0) return;
    const float d = finish_row(p, b, r, y, f, sums);
    if (p.dlogits) ((T *)p.dlogits + r * p.dlogits_stride)[y] = from_f32<T>(d);
}

/* The plain row: no label smoothing, no soft cap, nobody asks for the prediction. */
template <typename T>
struct plain_row {
    using slot = softmax_state;
    static __device__ __forceinline__ slot empty() { return softmax_empty(); }
    static constexpr int N = pack_size<T>, COUNT = VECTORS * N;

    template <typename P>
    static __device__ __forceinline__ slot first_half(const problem &p, const P &at, int64_t r, const uint4 *stage,
                                                      row_state &state) {
        const int own = own_value<N>(at, state.y);
        row_part<T> part;
        part.load(at, stage);
        const float max = softmax_max(fmaxf(part.max(), state.target));
        const softmax_unit unit = softmax_unit_of(max);
        if (own >= 0) part.remove(own);
        float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
        for (int k = 0; k < COUNT; k++) sum[k % 4] += softmax_term(part.value(k), unit);
        return {max, (sum[0] + sum[1]) + (sum[2] + sum[3])};
    }

    /* loaded(): the stage is free. */
    template <typename P, typename F>
    static __device__ __forceinline__ void second_half(const problem &p, const batch &b, const P &at, int64_t r,
                                                       const uint4 *stage, const row_state &state, const slot &all,
                                                       F loaded) {
        const factors f = state.y >= 0 ? factors_of(p, b, r, state.y, state.target, all) : factors{NAN, NAN};
        row_part<T> part;
        part.load(at, stage);
        loaded();
        const softmax_unit unit = softmax_unit_of(all.max);
        if (p.dlogits) write_row<T>(p, at, r, [&](int k) { return softmax_term(part.value(k), unit) * f.probability; });
        write_results<T>(p, b, at, r, state.y, own_value<N>(at, state.y), f, {state.target, all, 0.0f, 0.0f, -1});
    }
};

/* Σ w (x - base) of one vector. */
template <int N>
__device__ __forceinline__ float smooth_sum(const problem &p, const float *x, int first, float base) {
    float sum = 0.0f;
#pragma unroll
    for (int k = 0; k < N; k++) sum += (p.weight ? p.weight[first + k] : 1.0f) * (x[k] - base);
    return sum;
}

/* Every option. */
template <typename T>
struct optioned_row {
    using slot = summary;
    static __device__ __forceinline__ slot empty() { return empty_summary(); }
    static constexpr int N = pack_size<T>, COUNT = VECTORS * N;

    /* Soft-capped logits; -inf where the row has ended. */
    template <typename P>
    static __device__ __forceinline__ void load(const problem &p, const P &at, const uint4 *stage, float (&x)[COUNT]) {
        row_part<T> part;
        part.load(at, stage);
#pragma unroll
        for (int k = 0; k < COUNT; k++) x[k] = part.value(k);
        if (p.softcap == 0.0f) return;
#pragma unroll
        for (int k = 0; k < COUNT; k++)
            if (at.has(k / N)) x[k] = capped(p, x[k]);
    }

    template <typename P>
    static __device__ __forceinline__ slot first_half(const problem &p, const P &at, int64_t r, const uint4 *stage,
                                                      row_state &state) {
        const T *logits = (const T *)p.logits + r * p.logits_stride;
        const bool smooth = p.label_smoothing > 0.0f;
        const int own = own_value<N>(at, state.y);
        if (state.y >= 0) state.target = capped(p, state.target);
        if (smooth) state.base = capped(p, to_f32(logits[0]));
        const float most = fmaxf(state.target, state.base);
        if (!isfinite(state.base)) state.base = 0.0f;
        summary mine = empty_summary();
        float x[COUNT];
        load(p, at, stage, x);
        int best = -1;
#pragma unroll
        for (int k = 0; k < COUNT; k++)
            if (x[k] > mine.best) mine.best = x[k], best = k;
        if (best >= 0) mine.index = (at.first + best / N * at.step) * N + best % N;
        if (smooth) {
#pragma unroll
            for (int j = 0; j < VECTORS; j++)
                if (at.has(j)) mine.shape += smooth_sum<N>(p, &x[j * N], (at.first + j * at.step) * N, state.base);
        }
        mine.softmax.max = softmax_max(fmaxf(mine.best, most));
        const softmax_unit unit = softmax_unit_of(mine.softmax.max);
#pragma unroll
        for (int k = 0; k < COUNT; k++) {
            const float e = softmax_term(x[k], unit);
            mine.softmax.sum += k == own ? 0.0f : e;
        }
        return mine;
    }

    template <typename P, typename F>
    static __device__ __forceinline__ void second_half(const problem &p, const batch &b, const P &at, int64_t r,
                                                       const uint4 *stage, const row_state &state, slot all, F loaded) {
        if (all.index == INT64_MAX) all.index = 0; /* nothing above -inf */
        const factors f = state.y >= 0 ? factors_of(p, b, r, state.y, state.target, all.softmax) : factors{NAN, NAN};
        float x[COUNT];
        load(p, at, stage, x);
        loaded();
        if (p.dlogits) {
            const softmax_unit unit = softmax_unit_of(all.softmax.max);
#pragma unroll
            for (int k = 0; k < COUNT; k++) {
                const float slope = p.softcap > 0.0f ? cap_slope(p, x[k]) : 1.0f;
                const int j = (at.first + k / N * at.step) * N + k % N;
                const bool weighted = p.weight && p.label_smoothing > 0.0f && j < p.vocab;
                const float uniform = weighted ? f.uniform * p.weight[j] : f.uniform;
                x[k] = (softmax_term(x[k], unit) * f.probability - uniform) * slope;
            }
            write_row<T>(p, at, r, [&](int k) { return x[k]; });
        }
        write_results<T>(p, b, at, r, state.y, own_value<N>(at, state.y), f,
                         {state.target, all.softmax, all.shape, state.base, all.index});
    }
};

/* A warp holds the targets of its next 32 rows, one per lane. They are needed ahead of the logits: an ignored row's logits
 * are not read at all. */
struct target_window {
    int targets, next;

    __device__ __forceinline__ int take(const problem &p, int row, int step) {
        if (next == 0) {
            const int mine = row + (int)(threadIdx.x % WARP) * step;
            targets = mine < p.rows ? short_target(p, row_at(p, mine)) : TARGET_IGNORED;
        }
        const int target = __shfl_sync(0xffffffffu, targets, next);
        next = (next + 1) % WARP;
        return target;
    }
};

template <bool OPTIONS, typename T>
struct kind_of_row {
    using type = plain_row<T>;
};
template <typename T>
struct kind_of_row<true, T> {
    using type = optioned_row<T>;
};

template <typename T, bool OPTIONS, int THREADS, bool CLUSTERED>
__global__ void __launch_bounds__(THREADS, OPTIONS ? 1 : MOST_THREADS / THREADS)
    resident_kernel(const __grid_constant__ problem p) {
    using kind = typename kind_of_row<OPTIONS, T>::type;
    using slot = typename kind::slot;
    constexpr int STAGE = VECTORS * THREADS;
    extern __shared__ uint4 shared[];
    __shared__ shared_barrier barriers[TURNS];
    __shared__ batch b; /* not in registers: there are none to spare */
    static_assert(sizeof barriers + sizeof b <= STATIC_SHARED, "beside its dynamic shared memory");
    const int rank = CLUSTERED ? cluster_rank() : 0, clusters = CLUSTERED ? cluster_size() : 1;
    const int vectors = (int)(p.vocab / pack_size<T>), per_block = (vectors + clusters - 1) / clusters;
    const int begin = rank * per_block, end = begin + per_block;
    const place<THREADS> at = {begin + (int)threadIdx.x, end < vectors ? end : vectors};
    const int step = (int)gridDim.x / clusters;
    exchange<slot, THREADS / WARP, CLUSTERED> exchanged = {(slot *)(shared + RING * STAGE), barriers, 0, 0};
    uint4 *const stages = shared + threadIdx.x;
    if (threadIdx.x == 0) {
        b = batch_of(p);
        exchanged.init();
    }

    target_window window = {0, 0};
    const int start = blockIdx.x / clusters;
    int i = start; /* the row in its first half */
    row_state before = {TARGET_IGNORED}, state = state_of<T>(p, i, window.take(p, i, step));
    prefetch<T>(p, at, i, state.y != TARGET_IGNORED, stages);
    if (CLUSTERED) cluster_barrier(clusters);
    else __syncthreads();

    for (int stage = 0; i < p.rows + step; i += step, stage ^= 1) { /* where the row in its first half is */
        const row_state coming = state_of<T>(p, i + step, window.take(p, i + step, step));
        if (state.y != TARGET_IGNORED) {
            copy_wait();
            exchanged.send(kind::first_half(p, at, row_at(p, i), stages + stage * STAGE, state));
        }
        uint4 *const other = stages + (stage ^ 1) * STAGE;
        const auto fetch_coming = [&] { prefetch<T>(p, at, i + step, coming.y != TARGET_IGNORED, other); };
        if (i != start && before.y != TARGET_IGNORED) {
            const slot all = exchanged.receive(kind::empty());
            kind::second_half(p, b, at, row_at(p, i - step), other, before, all, fetch_coming);
        } else {
            fetch_coming();
            if (i != start) ignore<T>(p, at, row_at(p, i - step));
        }
        before = state;
        state = coming;
    }
    if (CLUSTERED) cluster_barrier(cluster_size());
}

} // namespace cross_entropy

#endif
