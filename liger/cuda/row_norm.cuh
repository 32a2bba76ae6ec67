/* row_norm.cuh - the kernels of norms over rows: RMSNorm, LayerNorm and their like. Memory-bound: what counts is bytes in
 * flight.
 *
 * forward    a group of threads holds a whole row in registers: one read, one write. Rows too wide for that, or not
 *            aligned to 16 bytes, take the loop kernels, which read the row again from L1 or L2.
 * backward   a persistent grid: a block walks rows, the next ones on their way to shared memory while the current one is
 *            reduced, and keeps its columns of the parameters' gradients in f32 registers. Each block writes one partial
 *            row of each; a second kernel adds the partials in order, so that there are no atomics and the bits never
 *            change.
 *
 * A norm brings a formula for each direction; T is the type of its rows, N the values of a pack.
 *
 *   Forward F: type, problem (rows, cols, x, y)
 *     ADDS                     p.residual is added on the way in, the sum goes to p.sum; loop kernels look whether it is there
 *     SUMS, measure(p, r, sum) the statistics of row r from sums over it, one after the other: sum(i, f) is Σ by s = f(s, x)
 *     keep(p, r, statistics)
 *     has_parameters(p), parameters<N>: load(p, c)
 *     apply(p, statistics, parameters, x)                    x becomes y
 *
 *   Backward B: type, problem (rows, cols, dy, x, dx, partials, workspace)
 *     ADDS                     p.dsum is added to dx; as above
 *     facts, facts_of(p, r)    what forward has kept of a row
 *     scale(p, c, w)           the weights of a pack
 *     SUMS, PARTIALS, gather(p, facts, dy, x, w, sums, partial)   adds to sums over the row and over rows; x may change
 *     pull_of(facts, means), dx_of(facts, pull, dy, x, w)    from the sums, divided by cols
 *     gathers(p, i)            is the i-th partial row asked for?
 */
#ifndef LIGER_CUDA_ROW_NORM_CUH
#define LIGER_CUDA_ROW_NORM_CUH

#include <cuda_pipeline_primitives.h>

#include "liger/core/norm_partials.h"
#include "liger/cuda/pack.cuh"
#include "liger/cuda/reduce.cuh"
#include "liger/cuda/shared_memory.cuh"

