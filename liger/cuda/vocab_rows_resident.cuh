/* vocab_rows_resident.cuh - the kernel for rows that fit into the shared memory of a block or a cluster, and its launch.
 *
 * A row is read once and what comes of it is written once. Blocks are persistent; rows pass through shared memory
 * (cp.async), and a row is worked on twice: first its sums, relative to each thread's own maximum, are sent to all warps of
 * the block or cluster; then, after the next row's first half, what the others have sent is merged in a fixed order and the
 * result is written. So nobody waits for the exchange. The second half takes the exponentials again, as a rule: there are
 * no registers to keep them in over another row's first half. A thread copies exactly what it will read itself, so no barrier guards the
 * copies.
 *
 * The formula F:
 *   type, problem                                  the type of the rows; `rows` of them
 *   VECTORS, INPUTS                                of 16 bytes: a thread's share of a row, and how many rows are read at once
 *   LEAST_THREADS, MOST_THREADS                    of a block; a multiprocessor holds MOST_THREADS, which share its registers
 *   cols(p), input(p, k, r)                        the k-th input's row r; all rows are aligned to 16 bytes
 *   batch, batch_of(p)                             what is the same for all rows
 *   key(p, r)                                      an int that is known of a row before it is read. A row with the key
 *                                                  SKIPPED is not read
 *   state, state_of(p, i, key)                     what every thread knows of the i-th row, which is row
 *                                                  from_the_end(p.rows, i), or none if the key is SKIPPED; its first
 *                                                  member is `key`
 *   slot, empty(), warp_merge                      what is exchanged: 8·n bytes
 *   second_slot, TOGETHER, CLUSTERS, BLOCKS, RING, LATE, KEPT_VECTORS, beyond   see one_exchange
 *   first_half(p, at, r, stage, state)             a thread's slot. An output may overwrite an input in the second half: a
 *                                                  thread must have received all that it needs of other threads' values
 *                                                  before it sends, so they must enter the slot. With a RING of 1:
 *                                                  (..., loaded), and the second half has nothing but the state.
 *                                                  With that and LATE: (..., stage, kept, state, loaded), and the second half
 *                                                  has `kept` for a stage
 *   second_half(p, b, at, r, stage, state, all, loaded)   writes; loaded(): the stage has been read. With further exchanges:
 *                                                  (..., part, loaded, again); LATE: (..., part, loaded), a thread's second
 *                                                  slot
 *   skip(p, at, r)                                 writes what a skipped row gets
 */
#ifndef LIGER_CUDA_VOCAB_ROWS_RESIDENT_CUH
#define LIGER_CUDA_VOCAB_ROWS_RESIDENT_CUH

#include <utility>

#include "liger/cuda/copy_async.cuh"
#include "liger/cuda/shared_memory.cuh"
#include "liger/cuda/vocab_rows.cuh"

namespace vocab_rows {

/* The key of a row that is not read, and of what is no row. */
enum { SKIPPED = -1 };

enum { MOST_ROWS = 1 << 30 };

enum { LINE = 128 }; /* bytes of shared memory that one access reads */

/* The k-th input's vectors of a stage. */
template <typename F, typename P>
__device__ __forceinline__ const uint4 *input_stage(const P &at, const uint4 *stage, int k) {
    return stage + k * F::VECTORS * at.step;
}

/* A thread's vectors lie as far apart in the row as in a stage. */
template <typename P, int... J>
__device__ __forceinline__ void copy_part(const P &at, uint4 *to, const void *from, std::integer_sequence<int, J...>) {
    ((at.has(J) ? copy_async<J * P::step * PACK_BYTES>(to, from) : void()), ...);
}

template <typename F, typename P>
__device__ __forceinline__ void prefetch(const typename F::problem &p, const P &at, int i, bool wanted, uint4 *stage) {
    using T = typename F::type;
    if (!wanted) return;
#pragma unroll
    for (int k = 0; k < F::INPUTS; k++) {
        const T *const row = F::input(p, k, from_the_end(p.rows, i)) + at.first * (int64_t)pack_size<T>;
        copy_part(at, stage + k * F::VECTORS * at.step, row, std::make_integer_sequence<int, F::VECTORS>{});
    }
}

/* What is beyond the end of a row stands in every stage from the beginning, and nobody copies to it: no reader asks. */
template <typename F, typename P>
__device__ __forceinline__ void fill_beyond(const typename F::problem &p, const P &at, uint4 *stage) {
#pragma unroll
    for (int k = 0; k < F::INPUTS; k++) {
        const uint32_t beyond = F::template beyond<typename F::type>(p, k);
        for (int j = 0; j < F::VECTORS; j++)
            if (!at.has(j)) stage[(k * F::VECTORS + j) * at.step] = make_uint4(beyond, beyond, beyond, beyond);
    }
}

/* A warp holds the keys of its next 32 rows, one per lane. They are needed ahead of the rows: a skipped row is not read. */
template <typename F>
struct key_window {
    int keys, next;

