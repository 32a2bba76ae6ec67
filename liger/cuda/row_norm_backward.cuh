/* row_norm_backward.cuh - dx and the parameters' gradients; what a formula B brings stands in row_norm.cuh. */
#ifndef LIGER_CUDA_ROW_NORM_BACKWARD_CUH
#define LIGER_CUDA_ROW_NORM_BACKWARD_CUH

#include <cuda_pipeline_primitives.h>

#include "liger/cuda/row_norm_parts.cuh"

namespace row_norm {

enum {
    LOOP_BLOCKS = 4, /* of a multiprocessor, in the loop kernels: 32 registers a thread */
    COLUMN_BLOCK = 256,
    COUNTABLE_ROWS = 1 << 30 /* rows, and a few steps below 0, are an int */
};

/* Arrays of a formula's sums have one element at least. */
LIGER_HOST_DEVICE constexpr int some(int count) { return count > 0 ? count : 1; }

/* Many sums need 64 registers. */
template <typename B>
constexpr int loop_blocks = B::SUMS > 2 ? LOOP_BLOCKS / 2 : (int)LOOP_BLOCKS;

/* Elements that are sums over everything, up to four. */
struct totals_to {
    void *to[4]; /* or NULL */
    int at[4];
    liger_dtype dtype;
};

/* ---- the parameters' gradients in registers --------------------------------------------------------------------- */

/* A block: packs of a row per thread, threads per row, rows at once at most: groups, each with a barrier of its own. */
struct rung {
    int packs, threads, groups;
};
/* Two packs a thread, or four: what a row costs besides its values (addresses, sums, barriers) is paid half as often as with
 * one. A block leaves one partial row, whatever its groups: with several of them there is less to be added in the end. */
constexpr rung LADDER[] = {{1, 32, 16}, {2, 64, 8}, {2, 128, 4}, {2, 256, 2}, {2, 512, 1}, {4, 512, 1}};

/* As many blocks as a multiprocessor holds with 64 registers a thread; 128 registers for more than one pack. */
LIGER_HOST_DEVICE constexpr int blocks_of(const rung &r) {
    return RESIDENT / (r.packs == 1 ? 1 : 2) / (r.threads * r.groups);
}
/* Rows of a group in shared memory. */
LIGER_HOST_DEVICE constexpr int stages_of(const rung &r) { return r.packs == 4 ? 2 : 3; }

/* Of one group, for rows of two tensors, or of three with dsum. Its sums for two parameters, of at most 8 columns a pack, fit
 * too. */
constexpr size_t shared_bytes(const rung &r, int tensors) {
    const size_t of_a_thread = (size_t)stages_of(r) * tensors * r.packs * PACK_BYTES;
    const size_t sums = 2 * r.packs * 8 * sizeof(float);
    return (of_a_thread > sums ? of_a_thread : sums) * r.threads;
}

/* Groups of a block: all that the rung has, if there is the memory and work for the other multiprocessors too. `at_once`: how
 * many rows are to be on the whole device. Rows of one warp are always as many. */
constexpr int choose_groups(const rung &r, size_t available, int tensors, int64_t at_once, int multiprocessors) {
    const int64_t fit = (int64_t)(available / shared_bytes(r, tensors));
    const int64_t useful = r.threads == WARP ? r.groups : (at_once + multiprocessors - 1) / multiprocessors;
    const int64_t groups = useful < fit ? useful : fit;
    return (int)(groups < r.groups ? groups : r.groups);
}

/* The first rung that holds the row and has the memory; -1: none. */
constexpr int choose_rung(size_t available, int64_t packs, int tensors) {
    int i = 0;
    for (const rung &r : LADDER) {
        const int least = r.threads == WARP ? r.groups : 1;
        if (packs <= r.packs * r.threads && least * shared_bytes(r, tensors) <= available) return i;
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
                const int groups = choose_groups(r, dynamic_shared(a.shared), tensors, 1 << 20, 1);
                if (groups < 1 || packs > r.packs * r.threads) return false;
                if (STATIC_SHARED + groups * shared_bytes(r, tensors) > a.shared) return false;
            }
    return true;
}
constexpr bool rungs_are_counted() {
    for (const rung &r : LADDER) /* norm_row_threads() of a row that fills the rung: 32 bytes for each thread */
        if (r.threads * r.groups != NORM_BLOCK || (r.packs == 1 && r.threads * PACK_BYTES != NORM_NARROW)) return false;
    return true;
}
static_assert(rungs_are_counted(), "as norm_partials() counts");
static_assert(rungs_fit(), "a rung asks for more shared memory than there is");

/* Rows on their way: each thread copies its own packs of dy, x and perhaps dsum to its own slots of shared memory, as many
 * rows deep as the rung has stages, so that no barrier guards them. */
template <typename B, int RUNG>
struct row_pipeline {
    using T = typename B::type;
    static constexpr rung R = LADDER[RUNG];
    static constexpr int N = pack_size<T>, NV = R.packs, STAGES = stages_of(R), COPIES = R.threads;
    static constexpr size_t GROUP = shared_bytes(R, B::ADDS ? 3 : 2);
    static_assert(B::PARTIALS <= 2, "as shared_bytes() counts");
    pack<T, N> *slot; /* this thread's first; its others follow at a distance of one group */

