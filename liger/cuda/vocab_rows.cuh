/* vocab_rows.cuh - kernels over rows as long as a vocabulary: a row is summed up, then perhaps written from what the sums
 * say. Memory-bound: a row should be read once. Three kernels, each with an operator's formula F as its argument:
 *
 *   resident  (vocab_rows_resident.cuh)  rows that fit into the shared memory of a block or a cluster: one read, one write
 *   streamed  (vocab_rows_streamed.cuh)  every other row, of any width and alignment: read twice, the second time from L2
 *   summed    (vocab_rows_summed.cuh)    nothing is written but a few numbers a row
 *
 * What threads find out of their parts of a row is a slot, with empty() and warp_merge(); it is merged in a fixed
 * order, so that the bits never change. Here is what they share: rows, parts of rows in registers, and the exchange. */
#ifndef LIGER_CUDA_VOCAB_ROWS_CUH
#define LIGER_CUDA_VOCAB_ROWS_CUH

#include <type_traits>

#include "liger/cuda/cluster.cuh"
#include "liger/cuda/pack.cuh"
#include "liger/cuda/softmax_state.cuh"

namespace vocab_rows {

/* ---- parts of a row ----------------------------------------------------------------------------------------------- */

/* Where this thread stands in a row: its vectors are first + j·THREADS for j < VECTORS, those below `end`. The distance is
 * known when compiling: addresses are then one register and an immediate. */
template <int THREADS>
struct place {
    static constexpr int step = THREADS;
    int first, end;
    __device__ __forceinline__ bool has(int j) const { return j * THREADS < end - first; } /* one register for all j */
    /* Addresses that follow from it are computed again for every row. Else they are kept over the rows, in registers. */
    __device__ __forceinline__ void forget() { asm volatile("" : "+r"(first), "+r"(end)); }
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

/* What is read behind the end of a row, as often as it fits into 32 bits: -inf, of which a softmax has nothing; what becomes
 * -inf by a factor; or 0. */
template <typename T>
constexpr uint32_t MINUS_INFINITY = sizeof(T) == 4            ? 0xff800000u
                                    : std::is_same_v<T, bf16> ? 0xff80ff80u
                                                              : 0xfc00fc00u;
template <typename T>
__device__ __forceinline__ uint32_t minus_infinity_by(float factor) {
    constexpr uint32_t SIGNS = sizeof(T) == 4 ? 0x80000000u : 0x80008000u;
    return MINUS_INFINITY<T> ^ (factor < 0.0f ? SIGNS : 0u);
}
constexpr uint32_t ZERO = 0;

/* The largest value of a pack. NaN is left to the sum. */
template <typename T, int N>
__device__ __forceinline__ float largest(const pack<T, N> &x) {
    if constexpr (sizeof(T) == 4) {
        float most = x.value[0];
#pragma unroll
        for (int i = 1; i < N; i++) most = fmaxf(most, x.value[i]);
        return most;
    } else {
        using pair = typename pair_of<T>::type;
        const pair *two = (const pair *)x.value;
        pair most = two[0];
#pragma unroll
        for (int i = 1; i < N / 2; i++) most = __hmax2(most, two[i]);
        return fmaxf(to_f32(most.x), to_f32(most.y));
    }
}

/* This thread's vectors of a row. */
template <typename T, int VECTORS>
struct row_part {
    static constexpr int N = pack_size<T>, COUNT = VECTORS * N;
    pack<T, N> vector[VECTORS];

