/* mhc_coeffs_forward_cuda.cu - the coefficients of hyper-connections on the GPU, forward.
 *
 * Of N = 16384 tokens of 4 streams of 4096 in bf16: x is 537 MB, 0.126 ms at 4.26 TB/s; x · phi is 12.9 GFLOP, 2 % of that time
 * on tensor cores, and .2 ms on the others. So: x · phi and the squares of x from one read. A block has 64 tokens and all columns
 * of phi, and goes along k with six steps of 64 on their way, 8 KB of x and 3 KB of phi each: 256 blocks, two of them on a
 * multiprocessor, have 80 KB of x on their way there. phi comes out of L2, 200 MB in all, in the order of the registers that the
 * instruction wants, into which a small kernel has put it. A warp multiplies 16 tokens by 24 columns. The sums of a step start at
 * zero and are added up in f32: what tensor cores cut off is a matter of four additions. Few tokens are cut along k too.
 * Where x is bf16 and phi f32 (or f16, which comes as f32), phi is the sum of three bf16, exactly, and products are exact as well.
 *
 * Then a kernel adds up the pieces in order and makes the coefficients: 4 threads a token, 40 steps of Sinkhorn's iteration
 * in registers, some 3000 instructions on 2 MB: 10 us. x_in is a second read of x, .16 ms, beside which its products count nothing:
 * a token's 32 KB would have to stay in shared memory until its coefficients are known, and then either one
 * multiprocessor waits or phi is read once for every few tokens, more bytes than x has. Prediction: .31 ms. */
#include "liger/core/kernel_table.h"
#include "liger/cuda/matrices.cuh"
#include "liger/cuda/shared_memory.cuh"
#include "liger/ops/mhc/mhc_sinkhorn.cuh"
#include "liger/ops/mhc/mhc_streams.cuh"

namespace mhc {

using problem = mhc_coeffs_forward_problem;

enum { MIX_THREADS = 128, TILES = MHC_GROUP / 8, DEPTH = 16, DEPTHS = MHC_STEP / DEPTH };
enum { X_BYTES = MHC_TILE * MHC_STEP * 2, PHI_BYTES = MHC_STEP * MHC_GROUP * 2 }; /* of a step, and of a term of phi */
enum { CHUNK_BYTES = 16, ROW_CHUNKS = MHC_STEP * 2 / CHUNK_BYTES };

/* How many steps there are in shared memory, with so many terms of phi. */
template <int TERMS>
struct ring {
    enum { STAGES = TERMS == 1 ? 6 : 4, STAGE_BYTES = X_BYTES + TERMS * PHI_BYTES, BYTES = STAGES * STAGE_BYTES };
    static constexpr bool fits() {
        for (const architecture &a : ARCHITECTURES)
            if (a.number >= 80 && dynamic_shared(a.shared) < BYTES) return false;
        return true;
    }
};
static_assert(ring<1>::fits() && ring<3>::fits(), "what a block needs must fit where there is the instruction");

/* ---- phi as the instruction wants it ---------------------------------------------------------------------------------- */

/* Term number `term` of an element. Eight bits are cut off at a time, so that nothing is rounded. */
template <typename T>
__device__ __forceinline__ T term_of(const problem &p, int64_t i, int term) {
    if (p.phi_dtype == p.dtype) return ((const T *)p.phi)[i];
    float rest = ((const float *)p.phi)[i];
    if (!isfinite(rest)) return from_f32<T>(term == 0 ? rest : 0.0f);
    for (int before = 0; before < term; before++) rest -= __uint_as_float(__float_as_uint(rest) & 0xffff0000u);
    return from_f32<T>(__uint_as_float(__float_as_uint(rest) & 0xffff0000u));
}

/* A thread has what one lane needs for 16 of k and 8 columns: k = 2 · (lane % 4) and the next, and those eight behind. */
template <typename T>
__global__ void __launch_bounds__(THREADS) pack_phi(const __grid_constant__ problem p, int64_t count, int terms) {
    const int64_t item = (int64_t)blockIdx.x * THREADS + threadIdx.x, m = mhc_m(p.hc), k_count = p.hc * p.c;
    if (item >= count) return;
    const int lane = (int)(item % WARP), tile = (int)(item / WARP % TILES), depth = (int)(item / WARP / TILES % DEPTHS);
    const int64_t block = item / WARP / TILES / DEPTHS, step = block / terms, steps = mhc_ceil(k_count, MHC_STEP);
    const int64_t column = step / steps * MHC_GROUP + tile * 8 + lane / 4;
    const int64_t k = step % steps * MHC_STEP + depth * DEPTH + lane % 4 * 2;
    pack<T, 4> out;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int64_t at = k + i % 2 + i / 2 * 8;
        const bool there = at < k_count && column < m;
        out.value[i] = there ? term_of<T>(p, at * m + column, (int)(block % terms)) : from_f32<T>(0.0f);
    }
    store_pack<T, 4>((T *)p.workspace + item * 4, out);
}

