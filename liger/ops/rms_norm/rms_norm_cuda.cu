/* rms_norm_cuda.cu - RMSNorm on the GPU. Memory-bound: what counts is bytes in flight.
 *
 * forward    a group of threads holds a whole row in registers: one read, one write. Rows too wide for that, or not
 *            aligned to 16 bytes, take the loop kernels, which read the row twice (the second time from L1/L2).
 * backward   a persistent grid: a block walks rows, the next ones on their way to shared memory while the current one is
 *            reduced, and keeps its columns of dweight in f32 registers. Each block writes one partial row; a second
 *            kernel adds the partials in order, so that there are no atomics and the bits never change. */
#include <cuda_pipeline_primitives.h>

#include "liger/cuda/launch.cuh"
#include "liger/cuda/pack.cuh"
#include "liger/cuda/reduce.cuh"
#include "liger/cuda/shared_memory.cuh"
#include "liger/ops/rms_norm/rms_norm.h"
#include "liger/ops/rms_norm/rms_norm_problem.h"

namespace {

template <typename T>
__device__ __forceinline__ T *row_at(liger_rows rows, int64_t r) {
    return (T *)rows.data + liger_row_offset(rows, r);
}

/* weight + offset; casting NONE rounds the sum if the weight is of type T. */
template <typename T, typename TW>
__device__ __forceinline__ float scale_of(TW weight, float offset, int casting) {
    const float scale = to_f32(weight) + offset;
    return casting == LIGER_CAST_NONE && sizeof(T) == sizeof(TW) ? round_to<T>(scale) : scale;
}

template <typename T>
__device__ __forceinline__ float rstd_of(float sum_of_squares, const rms_norm_forward_problem &p) {
    const float rstd = 1.0f / sqrtf(sum_of_squares / (float)p.cols + p.epsilon);
    return p.casting == LIGER_CAST_NONE ? round_to<T>(rstd) : rstd;
}

/* ---- forward: the row in registers ------------------------------------------------------------------------------ */

/* x·rstd·(weight + offset) of one pack; the weight is not looked at where there is none. */
template <typename T, typename TW>
__device__ __forceinline__ pack<T, pack_size<T>> normalise(const rms_norm_forward_problem &p,
                                                           const pack<T, pack_size<T>> &x,
                                                           const pack<TW, pack_size<T>> &weight, float rstd) {
    constexpr int N = pack_size<T>;
    float y[N];
    unpack(x, y);
#pragma unroll
    for (int i = 0; i < N; i++) y[i] *= rstd;
    if (p.weight) {
        float scale[N];
        unpack(weight, scale);
#pragma unroll
        for (int i = 0; i < N; i++) scale[i] += p.offset;
        if (p.casting == LIGER_CAST_LLAMA) round_all<T>(y);
        if (p.casting == LIGER_CAST_NONE && sizeof(T) == sizeof(TW)) round_all<T>(scale);
#pragma unroll
        for (int i = 0; i < N; i++) y[i] *= scale[i];
    }
    pack<T, N> out;
    repack(y, out);
    return out;
}

/* sum = x + residual, rounded to T, in place of x. */
template <typename T>
__device__ __forceinline__ void add(pack<T, pack_size<T>> &x, const pack<T, pack_size<T>> &residual) {
    float a[pack_size<T>], b[pack_size<T>];
    unpack(x, a);
    unpack(residual, b);
#pragma unroll
    for (int i = 0; i < pack_size<T>; i++) a[i] += b[i];
    repack(a, x);
}

template <typename TW, int NV, int N>
__device__ __forceinline__ void load_weights(const rms_norm_forward_problem &p, pack<TW, N> (&weight)[NV]) {
#pragma unroll
    for (int k = 0; k < NV; k++) {
        const int c = (threadIdx.x + k * blockDim.x) * N;
        if (c < p.cols) weight[k] = load_shared<TW, N>((const TW *)p.weight + c);
    }
}

/* Block (threads of a group, groups); NV packs per thread. Two blocks of 512 threads per multiprocessor keep enough
 * loads in flight: that is what the register bound is for. */
template <typename T, typename TW, int NV, bool ADD>
__global__ void __launch_bounds__(512, 2) forward_registers(const __grid_constant__ rms_norm_forward_problem p) {
    constexpr int N = pack_size<T>;
    __shared__ float slots[MAX_WARPS];
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
    if constexpr (ADD) {
        const T *residual = row_at<T>(p.residual, r);
        T *sum = row_at<T>(p.sum, r);
        pack<T, N> other[NV];
#pragma unroll
        for (int k = 0; k < NV; k++)
            if (first + k * step < cols) other[k] = load_pack<T, N>(residual + first + k * step);
#pragma unroll
        for (int k = 0; k < NV; k++) {
            if (first + k * step >= cols) continue;
            add<T>(row[k], other[k]);
            store_pack<T, N>(sum + first + k * step, row[k]);
        }
    }
    /* The weights are on their way while the row is reduced, where there are registers for them. */
    constexpr bool EARLY = NV * sizeof(pack<TW, N>) <= 64;
    pack<TW, N> weight[NV];
    if (EARLY && p.weight) load_weights<TW, NV>(p, weight);
    float squares = 0;
#pragma unroll
    for (int k = 0; k < NV; k++) {
        if (first + k * step >= cols) continue;
        float values[N];
        unpack(row[k], values);
#pragma unroll
        for (int i = 0; i < N; i++) squares = fmaf(values[i], values[i], squares);
    }
    const float rstd = rstd_of<T>(group_sum(squares, slots, blockDim.x / WARP), p);
    if (threadIdx.x == 0 && p.rstd) p.rstd[r] = rstd;
    if (!EARLY && p.weight) load_weights<TW, NV>(p, weight);
    T *y = row_at<T>(p.y, r);
#pragma unroll
    for (int k = 0; k < NV; k++)
        if (first + k * step < cols)
            store_pack<T, N>(y + first + k * step, normalise<T, TW>(p, row[k], weight[k], rstd));
}

/* ---- forward: rows of any width and alignment ------------------------------------------------------------------- */

template <typename T, typename TW, int N>
__global__ void __launch_bounds__(512) forward_loop(const __grid_constant__ rms_norm_forward_problem p) {
    __shared__ float slots[2][MAX_WARPS];
    int phase = 0;
    const int64_t packs = p.cols / N;
    for (int64_t r = blockIdx.x; r < p.rows; r += gridDim.x, phase ^= 1) {
        const T *x = row_at<T>(p.x, r);
        T *y = row_at<T>(p.y, r);
        float squares = 0;
        for (int64_t c = threadIdx.x; c < packs; c += blockDim.x) {
            pack<T, N> row = load_shared<T, N>(x + c * N);
            if (p.residual.data) {
                const pack<T, N> other = load_pack<T, N>(row_at<T>(p.residual, r) + c * N);
#pragma unroll
                for (int i = 0; i < N; i++) row.value[i] = from_f32<T>(to_f32(row.value[i]) + to_f32(other.value[i]));
                store_pack<T, N>(row_at<T>(p.sum, r) + c * N, row);
            }
#pragma unroll
            for (int i = 0; i < N; i++) squares = fmaf(to_f32(row.value[i]), to_f32(row.value[i]), squares);
        }
        const float rstd = rstd_of<T>(group_sum(squares, slots[phase], blockDim.x / WARP), p);
        if (threadIdx.x == 0 && p.rstd) p.rstd[r] = rstd;
        const T *source = p.residual.data ? row_at<T>(p.sum, r) : x;
        for (int64_t c = threadIdx.x; c < packs; c += blockDim.x) {
            pack<T, N> row = *(const pack<T, N> *)(source + c * N);
#pragma unroll
            for (int i = 0; i < N; i++) {
                float normal = to_f32(row.value[i]) * rstd;
                if (p.weight) {
                    if (p.casting == LIGER_CAST_LLAMA) normal = round_to<T>(normal);
                    normal *= scale_of<T, TW>(((const TW *)p.weight)[c * N + i], p.offset, p.casting);
                }
                row.value[i] = from_f32<T>(normal);
            }
            store_pack<T, N>(y + c * N, row);
        }
    }
}

/* ---- backward: dweight in registers ----------------------------------------------------------------------------- */

/* Rows on their way: each thread copies its own packs of dy, x and perhaps dsum to its own slots of shared memory, STAGES
 * rows deep, so that no barrier guards them. */
template <typename T, int NV, int STAGES, int THREADS, int GROUPS, bool ADD>
struct row_pipeline {
    static constexpr int N = pack_size<T>, BLOCK = THREADS * GROUPS;
    pack<T, N> *slot; /* this thread's first; its others follow at a distance of one block */