    template <typename P>
    __device__ __forceinline__ void load(const P &at, const uint4 *from, uint32_t beyond) {
#pragma unroll
        for (int j = 0; j < VECTORS; j++)
            *(uint4 *)&vector[j] = at.has(j) ? from[j * at.step] : make_uint4(beyond, beyond, beyond, beyond);
    }
    /* From shared memory, where all of it is, what is beyond the row included. */
    template <typename P>
    __device__ __forceinline__ void load(const P &at, const uint4 *stage) {
#pragma unroll
        for (int j = 0; j < VECTORS; j++) *(uint4 *)&vector[j] = stage[j * at.step];
    }
    __device__ __forceinline__ float value(int k) const { return value_of(vector[k / N], k % N); }
    /* What is made of these values is made again where it is used. Widened values, say, would else be kept over a loop, in
     * registers of their own. */
    __device__ __forceinline__ void forget() {
#pragma unroll
        for (int j = 0; j < VECTORS; j++) {
            uint4 &raw = *(uint4 *)&vector[j];
            asm volatile("" : "+r"(raw.x), "+r"(raw.y), "+r"(raw.z), "+r"(raw.w));
        }
    }
    /* For a target that is no part of the sum: its exponential is added where nothing can cancel. */
    __device__ __forceinline__ void remove(int k) {
#pragma unroll
        for (int i = 0; i < COUNT; i++)
            if (i == k) vector[i / N].value[i % N] = from_f32<T>(-INFINITY);
    }
    /* NaN is no maximum. */
    __device__ __forceinline__ float max() const {
        if constexpr (sizeof(T) == 4) {
            float most[2] = {-FLT_MAX, -FLT_MAX};
#pragma unroll
            for (int k = 0; k < COUNT; k++) most[k % 2] = fmaxf(most[k % 2], value(k));
            return fmaxf(most[0], most[1]);
        } else {
            using pair = typename pair_of<T>::type;
            pair most[2];
#pragma unroll
            for (int k = 0; k < COUNT / 2; k++) {
                const pair next = ((const pair *)&vector[k / (N / 2)])[k % (N / 2)];
                most[k % 2] = k < 2 ? next : __hmax2(most[k % 2], next);
            }
            const pair both = __hmax2(most[0], most[1]);
            return fmaxf(fmaxf(to_f32(both.x), to_f32(both.y)), -FLT_MAX);
        }
    }
    /* Σ of terms relative to a maximum. */
    __device__ __forceinline__ float sum(const softmax_unit &unit) const {
        float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
        for (int k = 0; k < COUNT; k++) sum[k % 4] += softmax_term(value(k), unit);
        return (sum[0] + sum[1]) + (sum[2] + sum[3]);
    }
};

/* Writes this thread's vectors of a row: its k-th value is value(k). */
template <int VECTORS, typename T, typename P, typename F>
__device__ __forceinline__ void write_part(T *row, const P &at, F value) {
    constexpr int N = pack_size<T>;
    row += at.first * (int64_t)N;
#pragma unroll
    for (int j = 0; j < VECTORS; j++) {
        float values[N];
#pragma unroll
        for (int k = 0; k < N; k++) values[k] = value(j * N + k);
        pack<T, N> out;
        repack(values, out);
        if (at.has(j)) store_pack(row + j * at.step * N, out);
    }
}

/* Which of this thread's values is the y-th of the row; -1: none, as for a y below 0. */
template <int N, int VECTORS, typename P>
__device__ __forceinline__ int own_value(const P &at, int y) {
    int own = -1;
#pragma unroll
    for (int j = 0; j < VECTORS; j++) {
        if (at.first + j * at.step == (y >= 0 ? y / N : -1) && at.has(j)) own = j * N + y % N;
    }
    return own;
}

/* ---- the exchange ------------------------------------------------------------------------------------------------- */

/* Exchanges take turns: a warp may send for row n + 1 while another still reads what was sent for row n - 2, and a turn is
 * used again only after everybody has been seen behind it. */
enum { TURNS = 4 };

/* Blocks that share a row, at most. */
enum { MAX_CLUSTER = 8 };

/* The slot of an exchange that is not made. */
struct nothing {};

/* All warps of a block or cluster tell each other what they found; what is sent first is received first. Within a block there
 * is a place for each warp. In a cluster, one warp of each block merges these, another one each time, and passes the result
 * on: 128 warps that all told each other took as long as what they had to tell of a row. TO_FIRST: only the first warp of the
 * first block is told. */
template <typename S, int WARPS, bool CLUSTERED, bool TO_FIRST = false>
struct exchange {
    static_assert(sizeof(S) % 8 == 0 || std::is_same_v<S, nothing>, "sent in words of 8 bytes");
    static_assert(WARPS <= WARP, "a lane for each");
    S *slots;                 /* TURNS · places(clusters) */
    shared_barrier *barriers; /* BARRIERS */
    unsigned sent = 0, passed_on = 0, received = 0;