    __device__ row_pipeline(char *memory, int group) : slot((pack<T, N> *)(memory + group * GROUP) + threadIdx.x) {}
    __device__ __forceinline__ pack<T, N> &dsum(int stage, int k) {
        return slot[(STAGES * 2 * NV + stage * NV + k) * COPIES];
    }
    __device__ __forceinline__ pack<T, N> &dy(int stage, int k) { return slot[(stage * 2 * NV + k) * COPIES]; }
    __device__ __forceinline__ pack<T, N> &x(int stage, int k) { return slot[(stage * 2 * NV + NV + k) * COPIES]; }

    __device__ __forceinline__ void fetch(const typename B::problem &p, int r, int stage) {
        if (r >= 0) {
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
                                         const float (&g)[N], const float (&x)[N],
                                         const pack<typename B::type, N> *dsum, typename B::type *dx) {
    float value[N];
#pragma unroll
    for (int i = 0; i < N; i++) value[i] = B::dx_of(facts, pull, g[i], x[i]);
    if (dsum) {
        float more[N];
        unpack(*dsum, more);
#pragma unroll
        for (int i = 0; i < N; i++) value[i] += more[i];
    }
    pack<typename B::type, N> out;
    repack(value, out);
    store_pack<typename B::type, N>(dx, out);
}

/* One partial row per block and parameter. Where several groups share a block, the first adds what the others have, in order,
 * to its own. (It also meets the most barriers: to a race detector that counts them, a group that has met fewer would read too
 * early, __syncthreads() or not.) */
template <typename B, int RUNG, int N>
__device__ __forceinline__ void store_partials(const typename B::problem &p, float *memory, int group, int groups,
                                               const float (&sums)[LADDER[RUNG].packs][some(B::PARTIALS)][N]) {
    constexpr rung R = LADDER[RUNG];
    /* use(k, i, c) for every four values: single floats would be partial writes of sectors */
    const auto columns = [&](auto use) {
#pragma unroll
        for (int k = 0; k < R.packs; k++)
#pragma unroll
            for (int i = 0; i < N; i += 4) {
                const int c = (threadIdx.x + k * R.threads) * N + i;
                if (c < p.cols) use(k, i, c);
            }
    };
    const auto other = [&](int which, int of) { return memory + (which * groups + of) * p.cols; };
    if (R.groups > 1) {
        __syncthreads(); /* the pipeline's memory is free now */
#pragma unroll
        for (int which = 0; which < B::PARTIALS; which++)
            if (B::gathers(p, which) && group > 0)
                columns([&](int k, int i, int c) {
                    const float(&from)[N] = sums[k][which];
                    *(float4 *)(other(which, group) + c) = {from[i], from[i + 1], from[i + 2], from[i + 3]};
                });
        __syncthreads();
    }
#pragma unroll
    for (int which = 0; which < B::PARTIALS; which++)
        if (B::gathers(p, which) && group == 0)
            columns([&](int k, int i, int c) {
                const float(&from)[N] = sums[k][which];
                float4 sum = {from[i], from[i + 1], from[i + 2], from[i + 3]};
                for (int of = 1; R.groups > 1 && of < groups; of++) {
                    const float4 more = *(const float4 *)(other(which, of) + c);
                    sum = {sum.x + more.x, sum.y + more.y, sum.z + more.z, sum.w + more.w};
                }
                *(float4 *)(p.workspace + (which * p.partials + blockIdx.x) * p.cols + c) = sum;
            });
}

/* Every thread of a row has its totals: the first one stores them as the i-th of `count`. */
template <typename B>
__device__ __forceinline__ void store_totals(const typename B::problem &p, int i, int count,
                                             const float (&totals)[B::TOTALS]) {
    float *to = p.workspace + B::PARTIALS * p.partials * p.cols + i;
    if (threadIdx.x > 0 || p.workspace == NULL) return;
#pragma unroll
    for (int k = 0; k < B::TOTALS; k++) to[k * count] = totals[k];
}

/* Sizes are known when compiling, because addresses computed from blockDim cost a tenth to a fifth of the time. A thread's
 * columns never change, so that it keeps their weights in registers; and what it has made of a row while the row is
 * reduced, where there are registers for that too. */
template <typename B, int RUNG>
__global__ void __launch_bounds__(LADDER[RUNG].threads *LADDER[RUNG].groups, blocks_of(LADDER[RUNG]))
    backward_registers(const __grid_constant__ typename B::problem p) {
    using T = typename B::type;
    constexpr rung R = LADDER[RUNG];
    constexpr int N = pack_size<T>, NV = R.packs, STAGES = stages_of(R), WARPS = R.threads / WARP;
    constexpr bool KEEPS = NV == 2; /* with one, a thread has 64 registers */
    extern __shared__ __align__(16) char memory[];
    __shared__ float slots[2][B::SUMS][MAX_WARPS];
    static_assert(sizeof slots <= STATIC_SHARED, "beside its dynamic shared memory");
    const int group = R.groups == 1 ? 0 : threadIdx.y, groups = R.groups == 1 ? 1 : blockDim.y, cols = (int)p.cols;
    const group_of_block<R.threads> together = {group};
    static_assert(R.threads == WARP || R.groups < 16, "a block has 16 barriers, and one is __syncthreads()");
    row_pipeline<B, RUNG> rows(memory, group);
    const int step = gridDim.x * groups, last = (int)p.rows - 1 - blockIdx.x * groups;
    const float per_col = 1.0f / (float)cols;
    float partial[NV][some(B::PARTIALS)][N] = {}, totals[some(B::TOTALS)] = {}, scale[NV][N];
    wait_for_previous_kernel();
#pragma unroll
    for (int k = 0; k < NV; k++) {
        const int c = (threadIdx.x + k * R.threads) * N;
        if (c < cols) B::scale(p, 0, c, scale[k]);
    }
    let_next_kernel_start();
    int r = last - group, stage = 0, phase = 0; /* down to 0: see from_the_end() */
    for (int s = 0; s < STAGES - 1; s++) rows.fetch(p, r - s * step, s);
    typename B::facts next = {}; /* a row ahead, as the rows are */
    if (r >= 0) next = B::facts_of(p, r);
    for (; r >= 0; r -= step, phase ^= 1, stage = stage + 1 == STAGES ? 0 : stage + 1) {
        rows.fetch(p, r - (STAGES - 1) * step, stage == 0 ? STAGES - 1 : stage - 1);
        const typename B::facts facts = next;
        if (r >= step) next = B::facts_of(p, r - step);
        __pipeline_wait_prior(STAGES - 1);
        float sums[B::SUMS] = {}, g[NV][N], x[NV][N];
        const auto make_terms = [&](int k, float(&dy)[N]) {
            unpack(rows.dy(stage, k), dy);
            unpack(rows.x(stage, k), x[k]);
            B::terms(facts, dy, scale[k], x[k], g[k]);
        };
#pragma unroll
        for (int k = 0; k < NV; k++) {
            if ((threadIdx.x + k * R.threads) * N >= cols) continue;
            float dy[N], part[B::SUMS] = {};
            make_terms(k, dy);
            B::gather(p, facts, dy, g[k], x[k], part, partial[k]);
#pragma unroll
            for (int i = 0; i < B::SUMS; i++) sums[i] += part[i];
        }
        if (B::TOTALS == 0 && p.dx.data == NULL) continue;
        group_sums(sums, slots[phase], group * WARPS, WARPS, at_most_warps<WARPS>(), together);
        if constexpr (B::TOTALS > 0) B::add_totals(facts, sums, totals);
        if (B::TOTALS > 0 && p.dx.data == NULL) continue;
#pragma unroll
        for (int i = 0; i < B::SUMS; i++) sums[i] *= per_col;
        const typename B::pull pull = B::pull_of(facts, sums);
        T *dx = row_at<T>(p.dx, r) + threadIdx.x * N;
#pragma unroll
        for (int k = 0; k < NV; k++) {
            if ((threadIdx.x + k * R.threads) * N >= cols) continue;
            float again[N];
            if (!KEEPS) make_terms(k, again);
            store_dx<B, N>(facts, pull, g[k], x[k], B::ADDS ? &rows.dsum(stage, k) : NULL, dx + k * R.threads * N);
        }
    }
    __pipeline_wait_prior(0);
    if constexpr (B::PARTIALS > 0) store_partials<B, RUNG>(p, (float *)memory, group, groups, partial);
    if constexpr (B::TOTALS > 0) store_totals<B>(p, blockIdx.x * groups + group, gridDim.x * groups, totals);
}

/* ---- rows of any width and alignment ---------------------------------------------------------------------------- */

template <typename B, int N, int BLOCKS = loop_blocks<B>>
__global__ void __launch_bounds__(BLOCK, at_most_blocks(BLOCKS, BLOCK))
    backward_loop_dx(const __grid_constant__ typename B::problem p) {
    using T = typename B::type;
    __shared__ float slots[2][B::SUMS][MAX_WARPS];
    int phase = 0;
    const int64_t packs = p.cols / N;
    const float per_col = 1.0f / (float)p.cols;
    float totals[some(B::TOTALS)] = {};
    if (B::TOTALS > 0) let_next_kernel_start();
    for (int64_t at = blockIdx.x; at < p.rows; at += gridDim.x, phase ^= 1) {
        const int64_t r = from_the_end(p.rows, at);
        const T *dy_row = row_at<T>(p.dy, r), *x_row = row_at<T>(p.x, r);
        const typename B::facts facts = B::facts_of(p, r);
        float sums[B::SUMS] = {};
        for (int64_t c = threadIdx.x; c < packs; c += blockDim.x) {
            const pack<T, N> dy = load_shared<T, N>(dy_row + c * N), x = load_shared<T, N>(x_row + c * N);
#pragma unroll
            for (int i = 0; i < N; i++) { /* one by one: 32 registers do not hold three packs as floats */
                const float dy_i[1] = {to_f32(dy.value[i])};
                float x_i[1] = {to_f32(x.value[i])}, scale[1], g[1], nowhere[some(B::PARTIALS)][1] = {};
                B::scale(p, r, c * N + i, scale);
                B::terms(facts, dy_i, scale, x_i, g);
                B::gather(p, facts, dy_i, g, x_i, sums, nowhere);
            }
        }
        group_sums(sums, slots[phase], 0, (int)blockDim.x / WARP);
        if constexpr (B::TOTALS > 0) B::add_totals(facts, sums, totals);
        if (B::TOTALS > 0 && p.dx.data == NULL) continue;
#pragma unroll
        for (int i = 0; i < B::SUMS; i++) sums[i] *= per_col;
        const typename B::pull pull = B::pull_of(facts, sums);
        for (int64_t c = threadIdx.x; c < packs; c += blockDim.x) {
            pack<T, N> dx = *(const pack<T, N> *)(dy_row + c * N);
            const pack<T, N> x = load_shared<T, N>(x_row + c * N);
#pragma unroll
            for (int i = 0; i < N; i++) {
                const float dy_i[1] = {to_f32(dx.value[i])};
                float x_i[1] = {to_f32(x.value[i])}, scale[1], g[1];
                B::scale(p, r, c * N + i, scale);
                B::terms(facts, dy_i, scale, x_i, g);
                float value = B::dx_of(facts, pull, g[0], x_i[0]);
                if constexpr (B::ADDS)
                    if (p.dsum.data) value += to_f32(row_at<T>(p.dsum, r)[c * N + i]);
                dx.value[i] = from_f32<T>(value);
            }
            store_whole_pack<T, N>(row_at<T>(p.dx, r) + c * N, dx);
        }
    }
    if constexpr (B::TOTALS > 0) store_totals<B>(p, blockIdx.x, gridDim.x, totals);
}

/* One thread per column and partial row: rows block, block + partials, ... */
template <typename B>
__global__ void __launch_bounds__(COLUMN_BLOCK) backward_loop_partials(const __grid_constant__ typename B::problem p) {
    using T = typename B::type;
    const int64_t c = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= p.cols) return;
    float partial[some(B::PARTIALS)][1] = {};
    const float scale[1] = {0};
    for (int64_t r = blockIdx.y; r < p.rows; r += gridDim.y) {
        const typename B::facts facts = B::facts_of(p, r);
        const float dy[1] = {to_f32(row_at<T>(p.dy, r)[c])};
        float x[1] = {to_f32(row_at<T>(p.x, r)[c])}, g[1], nowhere[B::SUMS] = {};
        B::terms(facts, dy, scale, x, g);
        B::gather(p, facts, dy, g, x, nowhere, partial);
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

/* Block y takes the y-th gradient. */
static __global__ void __launch_bounds__(1024)
    add_partials(const float *partials, int count, int64_t cols, const gradients out) {
    __shared__ float sums[32][33];
    void *const to = blockIdx.y == 0 ? out.to[0] : out.to[1];
    let_next_kernel_start();
    wait_for_previous_kernel();
    if (to == NULL) return;
    add_partial_columns(sums, partials + blockIdx.y * (count * cols), count, cols, to, out.dtype);
}

/* A block for each total: fixed interleaved sums, one a thread, then those in order. A template: most norms need none. */
template <int THREADS>
__global__ void __launch_bounds__(THREADS)
    add_totals(const float *partials, int count, const __grid_constant__ totals_to out) {
    __shared__ float slots[1][MAX_WARPS];
    const int k = blockIdx.x;
    float sum[1] = {};
    wait_for_previous_kernel();
    if (out.to[k] == NULL) return;
    for (int i = threadIdx.x; i < count; i += THREADS) sum[0] += partials[k * count + i];
    group_sums(sum, slots, 0, THREADS / WARP);
    if (threadIdx.x == 0) store_as(out.to[k], out.dtype, out.at[k], sum[0]);
}

/* ---- launches --------------------------------------------------------------------------------------------------- */

/* The rung for backward's rows; -1: the loop kernels. */
template <typename T, typename P>
int rung_of(const liger_context *context, const P &p, bool packable, bool adds) {
    if (!packable || p.rows > COUNTABLE_ROWS) return -1;
    return choose_rung(dynamic_shared_of(context), p.cols / pack_size<T>, adds ? 3 : 2);
}

template <typename B>
cudaError_t launch_totals(const liger_context *context, const typename B::problem &p, int count, cudaStream_t stream) {
    if constexpr (B::TOTALS > 0) {
        const float *partials = p.workspace + B::PARTIALS * p.partials * p.cols;
        if (p.workspace == NULL) return cudaSuccess;
        return launch_next(context, add_totals<COLUMN_BLOCK>, dim3(B::TOTALS), dim3(COLUMN_BLOCK), stream, partials,
                           count, B::totals_of(p));
    }
    return cudaSuccess;
}

/* p.partials: rows at once, as the caller has room for partial rows (where rows are one warp's, blocks); then the number of
 * partial rows that there will be. */
template <typename B, int RUNG>
cudaError_t launch_rung(const liger_context *context, typename B::problem &p, cudaStream_t stream) {
    constexpr rung R = LADDER[RUNG];
    constexpr int TENSORS = B::ADDS ? 3 : 2;
    const int groups =
        choose_groups(R, dynamic_shared_of(context), TENSORS, p.partials, context->cuda->multiprocessors);
    const size_t shared = groups * shared_bytes(R, TENSORS);
    const cudaError_t error = allow_shared_memory<backward_registers<B, RUNG>>(context, shared);
    if (error != cudaSuccess) return error;
    if (R.threads > WARP) p.partials = (p.partials + groups - 1) / groups;
    const cudaError_t launch_error = launch_next_with(context, backward_registers<B, RUNG>, dim3((unsigned)p.partials),
                                                      dim3(R.threads, groups), shared, stream, p);
    if (launch_error != cudaSuccess) return launch_error;
    return launch_totals<B>(context, p, (int)p.partials * groups, stream);
}

template <typename B>
cudaError_t launch_backward_registers(const liger_context *context, typename B::problem &p, int rung,
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
cudaError_t launch_backward_loop(const liger_context *context, const typename B::problem &p, bool packable,
                                 cudaStream_t stream) {
    bool gathers = false;
    for (int i = 0; i < B::PARTIALS; i++) gathers = gathers || B::gathers(p, i);
    if constexpr (B::PARTIALS > 0)
        if (gathers) {
            const dim3 grid(grid_size(p.cols, COLUMN_BLOCK), (unsigned)p.partials);
            backward_loop_partials<B><<<grid, COLUMN_BLOCK, 0, stream>>>(p);
        }
    const bool walks = p.dx.data || B::TOTALS > 0;
    const unsigned grid = B::TOTALS > 0 ? grid_size(p.rows, 1, p.partials * LOOP_BLOCKS) : grid_size(p.rows, 1);
    if (walks && packable) backward_loop_dx<B, pack_size<typename B::type>><<<grid, BLOCK, 0, stream>>>(p);
    else if (walks) backward_loop_dx<B, 1><<<grid, BLOCK, 0, stream>>>(p);
    return launch_totals<B>(context, p, (int)grid, stream);
}

/* Without rows the gradients of parameters are zeros, and there is nothing else. */
static inline cudaError_t clear(const gradients &out, int64_t cols, cudaStream_t stream) {
    cudaError_t error = cudaSuccess;
    for (void *to : out.to)
        if (to && error == cudaSuccess) error = cudaMemsetAsync(to, 0, cols * liger_dtype_size(out.dtype), stream);
    return error;
}

/* All of backward: launch_rows(p), which may choose fewer partial rows, then their sum. */
template <typename P, typename L>
liger_status run_backward(const liger_context *context, const P &problem, const gradients &out, const char *op,
                          cudaStream_t stream, L launch_rows) {
    P p = problem;
    cudaError_t error = p.rows == 0 ? clear(out, p.cols, stream) : launch_rows(p);
    if (error == cudaSuccess && p.rows > 0 && (out.to[0] || out.to[1]))
        error = launch_next(context, add_partials, dim3(grid_size(p.cols, 32), out.to[1] ? 2 : 1), dim3(32, 32), stream,
                            (const float *)p.workspace, (int)p.partials, p.cols, out);
    LIGER_TRY(cuda_status(error, op));
    return launched(context, op, stream);
}

} // namespace row_norm

#endif