/* ---- x · phi on tensor cores -------------------------------------------------------------------------------------------- */

/* Where a chunk of a row of x lies: eight rows of one chunk are in eight different groups of banks. */
__device__ __forceinline__ int place(int row, int chunk) {
    return row * (ROW_CHUNKS * CHUNK_BYTES) + (chunk ^ (row & 7)) * CHUNK_BYTES;
}

/* Step `step` of x and of this group's phi. */
template <typename T, int TERMS>
__device__ __forceinline__ void fetch(const problem &p, int64_t token, int64_t step, int64_t phi_step, char *stage) {
    const int64_t k_count = p.hc * p.c;
#pragma unroll
    for (int i = 0; i < MHC_TILE * ROW_CHUNKS / MIX_THREADS; i++) {
        const int item = i * MIX_THREADS + threadIdx.x, row = item / ROW_CHUNKS, chunk = item % ROW_CHUNKS;
        const int64_t k = step * MHC_STEP + chunk * 8;
        const bool there = token + row < p.tokens && k < k_count;
        copy_or_zero(stage + place(row, chunk), (const T *)p.x + (there ? (token + row) * k_count + k : 0), there);
    }
    const char *phi = (const char *)p.workspace + phi_step * TERMS * PHI_BYTES;
    for (int item = threadIdx.x; item < TERMS * PHI_BYTES / CHUNK_BYTES; item += MIX_THREADS)
        copy_or_zero(stage + X_BYTES + item * CHUNK_BYTES, phi + item * CHUNK_BYTES, true);
}

/* The two values of a register, squared. */
template <typename T>
__device__ __forceinline__ float squares_of(uint32_t two, float sum) {
    float x[2];
    unpack(*(const pack<T, 2> *)&two, x);
    return fmaf(x[1], x[1], fmaf(x[0], x[0], sum));
}

/* What a lane has of a warp's 16 tokens: of tokens lane / 4 and eight behind, two columns of every tile. */
struct mix_sums {
    float product[TILES][4], squares[2];
};

template <typename T, int TERMS>
__device__ __forceinline__ void add_stage(const char *stage, mix_sums &sums) {
    const int lane = threadIdx.x % WARP, row = threadIdx.x / WARP * 16 + lane % 16;
    mix_sums step = {};
#pragma unroll
    for (int depth = 0; depth < DEPTHS; depth++) {
        uint32_t x[4];
        load_matrices(stage + place(row, depth * 2 + lane / 16), x);
#pragma unroll
        for (int i = TERMS * TILES - 1; i >= 0; i--) { /* small terms first */
            const int place_of_tile = (i / TILES * DEPTHS + depth) * TILES + i % TILES;
            const uint2 of_phi = *(const uint2 *)(stage + X_BYTES + (place_of_tile * WARP + lane) * sizeof(uint2));
            add_product<T>(step.product[i % TILES], x[0], x[1], x[2], x[3], of_phi.x, of_phi.y);
        }
        step.squares[0] = squares_of<T>(x[2], squares_of<T>(x[0], step.squares[0]));
        step.squares[1] = squares_of<T>(x[3], squares_of<T>(x[1], step.squares[1]));
    }
#pragma unroll
    for (int i = 0; i < TILES * 4; i++) sums.product[i / 4][i % 4] += step.product[i / 4][i % 4];
    sums.squares[0] += step.squares[0], sums.squares[1] += step.squares[1];
}