    static constexpr bool OF_CLUSTER = CLUSTERED; /* what is received is a block's, not a warp's */
    static constexpr int BARRIERS = CLUSTERED ? 2 * TURNS : TURNS;
    static __device__ __forceinline__ int places(int clusters) { return CLUSTERED ? WARPS + clusters : WARPS; }

    /* By one thread, before the barrier that starts the kernel. */
    __device__ __forceinline__ void init() {
        for (int turn = 0; turn < TURNS; turn++) {
            shared_barrier_init(barriers + turn, WARPS);
            if (CLUSTERED) shared_barrier_init(barriers + TURNS + turn, 1);
        }
    }
    __device__ __forceinline__ void send(S mine) {
        const int turn = sent++ % TURNS;
        mine = warp_merge(mine);
        __syncwarp(); /* what this warp has read comes before whatever others write once they have received */
        if (threadIdx.x % WARP != 0) return;
        slots[turn * WARPS + threadIdx.x / WARP] = mine;
        shared_barrier_arrive(barriers + turn);
    }
    /* What was sent last; later than send(), so that the other warps have sent as well. */
    __device__ __forceinline__ void pass_on(S empty) {
        if constexpr (CLUSTERED) {
            if (passed_on == sent) return;
            const unsigned n = passed_on++;
            if (threadIdx.x / WARP != n % WARPS) return;
            const int lane = threadIdx.x % WARP, turn = n % TURNS, clusters = cluster_size(), rank = cluster_rank();
            shared_barrier_wait(barriers + turn, n / TURNS % 2);
            const S of_block = warp_merge(of_lane(slots + turn * WARPS, WARPS, empty));
            shared_barrier *const arrived = barriers + TURNS + turn;
            if (lane == 0 && (!TO_FIRST || rank == 0)) shared_barrier_expect(arrived, clusters * (int)sizeof(S));
            if (lane < (TO_FIRST ? 1 : clusters))
                cluster_send(of_blocks(turn, clusters) + rank, of_block, arrived, lane);
        }
    }
    /* What has come to this lane: the lanes of a warp have received everything, each something else. */
    __device__ __forceinline__ S receive_part(S empty) {
        const int turn = received % TURNS, parity = received / TURNS % 2, clusters = CLUSTERED ? cluster_size() : 1;
        shared_barrier_wait(barriers + (CLUSTERED ? TURNS : 0) + turn, parity);
        received++;
        const S *const here = CLUSTERED ? of_blocks(turn, clusters) : slots + turn * WARPS;
        return of_lane(here, CLUSTERED ? clusters : WARPS, empty);
    }
    __device__ __forceinline__ S receive(S empty) { return warp_merge(receive_part(empty)); }
    __device__ __forceinline__ S all(S mine, S empty) {
        send(mine);
        pass_on(empty);
        return receive(empty);
    }

    /* Not a choice between two addresses, which would put `empty` into memory. */
    static __device__ __forceinline__ S of_lane(const S *here, int count, S one) {
        if ((int)threadIdx.x % WARP < count) one = here[threadIdx.x % WARP];
        return one;
    }
    __device__ __forceinline__ S *of_blocks(int turn, int clusters) { return slots + TURNS * WARPS + turn * clusters; }
};

/* What the warps of a block tell each other, by its barrier: a set of places for every other time, so that nobody writes
 * where another may still read. */
template <typename S>
struct block_exchange {
    static constexpr bool OF_CLUSTER = false;
    S *slots; /* 2 · warps */
    int warps, turn;