namespace row_norm {

/* What the kernels are cut for. */
enum {
    RESIDENT = NORM_MULTIPROCESSOR_THREADS, /* threads of a multiprocessor: 64 registers each */
    BLOCK = 512, /* threads of a block, at most, but for one rung of the ladder below; of the loop kernels */
    FORWARD_PACKS = 4 * BLOCK,
    LOOP_BLOCKS = 4, /* of a multiprocessor, in the loop kernels: 32 registers a thread */
    COLUMN_BLOCK = 256,
    COUNTABLE_ROWS = 1 << 30 /* rows and a few steps more are an int */
};

/* N parameters of type T or f32 as floats. */
template <typename T, int N>
__device__ __forceinline__ void load_parameters(const void *parameters, liger_dtype dtype, int64_t c, float (&out)[N]) {
    if (sizeof(T) < sizeof(float) && dtype != LIGER_F32) unpack(load_shared<T, N>((const T *)parameters + c), out);
    else unpack(load_shared<float, N>((const float *)parameters + c), out);
}

/* ---- forward: the row in registers ------------------------------------------------------------------------------ */

/* sum = x + residual, rounded to T, in place of x. */
template <typename T, int N>
__device__ __forceinline__ void add(pack<T, N> &x, const pack<T, N> &residual) {
    float a[N], b[N];
    unpack(x, a);
    unpack(residual, b);
#pragma unroll
    for (int i = 0; i < N; i++) a[i] += b[i];
    repack(a, x);
}

/* Block (threads of a group, groups); NV packs per thread. Two blocks of 512 threads per multiprocessor keep enough
 * loads in flight: that is what the register bound is for. */
template <typename F, int NV>
__global__ void __launch_bounds__(BLOCK, RESIDENT / BLOCK)
    forward_registers(const __grid_constant__ typename F::problem p) {
    using T = typename F::type;
    constexpr int N = pack_size<T>;
    __shared__ float slots[F::SUMS][MAX_WARPS];
    /* One warp's groups share a block, and meet no barrier. Otherwise the row is the block's, and known to be: its addresses
     * are then computed once per warp. */
    const int64_t r = NV == 1 ? (int64_t)blockIdx.x * blockDim.y + threadIdx.y : blockIdx.x;
    if (r >= p.rows) return;
    const int cols = (int)p.cols, first = threadIdx.x * N, step = blockDim.x * N;
    const T *x = row_at<T>(p.x, r);
    pack<T, N> row[NV];
#pragma unroll
    for (int k = 0; k < NV; k++)
        if (first + k * step < cols) row[k] = load_pack<T, N>(x + first + k * step);
    if constexpr (F::ADDS) {
        const T *residual = row_at<T>(p.residual, r);
        T *sum = row_at<T>(p.sum, r);
        pack<T, N> other[NV];
#pragma unroll
        for (int k = 0; k < NV; k++)
            if (first + k * step < cols) other[k] = load_pack<T, N>(residual + first + k * step);
#pragma unroll
        for (int k = 0; k < NV; k++) {
            if (first + k * step >= cols) continue;
            add(row[k], other[k]);
            store_pack<T, N>(sum + first + k * step, row[k]);
        }
    }
    /* The parameters are on their way while the row is reduced, or before the first is used, or each when it is used: as
     * there are registers for them. */
    using parameters = typename F::template parameters<N>;
    constexpr int BYTES = NV * (int)sizeof(parameters);
    constexpr bool EARLY = BYTES <= 64, LATE = !EARLY && BYTES <= 128 && F::SUMS == 1;
    parameters columns[NV];
    const auto load_columns = [&] {
#pragma unroll
        for (int k = 0; k < NV; k++)
            if (first + k * step < cols) columns[k].load(p, first + k * step);
    };
    if (EARLY && F::has_parameters(p)) load_columns();
    const auto statistics = F::measure(p, r, [&](int which, auto term) {
        float sum = 0;
#pragma unroll
        for (int k = 0; k < NV; k++) {
            if (first + k * step >= cols) continue;
            float values[N];
            unpack(row[k], values);
#pragma unroll
            for (int i = 0; i < N; i++) sum = term(sum, values[i]);
        }
        float total[1] = {sum};
        group_sums(total, &slots[which], 0, blockDim.x / WARP);
        return total[0];
    });
    if (threadIdx.x == 0) F::keep(p, r, statistics);
    if (LATE && F::has_parameters(p)) load_columns();
    T *y = row_at<T>(p.y, r);
#pragma unroll
    for (int k = 0; k < NV; k++) {
        if (first + k * step >= cols) continue;
        if (!EARLY && !LATE && F::has_parameters(p)) columns[k].load(p, first + k * step);
        float values[N];
        unpack(row[k], values);
        F::apply(p, statistics, columns[k], values);
        pack<T, N> out;
        repack(values, out);
        store_pack<T, N>(y + first + k * step, out);
    }
}

/* ---- forward: rows of any width and alignment ------------------------------------------------------------------- */

template <typename F, int N>
__global__ void __launch_bounds__(BLOCK) forward_loop(const __grid_constant__ typename F::problem p) {
    using T = typename F::type;
    __shared__ float slots[2][F::SUMS][MAX_WARPS];
    int phase = 0;
    const int64_t packs = p.cols / N;
    for (int64_t r = blockIdx.x; r < p.rows; r += gridDim.x, phase ^= 1) {
        const T *x = row_at<T>(p.x, r), *row = x;
        bool adds = false;
        if constexpr (F::ADDS) adds = p.residual.data != NULL;
        if constexpr (F::ADDS) row = adds ? row_at<T>(p.sum, r) : x;
        const auto statistics = F::measure(p, r, [&](int which, auto term) {
            float sum = 0;
            for (int64_t c = threadIdx.x; c < packs; c += blockDim.x) {
                pack<T, N> values = which == 0 ? load_shared<T, N>(x + c * N) : *(const pack<T, N> *)(row + c * N);
                if constexpr (F::ADDS)
                    if (which == 0 && adds) {
                        add(values, load_pack<T, N>(row_at<T>(p.residual, r) + c * N));
                        store_pack<T, N>(row_at<T>(p.sum, r) + c * N, values);
                    }
#pragma unroll
                for (int i = 0; i < N; i++) sum = term(sum, to_f32(values.value[i]));
            }
            float total[1] = {sum};
            group_sums(total, &slots[phase][which], 0, blockDim.x / WARP);
            return total[0];
        });
        if (threadIdx.x == 0) F::keep(p, r, statistics);
        T *y = row_at<T>(p.y, r);
        for (int64_t c = threadIdx.x; c < packs; c += blockDim.x) {
            pack<T, N> out = *(const pack<T, N> *)(row + c * N);
            typename F::template parameters<N> columns;
            if (F::has_parameters(p)) columns.load(p, c * N);
            float values[N];
            unpack(out, values);
            F::apply(p, statistics, columns, values);
            repack(values, out);
            store_pack<T, N>(y + c * N, out);
        }
    }
}

/* ---- backward: the parameters' gradients in registers ----------------------------------------------------------- */

/* A block: packs of a row per thread, threads per row, rows at once. */
struct rung {
    int packs, threads, groups;
};
/* A thread for every pack of a row, or four packs a thread. A group of more than one warp has a block for itself: rows then
 * wait for nobody else's barrier. */
constexpr rung LADDER[] = {{1, 32, 16}, {1, 128, 1}, {1, 256, 1}, {1, 512, 1}, {1, 1024, 1}, {4, 512, 1}};

/* As many blocks as a multiprocessor holds with 64 registers a thread; 128 registers for four packs. */
LIGER_HOST_DEVICE constexpr int blocks_of(const rung &r) {
    return r.packs == 4 ? 1 : RESIDENT / (r.threads * r.groups);
}
/* Rows of a group in shared memory. */
LIGER_HOST_DEVICE constexpr int stages_of(const rung &r) { return r.packs == 4 ? 2 : 3; }

/* For rows of two tensors, or of three with dsum. The sums of several groups, of at most 8 columns a pack, fit too. */
constexpr size_t shared_bytes(const rung &r, int tensors) {
    const size_t of_a_thread = (size_t)stages_of(r) * tensors * r.packs * PACK_BYTES;
    const size_t combine = r.groups > 1 ? r.packs * 8 * sizeof(float) : 0;
    return (of_a_thread > combine ? of_a_thread : combine) * r.threads * r.groups;
}

/* The first rung that holds the row and has the memory; -1: none. */
constexpr int choose_rung(size_t available, int64_t packs, int tensors) {
    int i = 0;
    for (const rung &r : LADDER) {
        if (packs <= r.packs * r.threads && shared_bytes(r, tensors) <= available) return i;
        i++;
    }
    return -1;
}

/* On every architecture, for every row that a rung may hold; and rows of 4 KB have one everywhere. */
constexpr bool rungs_fit() {
    for (const architecture &a : ARCHITECTURES)
        for (int tensors = 2; tensors <= 3; tensors++)
            for (int packs = 1; packs <= 2049; packs++) {
                const int chosen = choose_rung(dynamic_shared(a.shared), packs, tensors);
                if (chosen < 0 && packs <= 256) return false;
                if (chosen < 0) continue;
                const rung r = LADDER[chosen];
                if (STATIC_SHARED + shared_bytes(r, tensors) > a.shared || packs > r.packs * r.threads) return false;
            }
    return true;
}
static_assert(LADDER[0].threads * LADDER[0].groups == NORM_SHARED_BLOCK, "as norm_partials() counts");
static_assert(rungs_fit(), "a rung asks for more shared memory than there is");

/* Rows on their way: each thread copies its own packs of dy, x and perhaps dsum to its own slots of shared memory, as many
 * rows deep as the rung has stages, so that no barrier guards them. */
template <typename B, int RUNG>
struct row_pipeline {
    using T = typename B::type;
    static constexpr rung R = LADDER[RUNG];
    static constexpr int N = pack_size<T>, NV = R.packs, STAGES = stages_of(R), COPIES = R.threads * R.groups;
    pack<T, N> *slot; /* this thread's first; its others follow at a distance of one block */