/* [tokens, m + 1] of a piece. */
__device__ __forceinline__ void store_sums(const problem &p, int64_t first, int group, float *to, mix_sums &sums) {
    const int lane = threadIdx.x % WARP;
    const int64_t m = mhc_m(p.hc), token = first + threadIdx.x / WARP * 16 + lane / 4;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float squares = sums.squares[half];
        squares += __shfl_xor_sync(0xffffffffu, squares, 1);
        squares += __shfl_xor_sync(0xffffffffu, squares, 2);
        const int64_t n = token + half * 8;
        if (n >= p.tokens) continue;
        if (group == 0 && lane % 4 == 0) to[n * (m + 1) + m] = squares;
#pragma unroll
        for (int i = 0; i < TILES * 2; i++) {
            const int64_t column = group * MHC_GROUP + i / 2 * 8 + lane % 4 * 2 + i % 2;
            if (column < m) to[n * (m + 1) + column] = sums.product[i / 2][half * 2 + i % 2];
        }
    }
}

/* Blocks: groups of columns, then tiles of tokens; pieces of k. */
template <typename T, int TERMS>
__global__ void __launch_bounds__(MIX_THREADS, 3)
    mix_on_tensor_cores(const __grid_constant__ problem p, const __grid_constant__ mhc_forward_parts parts) {
    extern __shared__ __align__(128) char memory[];
    enum { STAGES = ring<TERMS>::STAGES, STAGE_BYTES = ring<TERMS>::STAGE_BYTES };
    const int groups = (int)mhc_groups(p.hc), group = (int)(blockIdx.x % groups);
    const int64_t token = (int64_t)(blockIdx.x / groups) * MHC_TILE, all = mhc_ceil(p.hc * p.c, MHC_STEP);
    const int64_t each = mhc_ceil(all, parts.pieces), first = blockIdx.y * each;
    const int64_t end = first + each < all ? first + each : all;
    mix_sums sums = {};
    for (int stage = 0; stage < STAGES - 1; stage++) {
        if (first + stage < end)
            fetch<T, TERMS>(p, token, first + stage, group * all + first + stage, memory + stage * STAGE_BYTES);
        end_of_copies();
    }
    int now = 0;
    for (int64_t step = first; step < end; step++, now = now + 1 == STAGES ? 0 : now + 1) {
        wait_for_copies<STAGES - 2>();
        __syncthreads(); /* this step is there for all, and nobody needs the one before it any more */
        const int64_t next = step + STAGES - 1;
        const int free = now == 0 ? STAGES - 1 : now - 1;
        if (next < end) fetch<T, TERMS>(p, token, next, group * all + next, memory + free * STAGE_BYTES);
        end_of_copies();
        add_stage<T, TERMS>(memory + now * STAGE_BYTES, sums);
    }
    const int64_t floats = p.tokens * (mhc_m(p.hc) + 1);
    store_sums(p, token, group, p.workspace + parts.sums + blockIdx.y * floats, sums);
}

/* ---- x · phi in f32: every mix of dtypes, every alignment --------------------------------------------------------------- */

enum { DEEP = 32, DEEP_PITCH = DEEP + 4, TOKENS_EACH = 4, COLUMNS_EACH = 3 };
enum { COLUMN_THREADS = MHC_GROUP / COLUMNS_EACH, TOKEN_THREADS = MIX_THREADS / COLUMN_THREADS };

/* 32 of k; a warp reads 32 neighbours of x, of every fourth token. */
template <typename T>
__device__ __forceinline__ void load_deep(const problem &p, int64_t token, int group, int64_t k, int64_t end,
                                          float (*x)[DEEP_PITCH], float (*phi)[DEEP_PITCH], float *squares) {
    const int64_t k_count = p.hc * p.c, m = mhc_m(p.hc);
    const int lane = threadIdx.x % WARP;
#pragma unroll
    for (int i = 0; i < MHC_TILE / (MIX_THREADS / WARP); i++) {
        const int row = threadIdx.x / WARP + i * (MIX_THREADS / WARP);
        const bool there = token + row < p.tokens && k + lane < end;
        const float value = there ? to_f32(((const T *)p.x)[(token + row) * k_count + k + lane]) : 0.0f;
        squares[i] = fmaf(value, value, squares[i]);
        x[row][lane] = value;
    }
    for (int item = threadIdx.x; item < DEEP * MHC_GROUP; item += MIX_THREADS) {
        const int64_t at = k + item / MHC_GROUP, column = (int64_t)group * MHC_GROUP + item % MHC_GROUP;
        phi[item % MHC_GROUP][item / MHC_GROUP] =
            at < end && column < m ? load_as(p.phi, p.phi_dtype, at * m + column) : 0.0f;
    }
}