    __device__ __forceinline__ int take(const typename F::problem &p, int row, int step) {
        if (next == 0) {
            const int mine = row + (int)(threadIdx.x % WARP) * step;
            keys = mine < p.rows ? F::key(p, from_the_end(p.rows, mine)) : SKIPPED;
        }
        const int key = __shfl_sync(0xffffffffu, keys, next);
        next = (next + 1) % WARP;
        return key;
    }
};

template <typename F, int THREADS, bool CLUSTERED>
__global__ void __launch_bounds__(THREADS, F::MOST_THREADS / THREADS)
    resident_kernel(const __grid_constant__ typename F::problem p) {
#if __CUDA_ARCH__ < 900
    if (CLUSTERED) { /* there are no clusters, and nobody launches this */
        __trap();
        return;
    }
#endif
    let_next_kernel_start();
    wait_for_previous_kernel();
    using T = typename F::type;
    using slot = typename F::slot;
    using state_type = typename F::state;
    constexpr int STAGE = F::INPUTS * F::VECTORS * THREADS;
    extern __shared__ __align__(LINE) uint4 shared[];
    using first_exchange = exchange<slot, THREADS / WARP, CLUSTERED>;
    /* The rows begin behind it. A warp's vectors that do not begin with a line take five accesses and not four: that was an
     * eighth of the time of a kernel with much arithmetic, too. */
    __shared__ struct alignas(LINE) {
        shared_barrier barriers[(has_further_barriers<F, CLUSTERED> ? 2 : 1) * first_exchange::BARRIERS];
        typename F::batch batch; /* not in registers: there are none to spare */
    } fixed;
    static_assert(sizeof fixed <= STATIC_SHARED, "beside its dynamic shared memory");
    shared_barrier *const barriers = fixed.barriers;
    typename F::batch &b = fixed.batch;
    const int rank = CLUSTERED ? cluster_rank() : 0, clusters = CLUSTERED ? cluster_size() : 1;
    const int vectors = (int)(F::cols(p) / pack_size<T>);
    const int per_block = ((vectors + clusters - 1) / clusters + F::TOGETHER - 1) / F::TOGETHER * F::TOGETHER;
    const int begin = rank * per_block, end = begin + per_block;
    const place<THREADS> at = {begin + (int)threadIdx.x, end < vectors ? end : vectors};
    const int step = (int)gridDim.x / clusters;
    static_assert(F::VECTORS * THREADS % F::TOGETHER == 0, "a block's share of a row");
    constexpr int KEPT = F::KEPT_VECTORS * THREADS;
    slot *const slots = (slot *)(shared + F::RING * STAGE + 2 * KEPT);
    first_exchange exchanged = {slots, barriers};
    auto again = further_exchange<F, THREADS / WARP, CLUSTERED>(slots + TURNS * exchanged.places(clusters),
                                                                barriers + first_exchange::BARRIERS);
    uint4 *const stages = shared + threadIdx.x;
    for (int stage = 0; stage < F::RING; stage++) fill_beyond<F>(p, at, stages + stage * STAGE);
    if (threadIdx.x == 0) {
        b = F::batch_of(p);
        exchanged.init();
        if constexpr (has_further_barriers<F, CLUSTERED>) again.init();
    }

    const auto row_of = [&](int i) { return from_the_end(p.rows, i); };
    int late = -1; /* the row whose second exchange has not been received yet */
    const auto finish_late = [&] {
        if constexpr (F::LATE) {
            if (late < 0 || (CLUSTERED && at.first >= WARP)) return;
            const auto sums = again.receive(F::nothing());
            if (at.first == 0) F::finish(p, row_of(late), sums);
        }
    };
    const auto finish = [&](int i, const uint4 *stage, state_type &row, const auto &fetch) {
        const int64_t r = row_of(i);
        const slot part = exchanged.receive_part(F::empty());
        if constexpr (F::LATE) {
            again.send(F::second_half(p, b, at, r, stage, row, part, fetch));
            finish_late();
            late = i;
        } else if constexpr (has_more_exchanges<F>) {
            F::second_half(p, b, at, r, stage, row, part, fetch, again);
        } else {
            F::second_half(p, b, at, r, stage, row, warp_merge(part), fetch);
        }
    };
    key_window<F> window = {0, 0};
    const int start = blockIdx.x / clusters;
    int i = start; /* the row in its first half */
    state_type before = {SKIPPED}, state = F::state_of(p, i, window.take(p, i, step));
    prefetch<F>(p, at, i, state.key != SKIPPED, stages);
    if (CLUSTERED) cluster_barrier(clusters);
    else __syncthreads();

    if constexpr (F::RING == 1 && F::LATE) {
        uint4 *const kept = shared + STAGE + threadIdx.x;
        /* One row more, between two states that change places, so that none is copied. */
        const auto turn = [&](int odd, state_type &now, state_type &old) {
            const state_type coming = F::state_of(p, i + step, window.take(p, i + step, step));
            const auto fetch_coming = [&] { prefetch<F>(p, at, i + step, coming.key != SKIPPED, stages); };
            if (now.key != SKIPPED) {
                copy_wait();
                exchanged.send(F::first_half(p, at, row_of(i), stages, kept + odd * KEPT, now, fetch_coming));
            } else {
                fetch_coming();
            }
            if constexpr (CLUSTERED) again.pass_on(F::nothing());
            if (i != start && old.key != SKIPPED) finish(i - step, kept + (1 - odd) * KEPT, old, [] {});
            else if (i != start) F::skip(p, at, row_of(i - step));
            exchanged.pass_on(F::empty());
            old = coming;
            i += step;
        };
        while (i < p.rows + step) {
            turn(0, state, before);
            if (i < p.rows + step) turn(1, before, state);
        }
    } else if constexpr (F::RING == 1) {
        for (; i < p.rows; i += step) {
            const state_type coming = F::state_of(p, i + step, window.take(p, i + step, step));
            const auto fetch_coming = [&] { prefetch<F>(p, at, i + step, coming.key != SKIPPED, stages); };
            if (state.key != SKIPPED) {
                copy_wait();
                exchanged.send(F::first_half(p, at, row_of(i), stages, state, fetch_coming));
                exchanged.pass_on(F::empty());
                finish(i, stages, state, [] {});
            } else {
                fetch_coming();
                F::skip(p, at, row_of(i));
            }
            state = coming;
        }
    } else {
        static_assert(F::RING == 2 || F::RING == 3, "a row more may be on its way");
        const auto behind = [](int stage) { return stage + 1 < F::RING ? stage + 1 : 0; };
        for (int stage = 0; i < p.rows + step; i += step, stage = behind(stage)) { /* of the row in its first half */
            const state_type coming = F::state_of(p, i + step, window.take(p, i + step, step));
            const auto fetch_coming = [&] {
                prefetch<F>(p, at, i + step, coming.key != SKIPPED, stages + behind(stage) * STAGE);
            };
            const bool is_read = state.key != SKIPPED;
            if (is_read) copy_wait();
            if constexpr (F::RING == 3) fetch_coming();
            if (is_read) exchanged.send(F::first_half(p, at, row_of(i), stages + stage * STAGE, state));
            if constexpr (F::LATE && CLUSTERED) again.pass_on(F::nothing());
            const auto loaded = [&] {
                if constexpr (F::RING == 2) fetch_coming();
            };
            if (i != start && before.key != SKIPPED) {
                const int other = F::RING == 2 ? behind(stage) : behind(behind(stage));
                finish(i - step, stages + other * STAGE, before, loaded);
            } else {
                loaded();
                if (i != start) F::skip(p, at, row_of(i - step));
            }
            exchanged.pass_on(F::empty());
            before = state;
            state = coming;
        }
    }
    if constexpr (F::LATE && CLUSTERED) again.pass_on(F::nothing());
    finish_late();
    if (CLUSTERED) cluster_barrier(cluster_size());
}

/* ---- the launch ----------------------------------------------------------------------------------------------------- */

struct shape {
    int clusters, threads; /* blocks per row and threads per block; 0 = this row does not fit */
    size_t shared;
};

/* The smallest block that holds the row, of the sizes that there are kernels for; else the smallest cluster of the largest
 * blocks: the fewer blocks share a row, the less each row costs besides its bytes. */
template <typename F>
constexpr shape choose_shape(size_t available, bool clusters, int64_t vectors) {
    const int64_t threads = (vectors + F::VECTORS - 1) / F::VECTORS;
    int block = F::LEAST_THREADS;
    while (block < F::MOST_THREADS && block < threads) block = block < 512 ? 512 : 1024;
    shape s = {1, block, 0};
    while (s.clusters < (clusters ? MAX_CLUSTER : 1) && threads > (int64_t)s.clusters * block) s.clusters++;
    s.shared = (size_t)(F::RING * F::INPUTS * F::VECTORS + 2 * F::KEPT_VECTORS) * block * PACK_BYTES +
               TURNS * (sizeof(typename F::slot) + second_size<F>)*(block / WARP + (s.clusters > 1 ? s.clusters : 0));
    if (threads > (int64_t)s.clusters * block || s.shared > available) return {0, 0, 0};
    return s;
}

/* On every architecture, for rows around every size at which the choice may change. */
template <typename F>
constexpr bool shapes_fit() {
    for (const architecture &a : ARCHITECTURES)
        for (int64_t threads = 128; threads <= MAX_CLUSTER * F::MOST_THREADS; threads += 128)
            for (int64_t vectors = threads * F::VECTORS; vectors <= threads * F::VECTORS + 1; vectors++) {
                const shape s = choose_shape<F>(dynamic_shared(a.shared), F::CLUSTERS && a.number >= 90, vectors);
                if (s.clusters && STATIC_SHARED + s.shared > a.shared) return false;
                if (s.clusters && (int64_t)s.clusters * s.threads * F::VECTORS < vectors) return false;
            }
    return true;
}

/* How many clusters (or single blocks) of a kernel run at once on the whole device; 0: it has no room for one. Asking costs
 * more host time than the launch, so that the answer is kept. A kernel's shared memory depends on its clusters alone. */
template <auto kernel>
cudaError_t find_at_once(const liger_context *context, const cudaLaunchConfig_t &config, int clusters, int *at_once) {
    enum { DEVICES = 64 };                      /* those beyond are asked each time */
    static int known[DEVICES][MAX_CLUSTER + 1]; /* one more than the answer; 0: not asked yet */
    int *const place = context->device < DEVICES ? &known[context->device][clusters] : nullptr;
    *at_once = place ? __atomic_load_n(place, __ATOMIC_RELAXED) - 1 : -1;
    if (*at_once >= 0) return cudaSuccess;
    cudaError_t error = allow_shared_memory<kernel>(context, config.dynamicSmemBytes);
    if (error != cudaSuccess) return error;
    if (clusters > 1) {
        error = cudaOccupancyMaxActiveClusters(at_once, kernel, &config);
    } else {
        error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(at_once, kernel, (int)config.blockDim.x,
                                                              config.dynamicSmemBytes);
        *at_once *= context->cuda->multiprocessors;
    }
    if (error == cudaSuccess && place) __atomic_store_n(place, *at_once + 1, __ATOMIC_RELAXED);
    return error;
}

template <typename F, int THREADS, bool CLUSTERED>
cudaError_t launch_shape(const liger_context *context, const typename F::problem &p, const shape &s,
                         cudaStream_t stream, bool *done) {
    cudaLaunchAttribute attributes[2] = {early_start()};
    attributes[1].id = cudaLaunchAttributeClusterDimension;
    attributes[1].val.clusterDim.x = s.clusters;
    attributes[1].val.clusterDim.y = attributes[1].val.clusterDim.z = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(s.clusters);
    config.blockDim = dim3(s.threads);
    config.dynamicSmemBytes = s.shared;
    config.stream = stream;
    config.attrs = attributes;
    config.numAttrs = s.clusters > 1 ? 2 : is_compiled_for(context, 90);
    /* As many clusters as run at once: each takes its share of the rows and prefetches through it. */
    int at_once = 0;
    const cudaError_t error =
        find_at_once<resident_kernel<F, THREADS, CLUSTERED>>(context, config, s.clusters, &at_once);
    *done = at_once >= 1;
    if (error != cudaSuccess || !*done) return error;
    config.gridDim = dim3(s.clusters * (unsigned)(p.rows < at_once ? p.rows : at_once));
    return cudaLaunchKernelEx(&config, resident_kernel<F, THREADS, CLUSTERED>, p);
}

/* *done: false if these rows are not for this kernel, or the device has no room for such a cluster; nothing was launched
 * then. `packable`: all rows are aligned to 16 bytes. */
template <typename F>
cudaError_t launch_resident(const liger_context *context, const typename F::problem &p, bool packable,
                            cudaStream_t stream, bool *done) {
    static_assert(shapes_fit<F>(), "a row kernel asks for more shared memory than there is");
    *done = false;
    if (!packable || p.rows > MOST_ROWS) return cudaSuccess;
    const shape s = choose_shape<F>(dynamic_shared_of(context), F::CLUSTERS && context->cuda->clusters,
                                    F::cols(p) / pack_size<typename F::type>);
    if (s.clusters == 0) return cudaSuccess;
    if constexpr (F::CLUSTERS)
        if (s.clusters > 1) return launch_shape<F, F::MOST_THREADS, true>(context, p, s, stream, done);
    if constexpr (F::BLOCKS) {
        if constexpr (F::LEAST_THREADS < 512)
            if (s.threads == F::LEAST_THREADS)
                return launch_shape<F, F::LEAST_THREADS, false>(context, p, s, stream, done);
        if constexpr (F::LEAST_THREADS <= 512 && F::MOST_THREADS > 512)
            if (s.threads == 512) return launch_shape<F, 512, false>(context, p, s, stream, done);
        return launch_shape<F, F::MOST_THREADS, false>(context, p, s, stream, done);
    }
    return cudaSuccess;
}

} // namespace vocab_rows

#endif