    __device__ row_pipeline(void *memory, int group) : slot((pack<T, N> *)memory + group * THREADS + threadIdx.x) {}
    __device__ __forceinline__ pack<T, N> &dsum(int stage, int k) {
        return slot[(STAGES * 2 * NV + stage * NV + k) * BLOCK];
    }
    __device__ __forceinline__ pack<T, N> &dy(int stage, int k) { return slot[(stage * 2 * NV + k) * BLOCK]; }
    __device__ __forceinline__ pack<T, N> &x(int stage, int k) { return slot[(stage * 2 * NV + NV + k) * BLOCK]; }

    __device__ __forceinline__ void fetch(const rms_norm_backward_problem &p, int r, int stage) {
        if (r < p.rows) {
            const int first = threadIdx.x * N;
            const T *dy_row = row_at<T>(p.dy, r) + first, *x_row = row_at<T>(p.x, r) + first;
            const T *dsum_row = ADD ? row_at<T>(p.dsum, r) + first : NULL;
#pragma unroll
            for (int k = 0; k < NV; k++) {
                if (first + k * THREADS * N >= p.cols) continue;
                __pipeline_memcpy_async(&dy(stage, k), dy_row + k * THREADS * N, PACK_BYTES);
                __pipeline_memcpy_async(&x(stage, k), x_row + k * THREADS * N, PACK_BYTES);
                if (ADD) __pipeline_memcpy_async(&dsum(stage, k), dsum_row + k * THREADS * N, PACK_BYTES);
            }
        }
        __pipeline_commit();
    }
};

LIGER_HOST_DEVICE constexpr int stages_of(int packs) { return packs == 4 ? 2 : 3; }

/* weight + offset of one pack, or ones. */
template <typename T, typename TW>
__device__ __forceinline__ void scale_of_pack(const rms_norm_backward_problem &p, int c, float (&scale)[pack_size<T>]) {
    constexpr int N = pack_size<T>;
    if (p.weight) unpack(load_shared<TW, N>((const TW *)p.weight + c), scale);
#pragma unroll
    for (int i = 0; i < N; i++) scale[i] = p.weight ? scale[i] + p.offset : 1.0f;
}

/* dweight += dy · x·rstd and, as the answer, Σ dy·scale·x. */
template <typename T>
__device__ __forceinline__ float gather(const pack<T, pack_size<T>> &dy_pack, const pack<T, pack_size<T>> &x_pack,
                                        const float (&scale)[pack_size<T>], float rstd, bool round,
                                        float (&dweight)[pack_size<T>]) {
    constexpr int N = pack_size<T>;
    float dy[N], x[N], dot = 0;
    unpack(dy_pack, dy);
    unpack(x_pack, x);
#pragma unroll
    for (int i = 0; i < N; i++) {
        dot = fmaf(dy[i] * scale[i], x[i], dot);
        x[i] *= rstd;
    }
    if (round) round_all<T>(x);
#pragma unroll
    for (int i = 0; i < N; i++) dweight[i] = fmaf(dy[i], x[i], dweight[i]);
    return dot;
}

/* dx = rstd · (dy · scale - pull · x). No power of rstd stands alone: its cube leaves the range of f32 where x is 1e-14. */
__device__ __forceinline__ float pull_of(float rstd, float mean_dot) { return rstd * (rstd * mean_dot); }

template <typename T>
__device__ __forceinline__ void store_dx(const pack<T, pack_size<T>> &dy_pack, const pack<T, pack_size<T>> &x_pack,
                                         const float (&scale)[pack_size<T>], const pack<T, pack_size<T>> *dsum, T *dx,
                                         float rstd, float pull) {
    constexpr int N = pack_size<T>;
    float dy[N], x[N];
    unpack(dy_pack, dy);
    unpack(x_pack, x);
#pragma unroll
    for (int i = 0; i < N; i++) x[i] = rstd * fmaf(-pull, x[i], dy[i] * scale[i]);
    if (dsum) {
        unpack(*dsum, dy);
#pragma unroll
        for (int i = 0; i < N; i++) x[i] += dy[i];
    }
    pack<T, N> out;
    repack(x, out);
    store_pack<T, N>(dx, out);
}

/* One partial row of dweight per block; where several groups share a block, their sums are added in order. */
template <typename T, int NV, int THREADS, int GROUPS>
__device__ __forceinline__ void store_partial(const rms_norm_backward_problem &p, float *combine,
                                              const float (&dweight)[NV][pack_size<T>]) {
    constexpr int N = pack_size<T>;
    float *partial = p.workspace + (int64_t)blockIdx.x * p.cols;
    float *target = GROUPS == 1 ? partial : combine + threadIdx.y * p.cols;
    if (GROUPS > 1) __syncthreads(); /* the pipeline's memory is free now */
#pragma unroll
    for (int k = 0; k < NV; k++) {
        const int c = (threadIdx.x + k * THREADS) * N;
        if (c >= p.cols) continue;
#pragma unroll
        for (int i = 0; i < N; i++) target[c + i] = dweight[k][i];
    }
    if (GROUPS == 1) return;
    __syncthreads();
    for (int c = threadIdx.y * THREADS + threadIdx.x; c < p.cols; c += THREADS * GROUPS) {
        float sum = 0;
        for (int group = 0; group < GROUPS; group++) sum += combine[group * p.cols + c];
        partial[c] = sum;
    }
}

/* Blocks of THREADS x GROUPS, as many as a multiprocessor holds with 64 registers a thread (128 where NV is 4); sizes are
 * known when compiling, because addresses computed from blockDim cost a tenth to a fifth of the time. A group of more than
 * one warp has a block for itself: rows then wait for nobody else's barrier. A thread's columns never change, so that it
 * keeps their weights in registers. */
template <typename T, typename TW, int NV, int THREADS, int GROUPS, bool ADD>
__global__ void __launch_bounds__(THREADS *GROUPS, NV == 4 ? 1 : 1024 / (THREADS * GROUPS))
    backward_registers(const __grid_constant__ rms_norm_backward_problem p) {
    constexpr int N = pack_size<T>, STAGES = stages_of(NV), WARPS = THREADS / WARP;
    extern __shared__ __align__(16) char memory[];
    __shared__ float slots[2][MAX_WARPS];
    static_assert(sizeof slots <= STATIC_SHARED, "beside its dynamic shared memory");
    const int group = GROUPS == 1 ? 0 : threadIdx.y, cols = (int)p.cols;
    row_pipeline<T, NV, STAGES, THREADS, GROUPS, ADD> rows(memory, group);
    const int count = (int)p.rows, step = gridDim.x * GROUPS, first = blockIdx.x * GROUPS;
    const bool round = p.casting == LIGER_CAST_LLAMA;
    const float per_col = 1.0f / (float)cols;
    float dweight[NV][N] = {}, scale[NV][N];
#pragma unroll
    for (int k = 0; k < NV; k++) {
        const int c = (threadIdx.x + k * THREADS) * N;
        if (c < cols) scale_of_pack<T, TW>(p, c, scale[k]);
    }
    let_next_kernel_start();
    int r = first + group, stage = 0, phase = 0;
    for (int s = 0; s < STAGES - 1; s++) rows.fetch(p, r + s * step, s);
    float next_rstd = r < count ? p.rstd[r] : 0.0f; /* a row ahead, as the rows are */
    for (; r - group < count; r += step, phase ^= 1, stage = stage + 1 == STAGES ? 0 : stage + 1) {
        rows.fetch(p, r + (STAGES - 1) * step, stage == 0 ? STAGES - 1 : stage - 1);
        const bool live = GROUPS == 1 || r < count;
        const float rstd = next_rstd;
        next_rstd = r + step < count ? p.rstd[r + step] : 0.0f;
        __pipeline_wait_prior(STAGES - 1);
        float dot = 0;
#pragma unroll
        for (int k = 0; k < NV; k++)
            if (live && (threadIdx.x + k * THREADS) * N < cols)
                dot += gather<T>(rows.dy(stage, k), rows.x(stage, k), scale[k], rstd, round, dweight[k]);
        if (p.dx.data == NULL) continue;
        dot = group_sum(dot, slots[phase] + group * WARPS, WARPS);
        if (!live) continue;
        const float pull = pull_of(rstd, dot * per_col);
        T *dx = row_at<T>(p.dx, r) + threadIdx.x * N;
#pragma unroll
        for (int k = 0; k < NV; k++)
            if ((threadIdx.x + k * THREADS) * N < cols)
                store_dx<T>(rows.dy(stage, k), rows.x(stage, k), scale[k], ADD ? &rows.dsum(stage, k) : NULL,
                            dx + k * THREADS * N, rstd, pull);
    }
    __pipeline_wait_prior(0);
    if (p.dweight) store_partial<T, NV, THREADS, GROUPS>(p, (float *)memory, dweight);
}

/* ---- backward: rows of any width and alignment ------------------------------------------------------------------ */

template <typename T, typename TW, int N>
__global__ void __launch_bounds__(512) backward_loop_dx(const __grid_constant__ rms_norm_backward_problem p) {
    __shared__ float slots[2][MAX_WARPS];
    int phase = 0;
    const int64_t packs = p.cols / N;
    for (int64_t r = blockIdx.x; r < p.rows; r += gridDim.x, phase ^= 1) {
        const T *dy = row_at<T>(p.dy, r), *x = row_at<T>(p.x, r);
        const float rstd = p.rstd[r];
        float dot = 0;
        for (int64_t c = threadIdx.x; c < packs; c += blockDim.x) {
            const pack<T, N> a = load_shared<T, N>(dy + c * N), b = load_shared<T, N>(x + c * N);
#pragma unroll
            for (int i = 0; i < N; i++) {
                const float scale = p.weight ? to_f32(((const TW *)p.weight)[c * N + i]) + p.offset : 1.0f;
                dot = fmaf(to_f32(a.value[i]) * scale, to_f32(b.value[i]), dot);
            }
        }
        dot = group_sum(dot, slots[phase], blockDim.x / WARP);
        const float pull = pull_of(rstd, dot / (float)p.cols);
        for (int64_t c = threadIdx.x; c < packs; c += blockDim.x) {
            pack<T, N> a = *(const pack<T, N> *)(dy + c * N), b = load_shared<T, N>(x + c * N);
#pragma unroll
            for (int i = 0; i < N; i++) {
                const float scale = p.weight ? to_f32(((const TW *)p.weight)[c * N + i]) + p.offset : 1.0f;
                float gradient = rstd * fmaf(-pull, to_f32(b.value[i]), to_f32(a.value[i]) * scale);
                if (p.dsum.data) gradient += to_f32(row_at<T>(p.dsum, r)[c * N + i]);
                a.value[i] = from_f32<T>(gradient);
            }
            store_pack<T, N>(row_at<T>(p.dx, r) + c * N, a);
        }
    }
}

/* One thread per column and partial: rows block, block + partials, ... */
template <typename T>
__global__ void __launch_bounds__(256) backward_loop_dweight(const __grid_constant__ rms_norm_backward_problem p) {
    const int64_t c = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= p.cols) return;
    float sum = 0;
    for (int64_t r = blockIdx.y; r < p.rows; r += gridDim.y) {
        const float normal = to_f32(row_at<T>(p.x, r)[c]) * p.rstd[r];
        sum = fmaf(to_f32(row_at<T>(p.dy, r)[c]), p.casting == LIGER_CAST_LLAMA ? round_to<T>(normal) : normal, sum);
    }
    p.workspace[(int64_t)blockIdx.y * p.cols + c] = sum;
}