__device__ __forceinline__ void multiply_deep(const float (*x)[DEEP_PITCH], const float (*phi)[DEEP_PITCH],
                                              float (&sum)[TOKENS_EACH][COLUMNS_EACH]) {
    const int token = threadIdx.x / COLUMN_THREADS, column = threadIdx.x % COLUMN_THREADS;
#pragma unroll 2
    for (int k = 0; k < DEEP; k += 4) {
        float4 right[COLUMNS_EACH];
#pragma unroll
        for (int b = 0; b < COLUMNS_EACH; b++) right[b] = *(const float4 *)&phi[column + b * COLUMN_THREADS][k];
#pragma unroll
        for (int a = 0; a < TOKENS_EACH; a++) {
            const float4 left = *(const float4 *)&x[token + a * TOKEN_THREADS][k];
#pragma unroll
            for (int b = 0; b < COLUMNS_EACH; b++) {
                sum[a][b] = fmaf(left.x, right[b].x, sum[a][b]);
                sum[a][b] = fmaf(left.y, right[b].y, sum[a][b]);
                sum[a][b] = fmaf(left.z, right[b].z, sum[a][b]);
                sum[a][b] = fmaf(left.w, right[b].w, sum[a][b]);
            }
        }
    }
}

template <typename T>
__global__ void __launch_bounds__(MIX_THREADS)
    mix_in_f32(const __grid_constant__ problem p, const __grid_constant__ mhc_forward_parts parts) {
    __shared__ __align__(16) float x[MHC_TILE][DEEP_PITCH], phi[MHC_GROUP][DEEP_PITCH];
    constexpr int ROWS = MHC_TILE / (MIX_THREADS / WARP);
    const int groups = (int)mhc_groups(p.hc), group = (int)(blockIdx.x % groups);
    const int64_t token = (int64_t)(blockIdx.x / groups) * MHC_TILE, k_count = p.hc * p.c, m = mhc_m(p.hc);
    const int64_t each = mhc_ceil(mhc_ceil(k_count, MHC_STEP), parts.pieces) * MHC_STEP, first = blockIdx.y * each;
    const int64_t end = first + each < k_count ? first + each : k_count;
    float squares[ROWS] = {}, sum[TOKENS_EACH][COLUMNS_EACH] = {};
    for (int64_t k = first; k < end; k += DEEP) {
        load_deep<T>(p, token, group, k, end, x, phi, squares);
        __syncthreads();
        multiply_deep(x, phi, sum);
        __syncthreads();
    }
    float *to = p.workspace + parts.sums + blockIdx.y * p.tokens * (m + 1);
#pragma unroll
    for (int a = 0; a < TOKENS_EACH; a++) {
        const int64_t n = token + threadIdx.x / COLUMN_THREADS + a * TOKEN_THREADS;
        for (int b = 0; b < COLUMNS_EACH && n < p.tokens; b++) {
            const int64_t column = (int64_t)group * MHC_GROUP + threadIdx.x % COLUMN_THREADS + b * COLUMN_THREADS;
            if (column < m) to[n * (m + 1) + column] = sum[a][b];
        }
    }
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
        const int64_t n = token + threadIdx.x / WARP + i * (MIX_THREADS / WARP);
        const float total = warp_sum(squares[i]);
        if (group == 0 && threadIdx.x % WARP == 0 && n < p.tokens) to[n * (m + 1) + m] = total;
    }
}

/* ---- coefficients ------------------------------------------------------------------------------------------------------- */

/* A column of a token's sums, or its squares, over all pieces. */
__device__ __forceinline__ float total_of(const problem &p, const mhc_forward_parts &parts, int64_t n, int64_t column) {
    const int64_t m = mhc_m(p.hc);
    float sum = 0;
    for (int64_t piece = 0; piece < parts.pieces; piece++)
        sum += p.workspace[parts.sums + (piece * p.tokens + n) * (m + 1) + column];
    return sum;
}
__device__ __forceinline__ float rstd_of(const problem &p, const mhc_forward_parts &parts, int64_t n) {
    return 1.0f / sqrtf(total_of(p, parts, n, mhc_m(p.hc)) / (float)(p.hc * p.c) + p.rms_eps);
}