    __device__ row_pipeline(void *memory, int group) : slot((pack<T, N> *)memory + group * R.threads + threadIdx.x) {}
    __device__ __forceinline__ pack<T, N> &dsum(int stage, int k) {
        return slot[(STAGES * 2 * NV + stage * NV + k) * COPIES];
    }
    __device__ __forceinline__ pack<T, N> &dy(int stage, int k) { return slot[(stage * 2 * NV + k) * COPIES]; }
    __device__ __forceinline__ pack<T, N> &x(int stage, int k) { return slot[(stage * 2 * NV + NV + k) * COPIES]; }

    __device__ __forceinline__ void fetch(const typename B::problem &p, int r, int stage) {
        if (r < p.rows) {
            const int first = threadIdx.x * N;
            const T *dy_row = row_at<T>(p.dy, r) + first, *x_row = row_at<T>(p.x, r) + first, *dsum_row = NULL;
            if constexpr (B::ADDS) dsum_row = row_at<T>(p.dsum, r) + first;
#pragma unroll
            for (int k = 0; k < NV; k++) {
                const int c = k * R.threads * N;
                if (first + c >= p.cols) continue;
                __pipeline_memcpy_async(&dy(stage, k), dy_row + c, PACK_BYTES);
                __pipeline_memcpy_async(&x(stage, k), x_row + c, PACK_BYTES);
                if (B::ADDS) __pipeline_memcpy_async(&dsum(stage, k), dsum_row + c, PACK_BYTES);
            }
        }
        __pipeline_commit();
    }
};

template <typename B, int N>
__device__ __forceinline__ void store_dx(const typename B::facts &facts, const typename B::pull &pull,
                                         const pack<typename B::type, N> &dy_pack,
                                         const pack<typename B::type, N> &x_pack, const float (&scale)[N],
                                         const pack<typename B::type, N> *dsum, typename B::type *dx) {
    float dy[N], x[N];
    unpack(dy_pack, dy);
    unpack(x_pack, x);
#pragma unroll
    for (int i = 0; i < N; i++) x[i] = B::dx_of(facts, pull, dy[i], x[i], scale[i]);
    if (dsum) {
        unpack(*dsum, dy);
#pragma unroll
        for (int i = 0; i < N; i++) x[i] += dy[i];
    }
    pack<typename B::type, N> out;
    repack(x, out);
    store_pack<typename B::type, N>(dx, out);
}

/* One partial row per block; where several groups share a block, their sums are added in order. */
template <typename B, int RUNG, int N>
__device__ __forceinline__ void store_partial(const typename B::problem &p, int which, float *combine,
                                              const float (&sums)[LADDER[RUNG].packs][B::PARTIALS][N]) {
    constexpr rung R = LADDER[RUNG];
    float *partial = p.workspace + (which * p.partials + blockIdx.x) * p.cols;
    float *target = R.groups == 1 ? partial : combine + threadIdx.y * p.cols;
    if (R.groups > 1) __syncthreads(); /* the pipeline's memory is free now */
#pragma unroll
    for (int k = 0; k < R.packs; k++) {
        const int c = (threadIdx.x + k * R.threads) * N;
        if (c >= p.cols) continue;
#pragma unroll
        for (int i = 0; i < N; i++) target[c + i] = sums[k][which][i];
    }
    if (R.groups == 1) return;
    __syncthreads();
    for (int c = threadIdx.y * R.threads + threadIdx.x; c < p.cols; c += R.threads * R.groups) {
        float sum = 0;
        for (int group = 0; group < R.groups; group++) sum += combine[group * p.cols + c];
        partial[c] = sum;
    }
}

/* Sizes are known when compiling, because addresses computed from blockDim cost a tenth to a fifth of the time. A thread's
 * columns never change, so that it keeps their weights in registers. */
template <typename B, int RUNG>
__global__ void __launch_bounds__(LADDER[RUNG].threads *LADDER[RUNG].groups, blocks_of(LADDER[RUNG]))
    backward_registers(const __grid_constant__ typename B::problem p) {
    using T = typename B::type;
    constexpr rung R = LADDER[RUNG];
    constexpr int N = pack_size<T>, NV = R.packs, STAGES = stages_of(R), WARPS = R.threads / WARP;
    extern __shared__ __align__(16) char memory[];
    __shared__ float slots[2][B::SUMS][MAX_WARPS];
    static_assert(sizeof slots <= STATIC_SHARED, "beside its dynamic shared memory");
    const int group = R.groups == 1 ? 0 : threadIdx.y, cols = (int)p.cols;
    row_pipeline<B, RUNG> rows(memory, group);
    const int count = (int)p.rows, step = gridDim.x * R.groups, first = blockIdx.x * R.groups;
    const float per_col = 1.0f / (float)cols;
    float partial[NV][B::PARTIALS][N] = {}, scale[NV][N];
#pragma unroll
    for (int k = 0; k < NV; k++) {
        const int c = (threadIdx.x + k * R.threads) * N;
        if (c < cols) B::scale(p, c, scale[k]);
    }
    let_next_kernel_start();
    int r = first + group, stage = 0, phase = 0;
    for (int s = 0; s < STAGES - 1; s++) rows.fetch(p, r + s * step, s);
    typename B::facts next = {}; /* a row ahead, as the rows are */
    if (r < count) next = B::facts_of(p, r);
    for (; r - group < count; r += step, phase ^= 1, stage = stage + 1 == STAGES ? 0 : stage + 1) {
        rows.fetch(p, r + (STAGES - 1) * step, stage == 0 ? STAGES - 1 : stage - 1);
        const bool live = R.groups == 1 || r < count;
        const typename B::facts facts = next;
        if (r + step < count) next = B::facts_of(p, r + step);
        __pipeline_wait_prior(STAGES - 1);
        float sums[B::SUMS] = {};
#pragma unroll
        for (int k = 0; k < NV; k++) {
            if (!live || (threadIdx.x + k * R.threads) * N >= cols) continue;
            float dy[N], x[N], part[B::SUMS] = {};
            unpack(rows.dy(stage, k), dy);
            unpack(rows.x(stage, k), x);
            B::gather(p, facts, dy, x, scale[k], part, partial[k]);
#pragma unroll
            for (int i = 0; i < B::SUMS; i++) sums[i] += part[i];
        }
        if (p.dx.data == NULL) continue;
        group_sums(sums, slots[phase], group * WARPS, WARPS);
        if (!live) continue;
#pragma unroll
        for (int i = 0; i < B::SUMS; i++) sums[i] *= per_col;
        const typename B::pull pull = B::pull_of(facts, sums);
        T *dx = row_at<T>(p.dx, r) + threadIdx.x * N;
#pragma unroll
        for (int k = 0; k < NV; k++)
            if ((threadIdx.x + k * R.threads) * N < cols)
                store_dx<B, N>(facts, pull, rows.dy(stage, k), rows.x(stage, k), scale[k],
                               B::ADDS ? &rows.dsum(stage, k) : NULL, dx + k * R.threads * N);
    }
    __pipeline_wait_prior(0);
#pragma unroll
    for (int i = 0; i < B::PARTIALS; i++)
        if (B::gathers(p, i)) store_partial<B, RUNG, N>(p, i, (float *)memory, partial);
}

/* ---- backward: rows of any width and alignment ------------------------------------------------------------------ */

template <typename B, int N>
__global__ void __launch_bounds__(BLOCK, at_most_blocks(LOOP_BLOCKS, BLOCK))
    backward_loop_dx(const __grid_constant__ typename B::problem p) {
    using T = typename B::type;
    __shared__ float slots[2][B::SUMS][MAX_WARPS];
    int phase = 0;
    const int64_t packs = p.cols / N;
    const float per_col = 1.0f / (float)p.cols;
    for (int64_t r = blockIdx.x; r < p.rows; r += gridDim.x, phase ^= 1) {
        const T *dy_row = row_at<T>(p.dy, r), *x_row = row_at<T>(p.x, r);
        const typename B::facts facts = B::facts_of(p, r);
        float sums[B::SUMS] = {};
        for (int64_t c = threadIdx.x; c < packs; c += blockDim.x) {
            const pack<T, N> dy = load_shared<T, N>(dy_row + c * N), x = load_shared<T, N>(x_row + c * N);
#pragma unroll
            for (int i = 0; i < N; i++) { /* one by one: 32 registers do not hold three packs as floats */
                const float dy_i[1] = {to_f32(dy.value[i])};
                float x_i[1] = {to_f32(x.value[i])}, scale[1], nowhere[B::PARTIALS][1] = {};
                B::scale(p, c * N + i, scale);
                B::gather(p, facts, dy_i, x_i, scale, sums, nowhere);
            }
        }
        group_sums(sums, slots[phase], 0, (int)blockDim.x / WARP);
#pragma unroll
        for (int i = 0; i < B::SUMS; i++) sums[i] *= per_col;
        const typename B::pull pull = B::pull_of(facts, sums);
        for (int64_t c = threadIdx.x; c < packs; c += blockDim.x) {
            pack<T, N> dx = *(const pack<T, N> *)(dy_row + c * N);
            const pack<T, N> x = load_shared<T, N>(x_row + c * N);
#pragma unroll
            for (int i = 0; i < N; i++) {
                float scale[1];
                B::scale(p, c * N + i, scale);
                float value = B::dx_of(facts, pull, to_f32(dx.value[i]), to_f32(x.value[i]), scale[0]);
                if constexpr (B::ADDS)
                    if (p.dsum.data) value += to_f32(row_at<T>(p.dsum, r)[c * N + i]);
                dx.value[i] = from_f32<T>(value);
            }
            store_pack<T, N>(row_at<T>(p.dx, r) + c * N, dx);
        }
    }
}

/* One thread per column and partial row: rows block, block + partials, ... */
template <typename B>
__global__ void __launch_bounds__(COLUMN_BLOCK) backward_loop_partials(const __grid_constant__ typename B::problem p) {
    using T = typename B::type;
    const int64_t c = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= p.cols) return;
    float partial[B::PARTIALS][1] = {};
    const float scale[1] = {0};
    for (int64_t r = blockIdx.y; r < p.rows; r += gridDim.y) {
        float dy[1] = {to_f32(row_at<T>(p.dy, r)[c])}, x[1] = {to_f32(row_at<T>(p.x, r)[c])}, nowhere[B::SUMS] = {};
        B::gather(p, B::facts_of(p, r), dy, x, scale, nowhere, partial);
    }
#pragma unroll
    for (int i = 0; i < B::PARTIALS; i++)
        if (B::gathers(p, i)) p.workspace[(i * p.partials + blockIdx.y) * p.cols + c] = partial[i][0];
}