/* dweight[c] = Σ partials, 32 columns a block: 32 fixed interleaved sums, then those in order. */
template <typename TW>
__global__ void __launch_bounds__(1024) add_partials(const float *partials, int count, int64_t cols, TW *dweight) {
    __shared__ float sums[32][33];
    const int64_t c = (int64_t)blockIdx.x * 32 + threadIdx.x;
    float sum = 0;
    wait_for_previous_kernel();
    if (c < cols)
        for (int r = threadIdx.y; r < count; r += 32) sum += partials[(int64_t)r * cols + c];
    sums[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    const float total = warp_sum(sums[threadIdx.x][threadIdx.y]); /* transposed: warp y owns column y */
    const int64_t column = (int64_t)blockIdx.x * 32 + threadIdx.y;
    if (threadIdx.x == 0 && column < cols) dweight[column] = from_f32<TW>(total);
}

/* ---- launches --------------------------------------------------------------------------------------------------- */

enum { BLOCK = 512, MAX_PACKS = 4 * BLOCK, MOST_ROWS = 1 << 30 }; /* of the loop kernels; of rows in registers */

template <typename T, typename TW>
void launch_forward(const rms_norm_forward_problem &p, bool packable, cudaStream_t stream) {
    const int64_t packs = p.cols / pack_size<T>;
    if (!packable || packs > MAX_PACKS || p.rows > INT32_MAX) {
        const unsigned grid = grid_size(p.rows, 1);
        if (packable) forward_loop<T, TW, pack_size<T>><<<grid, BLOCK, 0, stream>>>(p);
        else forward_loop<T, TW, 1><<<grid, BLOCK, 0, stream>>>(p);
        return;
    }
    const int nv = packs <= 32 ? 1 : packs <= 512 ? 2 : 4;
    const int threads = round_up_to_warp((packs + nv - 1) / nv);
    const dim3 block(threads, nv == 1 ? 8 : 1);
    const unsigned grid = grid_size(p.rows, block.y);
    const bool adds = p.residual.data != NULL;
    if (nv == 1 && adds) forward_registers<T, TW, 1, true><<<grid, block, 0, stream>>>(p);
    else if (nv == 1) forward_registers<T, TW, 1, false><<<grid, block, 0, stream>>>(p);
    else if (nv == 2 && adds) forward_registers<T, TW, 2, true><<<grid, block, 0, stream>>>(p);
    else if (nv == 2) forward_registers<T, TW, 2, false><<<grid, block, 0, stream>>>(p);
    else if (adds) forward_registers<T, TW, 4, true><<<grid, block, 0, stream>>>(p);
    else forward_registers<T, TW, 4, false><<<grid, block, 0, stream>>>(p);
}

/* A block of backward_registers: packs of a row per thread, threads per row, rows at once. */
struct rung {
    int packs, threads, groups;
};
constexpr rung LADDER[] = {{1, 32, 16}, {1, 128, 1}, {1, 256, 1}, {1, 512, 1}, {1, 1024, 1}, {4, 512, 1}};

/* For rows of two tensors, or of three with dsum. The sums of several groups, of at most 8 columns a pack, fit too. */
constexpr size_t shared_bytes(const rung &r, int tensors) {
    const size_t of_a_thread = (size_t)stages_of(r.packs) * tensors * r.packs * PACK_BYTES;
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
static_assert(rungs_fit(), "a rung asks for more shared memory than there is");

template <typename T, typename TW, int RUNG, bool ADD>
liger_status launch_rung(const liger_context *context, const rms_norm_backward_problem &p, cudaStream_t stream) {
    constexpr rung R = LADDER[RUNG];
    constexpr size_t shared = shared_bytes(R, ADD ? 3 : 2);
    constexpr auto kernel = backward_registers<T, TW, R.packs, R.threads, R.groups, ADD>;
    LIGER_TRY(cuda_status(allow_shared_memory<kernel>(context, shared), "rms_norm_backward"));
    kernel<<<(unsigned)p.partials, dim3(R.threads, R.groups), shared, stream>>>(p);
    return LIGER_OK;
}

template <typename T, typename TW>
void launch_loop(const rms_norm_backward_problem &p, bool packable, cudaStream_t stream) {
    if (p.dweight) {
        const dim3 grid(grid_size(p.cols, 256), (unsigned)p.partials);
        backward_loop_dweight<T><<<grid, 256, 0, stream>>>(p);
    }
    if (p.dx.data == NULL) return;
    const unsigned grid = grid_size(p.rows, 1);
    if (packable) backward_loop_dx<T, TW, pack_size<T>><<<grid, BLOCK, 0, stream>>>(p);
    else backward_loop_dx<T, TW, 1><<<grid, BLOCK, 0, stream>>>(p);
}

template <typename T, typename TW, bool ADD>
liger_status launch_rows(const liger_context *context, const rms_norm_backward_problem &p, int rung,
                         cudaStream_t stream) {
    switch (rung) {
        case 0: return launch_rung<T, TW, 0, ADD>(context, p, stream);
        case 1: return launch_rung<T, TW, 1, ADD>(context, p, stream);
        case 2: return launch_rung<T, TW, 2, ADD>(context, p, stream);
        case 3: return launch_rung<T, TW, 3, ADD>(context, p, stream);
        case 4: return launch_rung<T, TW, 4, ADD>(context, p, stream);
        default: return launch_rung<T, TW, 5, ADD>(context, p, stream);
    }
}

template <typename T, typename TW>
liger_status launch_backward(const liger_context *context, const rms_norm_backward_problem &p, bool packable,
                             cudaStream_t stream) {
    const bool adds = p.dsum.data != NULL, countable = packable && p.rows <= MOST_ROWS;
    const int rung = countable ? choose_rung(dynamic_shared_of(context), p.cols / pack_size<T>, adds ? 3 : 2) : -1;
    if (rung < 0) launch_loop<T, TW>(p, packable, stream);
    else if (adds) LIGER_TRY((launch_rows<T, TW, true>(context, p, rung, stream)));
    else LIGER_TRY((launch_rows<T, TW, false>(context, p, rung, stream)));
    if (p.dweight == NULL) return LIGER_OK;
    return cuda_status(launch_next(context, add_partials<TW>, grid_size(p.cols, 32), dim3(32, 32), stream, p.workspace,
                                   (int)p.partials, p.cols, (TW *)p.dweight),
                       "rms_norm_backward");
}

} // namespace

extern "C" liger_status rms_norm_forward_cuda(liger_context *context, const rms_norm_forward_problem *problem,
                                              liger_stream stream) {
    const rms_norm_forward_problem &p = *problem;
    LIGER_ON_DEVICE(context, "rms_norm_forward");
    const size_t element = liger_dtype_size(p.dtype);
    const bool packable = p.cols * element % PACK_BYTES == 0 && rows_are_packable(p.x, element) &&
                          rows_are_packable(p.y, element) && rows_are_packable(p.residual, element) &&
                          rows_are_packable(p.sum, element) && pointer_is_packable(p.weight);
    LIGER_FOR_FLOAT_AND_WEIGHT(p.dtype, p.weight_dtype, T, TW,
                               launch_forward<T, TW>(p, packable, (cudaStream_t)stream));
    return launched(context, "rms_norm_forward", stream);
}

extern "C" liger_status rms_norm_backward_cuda(liger_context *context, const rms_norm_backward_problem *problem,
                                               liger_stream stream) {
    const rms_norm_backward_problem &p = *problem;
    LIGER_ON_DEVICE(context, "rms_norm_backward");
    if (p.rows == 0) /* nothing but a dweight of zeros */
        return cuda_status(
            cudaMemsetAsync(p.dweight, 0, p.cols * liger_dtype_size(p.weight_dtype), (cudaStream_t)stream),
            "rms_norm_backward");
    const size_t element = liger_dtype_size(p.dtype);
    const bool packable = p.cols * element % PACK_BYTES == 0 && rows_are_packable(p.x, element) &&
                          rows_are_packable(p.dy, element) && rows_are_packable(p.dx, element) &&
                          rows_are_packable(p.dsum, element) && pointer_is_packable(p.weight);
    LIGER_FOR_FLOAT_AND_WEIGHT(p.dtype, p.weight_dtype, T, TW,
                               LIGER_TRY((launch_backward<T, TW>(context, p, packable, (cudaStream_t)stream))));
    return launched(context, "rms_norm_backward", stream);
}