/* mix, kept for backward, and the logit that is made of it. */
__device__ __forceinline__ float logit_of(const problem &p, const mhc_forward_parts &parts, int64_t n, int64_t column,
                                          float rstd, float alpha, bool keep) {
    const float mix = total_of(p, parts, n, column) * rstd;
    if (keep) p.mix[n * mhc_m(p.hc) + column] = mix;
    return fmaf(mix, alpha, p.formula.b[column]);
}

template <int W>
__global__ void __launch_bounds__(MHC_UNIT_THREADS, W <= 4 ? 8 : 1)
    coefficients_of_lanes(const __grid_constant__ problem p, const __grid_constant__ mhc_forward_parts parts) {
    const int own = threadIdx.x % W, hc = (int)p.hc;
    const int64_t token = (int64_t)blockIdx.x * (MHC_UNIT_THREADS / W) + threadIdx.x / W;
    const bool active = own < hc, there = active && token < p.tokens;
    const int64_t n = token < p.tokens ? token : p.tokens - 1, row = n * hc + own;
    const struct mhc_formula &f = p.formula;
    const float rstd = rstd_of(p, parts, n), alpha = *f.alpha_res;
    float a[W];
#pragma unroll
    for (int i = 0; i < W; i++)
        a[i] = active && i < hc ? logit_of(p, parts, n, 2 * hc + own * hc + i, rstd, alpha, there) : 0.0f;
    softmax_row(a, hc, active);
#pragma unroll
    for (int i = 0; i < W; i++)
        if (i < hc && active) a[i] += f.sinkhorn_eps;
    for (int64_t step = 1; step < 2 * f.steps; step++) sinkhorn_step(a, step, hc, own, f.sinkhorn_eps);
    if (!there) return;
    p.h_pre[row] = logistic(logit_of(p, parts, n, own, rstd, *f.alpha_pre, true)) + f.pre_eps;
    p.h_post[row] = logistic(logit_of(p, parts, n, hc + own, rstd, *f.alpha_post, true)) * f.post_mult;
#pragma unroll
    for (int i = 0; i < W; i++)
        if (i < hc) p.h_res[row * hc + i] = a[i];
    if (own == 0) p.rstd[n] = rstd;
}

/* More streams: mix first, then a block has a token, a thread every so many rows and columns of the matrix, which is where it
 * will be. */
__global__ void __launch_bounds__(MHC_UNIT_THREADS)
    keep_mix(const __grid_constant__ problem p, const __grid_constant__ mhc_forward_parts parts) {
    const int64_t n = blockIdx.x, m_count = mhc_m(p.hc);
    const float rstd = rstd_of(p, parts, n);
    if (threadIdx.x == 0) p.rstd[n] = rstd;
    for (int64_t m = threadIdx.x; m < m_count; m += MHC_UNIT_THREADS)
        p.mix[n * m_count + m] = total_of(p, parts, n, m) * rstd;
}

__global__ void __launch_bounds__(MHC_UNIT_THREADS) begin_rows(const __grid_constant__ problem p) {
    const struct mhc_formula &f = p.formula;
    const int64_t n = blockIdx.x;
    const int hc = (int)p.hc;
    const float *const mix = p.mix + n * mhc_m(hc);
    for (int o = threadIdx.x; o < hc; o += MHC_UNIT_THREADS) {
        float *const row = p.h_res + (n * hc + o) * hc;
        const float *const from = mix + 2 * hc + o * hc, *const b = f.b + 2 * hc + o * hc;
        float most = -INFINITY, sum = 0;
        p.h_pre[n * hc + o] = logistic(fmaf(mix[o], *f.alpha_pre, f.b[o])) + f.pre_eps;
        p.h_post[n * hc + o] = logistic(fmaf(mix[hc + o], *f.alpha_post, f.b[hc + o])) * f.post_mult;
        for (int i = 0; i < hc; i++) most = fmaxf(most, row[i] = fmaf(from[i], *f.alpha_res, b[i]));
        for (int i = 0; i < hc; i++) sum += row[i] = expf(row[i] - most);
        const float inverse = 1.0f / sum;
        for (int i = 0; i < hc; i++) row[i] = fmaf(row[i], inverse, f.sinkhorn_eps);
    }
}