    __device__ __forceinline__ S all(S mine, S empty) {
        mine = warp_merge(mine);
        return warps == 1 ? mine : warp_merge(shared_out(mine, empty));
    }
    /* What comes to this lane: of one warp its own, of more what one of them has. */
    __device__ __forceinline__ S part(S mine, S empty) {
        return warps == 1 ? mine : shared_out(warp_merge(mine), empty);
    }
    __device__ __forceinline__ S shared_out(S of_warp, S empty) {
        const int lane = threadIdx.x % WARP;
        S *const here = slots + turn * warps;
        turn ^= 1;
        if (lane == 0) here[threadIdx.x / WARP] = of_warp;
        __syncthreads();
        return lane < warps ? here[lane] : empty;
    }
};

/* ---- formulas ------------------------------------------------------------------------------------------------------- */

/* What a formula inherits that is content with one exchange per row. Another says what further ones carry: its second half
 * gets them as an argument, `again`, and calls again.all(slot, empty) as often as it likes, all threads as often as each
 * other. Of the first exchange it gets what has come to its lane, and merges it itself. */
struct one_exchange {
    using second_slot = nothing;
    using wide_rows = nothing; /* or a formula for rows whose registers it takes whole blocks to hold */
    static constexpr bool WIDE = false;
    static constexpr int TOGETHER = 1;     /* so many vectors of a row are not divided between blocks */
    static constexpr bool CLUSTERS = true; /* a row that is too large for a block is divided between some */
    static constexpr bool BLOCKS = true;   /* a row that a block holds has not been taken by another kernel */
    /* Rows in shared memory: one in its second half, and one on its way or in its first. For a formula whose arithmetic takes
     * as long as memory takes there is a third, on its way all the time; others it made slower. One, where the
     * first half takes the row apart, into registers or KEPT_VECTORS: the next is on its way from there on. */
    static constexpr int RING = 2;
    /* What further exchanges carry is only for finish(p, r, sums), which one thread calls a row later: nobody waits. */
    static constexpr bool LATE = false;
    /* With a RING of 1 and LATE: vectors in which a thread's first half leaves what its second needs, over the next row's first
     * half. The second does not read the row. */
    static constexpr int KEPT_VECTORS = 0;
    static constexpr bool ENDS_TOGETHER = false;
    /* What is read behind the end of a row of the k-th input. */
    template <typename T, typename P>
    static __device__ __forceinline__ uint32_t beyond(const P &, int) {
        return MINUS_INFINITY<T>;
    }
};
template <typename F>
constexpr bool has_wide_rows = !std::is_same_v<typename F::wide_rows, nothing>;
template <typename F>
constexpr bool has_more_exchanges = !std::is_same_v<typename F::second_slot, nothing>;
/* In a further exchange that is not late nobody has anything else to do meanwhile: within a block its barrier is enough. */
template <typename F, bool CLUSTERED>
constexpr bool has_further_barriers = has_more_exchanges<F> && (CLUSTERED || F::LATE);
template <typename F, int WARPS, bool CLUSTERED>
__device__ __forceinline__ auto further_exchange(void *slots, shared_barrier *barriers) {
    using S = typename F::second_slot;
    if constexpr (has_further_barriers<F, CLUSTERED>)
        return exchange<S, WARPS, CLUSTERED, F::LATE>{(S *)slots, barriers};
    else return block_exchange<S>{(S *)slots, WARPS, 0};
}
template <typename F>
constexpr size_t second_size = has_more_exchanges<F> ? sizeof(typename F::second_slot) : 0;

/* A formula for which every row is read, and all that is known of one is in its slot, inherits what it need not say. */
struct every_row : one_exchange {
    struct batch {};
    struct state {
        int key;
    };
    template <typename P>
    static __device__ __forceinline__ batch batch_of(const P &) {
        return {};
    }
    template <typename P>
    static __device__ __forceinline__ int key(const P &, int64_t) {
        return 0;
    }
    template <typename P>
    static __device__ __forceinline__ state state_of(const P &, int, int key) {
        return {key};
    }
    template <typename P, typename S>
    static __device__ __forceinline__ state state_of(const P &, int64_t, int64_t, const S &) {
        return {0};
    }
    template <typename P, typename A>
    static __device__ __forceinline__ void skip(const P &, const A &, int64_t) {}
    template <typename P>
    static __device__ __forceinline__ bool skip(const P &, int64_t, int64_t) {
        return false;
    }
    template <typename P>
    static __device__ __forceinline__ bool writes(const P &) {
        return true;
    }
    template <typename P, typename S, typename F>
    static __device__ __forceinline__ void finish(const P &, const batch &, int64_t, const state &, const S &,
                                                  const F &) {}
};

} // namespace vocab_rows

#endif