/* ---- the ordered sum -------------------------------------------------------------------------------------------- */

/* Up to two gradients of parameters, each from `count` partial rows. */
struct gradients {
    void *to[2]; /* or NULL */
    liger_dtype dtype;
};

/* 32 columns a block: 32 fixed interleaved sums, then those in order. Block y takes the y-th gradient. */
static __global__ void __launch_bounds__(1024)
    add_partials(const float *partials, int count, int64_t cols, const gradients out) {
    __shared__ float sums[32][33];
    const int64_t c = (int64_t)blockIdx.x * 32 + threadIdx.x;
    void *const to = blockIdx.y == 0 ? out.to[0] : out.to[1];
    if (to == NULL) return;
    partials += blockIdx.y * (count * cols);
    float sum = 0;
    wait_for_previous_kernel();
    if (c < cols)
        for (int r = threadIdx.y; r < count; r += 32) sum += partials[(int64_t)r * cols + c];
    sums[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    const float total = warp_sum(sums[threadIdx.x][threadIdx.y]); /* transposed: warp y owns column y */
    const int64_t column = (int64_t)blockIdx.x * 32 + threadIdx.y;
    if (threadIdx.x == 0 && column < cols) store_as(to, out.dtype, column, total);
}

/* ---- launches --------------------------------------------------------------------------------------------------- */

/* May forward's rows be held in registers? */
template <typename T, typename P>
bool fits_registers(const P &p, bool packable) {
    return packable && p.cols / pack_size<T> <= FORWARD_PACKS && p.rows <= INT32_MAX;
}

template <typename F>
void launch_forward_registers(const typename F::problem &p, cudaStream_t stream) {
    const int64_t packs = p.cols / pack_size<typename F::type>;
    const int nv = packs <= WARP ? 1 : packs <= 512 ? 2 : 4;
    const dim3 block(round_up_to_warp((packs + nv - 1) / nv), nv == 1 ? 8 : 1);
    const unsigned grid = grid_size(p.rows, block.y);
    if (nv == 1) forward_registers<F, 1><<<grid, block, 0, stream>>>(p);
    else if (nv == 2) forward_registers<F, 2><<<grid, block, 0, stream>>>(p);
    else forward_registers<F, 4><<<grid, block, 0, stream>>>(p);
}

template <typename F>
void launch_forward_loop(const typename F::problem &p, bool packable, cudaStream_t stream) {
    const unsigned grid = grid_size(p.rows, 1);
    if (packable) forward_loop<F, pack_size<typename F::type>><<<grid, BLOCK, 0, stream>>>(p);
    else forward_loop<F, 1><<<grid, BLOCK, 0, stream>>>(p);
}

/* The rung for backward's rows; -1: the loop kernels. */
template <typename T, typename P>
int rung_of(const liger_context *context, const P &p, bool packable, bool adds) {
    if (!packable || p.rows > COUNTABLE_ROWS) return -1;
    return choose_rung(dynamic_shared_of(context), p.cols / pack_size<T>, adds ? 3 : 2);
}

template <typename B, int RUNG>
cudaError_t launch_rung(const liger_context *context, const typename B::problem &p, cudaStream_t stream) {
    constexpr rung R = LADDER[RUNG];
    constexpr size_t shared = shared_bytes(R, B::ADDS ? 3 : 2);
    const cudaError_t error = allow_shared_memory<backward_registers<B, RUNG>>(context, shared);
    if (error != cudaSuccess) return error;
    backward_registers<B, RUNG><<<(unsigned)p.partials, dim3(R.threads, R.groups), shared, stream>>>(p);
    return cudaSuccess;
}

template <typename B>
cudaError_t launch_backward_registers(const liger_context *context, const typename B::problem &p, int rung,
                                      cudaStream_t stream) {
    static_assert(sizeof LADDER / sizeof LADDER[0] == 6, "a case for every rung");
    switch (rung) {
        case 0: return launch_rung<B, 0>(context, p, stream);
        case 1: return launch_rung<B, 1>(context, p, stream);
        case 2: return launch_rung<B, 2>(context, p, stream);
        case 3: return launch_rung<B, 3>(context, p, stream);
        case 4: return launch_rung<B, 4>(context, p, stream);
        default: return launch_rung<B, 5>(context, p, stream);
    }
}

template <typename B>
cudaError_t launch_backward_loop(const typename B::problem &p, bool packable, cudaStream_t stream) {
    bool gathers = false;
    for (int i = 0; i < B::PARTIALS; i++) gathers = gathers || B::gathers(p, i);
    if (gathers) {
        const dim3 grid(grid_size(p.cols, COLUMN_BLOCK), (unsigned)p.partials);
        backward_loop_partials<B><<<grid, COLUMN_BLOCK, 0, stream>>>(p);
    }
    const unsigned grid = grid_size(p.rows, 1);
    if (p.dx.data && packable) backward_loop_dx<B, pack_size<typename B::type>><<<grid, BLOCK, 0, stream>>>(p);
    else if (p.dx.data) backward_loop_dx<B, 1><<<grid, BLOCK, 0, stream>>>(p);
    return cudaSuccess;
}

/* Without rows the gradients of parameters are zeros, and there is nothing else. */
static inline cudaError_t clear(const gradients &out, int64_t cols, cudaStream_t stream) {
    cudaError_t error = cudaSuccess;
    for (void *to : out.to)
        if (to && error == cudaSuccess) error = cudaMemsetAsync(to, 0, cols * liger_dtype_size(out.dtype), stream);
    return error;
}

/* All of backward: launch_rows(), then the sum of its partial rows. */
template <typename P, typename L>
liger_status run_backward(const liger_context *context, const P &p, const gradients &out, const char *op,
                          cudaStream_t stream, L launch_rows) {
    cudaError_t error = p.rows == 0 ? clear(out, p.cols, stream) : launch_rows();
    if (error == cudaSuccess && p.rows > 0 && (out.to[0] || out.to[1]))
        error = launch_next(context, add_partials, dim3(grid_size(p.cols, 32), out.to[1] ? 2 : 1), dim3(32, 32), stream,
                            (const float *)p.workspace, (int)p.partials, p.cols, out);
    LIGER_TRY(cuda_status(error, op));
    return launched(context, op, stream);
}

} // namespace row_norm

#endif