__global__ void __launch_bounds__(MHC_UNIT_THREADS) iterate(const __grid_constant__ problem p) {
    const int hc = (int)p.hc;
    float *const matrix = p.h_res + (int64_t)blockIdx.x * hc * hc;
    for (int64_t step = 1; step < 2 * p.formula.steps; step++) {
        const int line = step % 2 ? 1 : hc, along = step % 2 ? hc : 1;
        for (int l = threadIdx.x; l < hc; l += MHC_UNIT_THREADS) {
            float sum = p.formula.sinkhorn_eps;
            for (int j = 0; j < hc; j++) sum += matrix[l * line + j * along];
            const reciprocal of = reciprocal_of(sum);
            for (int j = 0; j < hc; j++) matrix[l * line + j * along] = times(matrix[l * line + j * along], of);
        }
        __syncthreads();
    }
}

/* ---- launches ----------------------------------------------------------------------------------------------------------- */

template <typename T, int TERMS>
static cudaError_t launch_tensor_cores(const liger_context *context, const problem &p, const mhc_forward_parts &parts,
                                       dim3 grid, cudaStream_t stream) {
    const int64_t items = parts.sums / 2; /* four elements of two bytes */
    const cudaError_t error = allow_shared_memory<mix_on_tensor_cores<T, TERMS>>(context, ring<TERMS>::BYTES);
    if (error != cudaSuccess) return error;
    pack_phi<T><<<grid_size(items, THREADS), THREADS, 0, stream>>>(p, items, TERMS);
    mix_on_tensor_cores<T, TERMS><<<grid, MIX_THREADS, ring<TERMS>::BYTES, stream>>>(p, parts);
    return cudaSuccess;
}

static cudaError_t launch_mix(const liger_context *context, const problem &p, const mhc_forward_parts &parts,
                              cudaStream_t stream) {
    const dim3 grid((unsigned)(mhc_ceil(p.tokens, MHC_TILE) * mhc_groups(p.hc)), (unsigned)parts.pieces);
    if (is_compiled_for(context, 80) && whole_packs(p.hc * p.c, p.dtype) && pointer_is_packable(p.x)) {
        if (p.dtype == LIGER_BF16 && p.phi_dtype == LIGER_F32)
            return launch_tensor_cores<bf16, 3>(context, p, parts, grid, stream);
        if (p.dtype == LIGER_BF16) return launch_tensor_cores<bf16, 1>(context, p, parts, grid, stream);
        if (p.dtype == LIGER_F16 && p.phi_dtype == LIGER_F16)
            return launch_tensor_cores<f16, 1>(context, p, parts, grid, stream);
    }
    LIGER_FOR_FLOAT(p.dtype, T, mix_in_f32<T><<<grid, MIX_THREADS, 0, stream>>>(p, parts);)
    return cudaSuccess;
}

static void launch_coefficients(const problem &p, const mhc_forward_parts &parts, cudaStream_t stream) {
    const int lanes = mhc_lanes(p.hc);
    MHC_FOR_LANES(lanes, W, {
        const unsigned grid = grid_size(p.tokens, MHC_UNIT_THREADS / W);
        coefficients_of_lanes<W><<<grid, MHC_UNIT_THREADS, 0, stream>>>(p, parts);
    })
    if (lanes <= MHC_MOST_LANES) return;
    const unsigned tokens = (unsigned)p.tokens;
    keep_mix<<<tokens, MHC_UNIT_THREADS, 0, stream>>>(p, parts);
    begin_rows<<<tokens, MHC_UNIT_THREADS, 0, stream>>>(p);
    iterate<<<tokens, MHC_UNIT_THREADS, 0, stream>>>(p);
}

} // namespace mhc

extern "C" liger_status mhc_coeffs_forward_cuda(liger_context *context, const mhc_coeffs_forward_problem *problem,
                                                liger_stream given) {
    const mhc_coeffs_forward_problem &p = *problem;
    const cudaStream_t stream = (cudaStream_t)given;
    LIGER_ON_DEVICE(context, "mhc_coeffs_forward");
    const mhc_forward_parts parts =
        mhc_cut_forward(context->multiprocessors, p.tokens, p.hc, p.c, mhc_terms(p.phi_dtype));
    LIGER_TRY(cuda_status(mhc::launch_mix(context, p, parts, stream), "mhc_coeffs_forward"));
    mhc::launch_coefficients(p, parts, stream);
    if (p.x_in) mhc::launch_pre({p.dtype, p.tokens, p.hc, p.c, p.x, p.h_pre, p.x_in}, stream);
    return launched(context, "mhc_coeffs_forward", given);
}
