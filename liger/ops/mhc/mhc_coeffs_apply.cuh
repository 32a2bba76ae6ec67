/* mhc_coeffs_apply.cuh - hyper-connections backward on a GPU, from v and side (mhc_dlogits.cuh) and one read of x to dx and to the
 * sums of dphi, one of each part of the tokens. */
#ifndef LIGER_OPS_MHC_COEFFS_APPLY_CUH
#define LIGER_OPS_MHC_COEFFS_APPLY_CUH

#include "liger/cuda/shared_memory.cuh"
#include "liger/ops/mhc/mhc_streams.cuh"

namespace mhc {

using problem = mhc_coeffs_backward_problem;
using parts_of = mhc_backward_parts;

/* ---- up to 24 coefficients: all of them in registers ------------------------------------------------------------------ */

enum { APPLY_THREADS = 128, SIDE_CHUNKS = MHC_SIDE / 4, V_CHUNKS = MHC_GROUP / 4, ROW_BYTES = 8192 };
template <typename T>
constexpr int tokens_of_stage = ROW_BYTES / (MHC_COLUMNS * (int)sizeof(T));

/* 256 columns of some tokens. */
template <typename T>
struct alignas(16) stage {
    T x[tokens_of_stage<T>][MHC_COLUMNS], so_far[tokens_of_stage<T>][MHC_COLUMNS];
    T dx_in[tokens_of_stage<T>][MHC_COLUMNS];
    float v[tokens_of_stage<T>][MHC_GROUP], side[tokens_of_stage<T>][MHC_SIDE];
};
enum { APPLY_SHARED = 2 * sizeof(stage<bf16>) };
static_assert(sizeof(stage<float>) <= sizeof(stage<bf16>), "f32 has fewer tokens in a stage");
constexpr bool apply_fits() {
    for (const architecture &a : ARCHITECTURES)
        if (dynamic_shared(a.shared) < APPLY_SHARED) return false;
    return true;
}
static_assert(apply_fits(), "two stages must fit every architecture");

/* N columns of a token of all that is read, a chunk of 16 bytes or one: from k on in the token, from `in` on in the stream. */
template <typename T, int N>
__device__ __forceinline__ void fetch_columns(const problem &p, int64_t n, int64_t k, int64_t in, bool there, int row,
                                              int column, stage<T> &to) {
    const int64_t at = there ? n * p.hc * p.c + k : 0, within = there ? n * p.c + in : 0;
    if constexpr (N > 1) {
        copy_or_zero(&to.x[row][column], (const T *)p.x + at, there);
        if (p.dx_so_far) copy_or_zero(&to.so_far[row][column], (const T *)p.dx_so_far + at, there);
        if (p.dx_in) copy_or_zero(&to.dx_in[row][column], (const T *)p.dx_in + within, there);
    } else {
        const T zero = from_f32<T>(0.0f);
        to.x[row][column] = there ? ((const T *)p.x)[at] : zero;
        if (p.dx_so_far) to.so_far[row][column] = there ? ((const T *)p.dx_so_far)[at] : zero;
        if (p.dx_in) to.dx_in[row][column] = there ? ((const T *)p.dx_in)[within] : zero;
    }
}

/* A thread's columns are the same in every stage; so is where they lie in their stream. */
template <typename T, int N>
struct fetched_columns {
    enum { ACROSS = MHC_COLUMNS / N, TURNS = ACROSS > APPLY_THREADS ? ACROSS / APPLY_THREADS : 1 };
    enum { DOWN = ACROSS > APPLY_THREADS ? 1 : APPLY_THREADS / ACROSS }; /* rows at a time */
    int64_t k[TURNS], in[TURNS];

    __device__ __forceinline__ fetched_columns(const problem &p) {
#pragma unroll
        for (int turn = 0; turn < TURNS; turn++) {
            k[turn] = (int64_t)blockIdx.x * MHC_COLUMNS + column(turn);
            in[turn] = k[turn] % p.c;
        }
    }
    static __device__ __forceinline__ int column(int turn) { return (threadIdx.x % ACROSS + turn * APPLY_THREADS) * N; }
};

template <typename T, int N>
__device__ __forceinline__ void fetch_stage(const problem &p, const parts_of &parts, int64_t first, int64_t end,
                                            const fetched_columns<T, N> &columns, stage<T> &to) {
    using own = fetched_columns<T, N>;
#pragma unroll
    for (int row = 0; row < tokens_of_stage<T>; row += own::DOWN) {
        const int mine = row + (own::DOWN > 1 ? threadIdx.x / own::ACROSS : 0);
#pragma unroll
        for (int turn = 0; turn < own::TURNS; turn++) {
            const bool there = first + mine < end && columns.k[turn] < p.hc * p.c;
            fetch_columns<T, N>(p, first + mine, columns.k[turn], columns.in[turn], there, mine, own::column(turn), to);
        }
    }
    for (int item = threadIdx.x; item < tokens_of_stage<T> * (V_CHUNKS + SIDE_CHUNKS); item += APPLY_THREADS) {
        const int row = item / (V_CHUNKS + SIDE_CHUNKS), chunk = item % (V_CHUNKS + SIDE_CHUNKS);
        const bool there = first + row < end;
        const int64_t n = there ? first + row : 0;
        if (chunk < V_CHUNKS)
            copy_or_zero(&to.v[row][chunk * 4], p.workspace + parts.v + n * MHC_GROUP + chunk * 4, there);
        else
            copy_or_zero(&to.side[row][(chunk - V_CHUNKS) * 4],
                         p.workspace + parts.side + n * MHC_SIDE + (chunk - V_CHUNKS) * 4, there);
    }
    end_of_copies();
}

/* Of two columns: what they multiply dmix with, what they add up, and whose they are. */
struct two_columns {
    float phi[2][MHC_GROUP], dphi[2][MHC_GROUP];
    int64_t k;
    int stream[2];
};

template <typename T, int N>
__device__ __forceinline__ void apply_token(const problem &p, const stage<T> &from, int row, int64_t n,
                                            two_columns &own) {
    pack<T, 2> two;
    float x[2], dx[2] = {}, more[2];
    const int column = threadIdx.x * 2;
    unpack(*(const pack<T, 2> *)&from.x[row][column], x);
#pragma unroll
    for (int m = 0; m < MHC_GROUP; m += 4) {
        const float4 four = *(const float4 *)&from.v[row][m];
        const float v[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const int which = i / 4, at = m + i % 4;
            dx[which] = fmaf(v[i % 4], own.phi[which][at], dx[which]);
            own.dphi[which][at] = fmaf(v[i % 4], x[which], own.dphi[which][at]);
        }
    }
    if (!p.dx) return;
    const float of_x = from.side[row][p.hc];
    dx[0] = fmaf(of_x, x[0], dx[0]), dx[1] = fmaf(of_x, x[1], dx[1]);
    if (p.dx_in) {
        unpack(*(const pack<T, 2> *)&from.dx_in[row][column], more);
        dx[0] = fmaf(from.side[row][own.stream[0]], more[0], dx[0]);
        dx[1] = fmaf(from.side[row][own.stream[1]], more[1], dx[1]);
    }
    if (p.dx_so_far) {
        unpack(*(const pack<T, 2> *)&from.so_far[row][column], more);
        dx[0] += more[0], dx[1] += more[1];
    }
    const int64_t k_count = p.hc * p.c;
    T *const to = (T *)p.dx + n * k_count + own.k;
    if constexpr (N > 1) {
        repack(dx, two);
        if (own.k < k_count) store_pack<T, 2>(to, two);
    } else {
        if (own.k < k_count) to[0] = from_f32<T>(dx[0]);
        if (own.k + 1 < k_count) to[1] = from_f32<T>(dx[1]);
    }
}

__device__ __forceinline__ void begin_columns(const problem &p, two_columns &own) {
    const int64_t k_count = p.hc * p.c, m_count = mhc_m(p.hc);
    own.k = (int64_t)blockIdx.x * MHC_COLUMNS + threadIdx.x * 2;
#pragma unroll
    for (int which = 0; which < 2; which++) {
        const int64_t k = own.k + which;
        own.stream[which] = k < k_count ? (int)(k / p.c) : 0;
#pragma unroll
        for (int m = 0; m < MHC_GROUP; m++) {
            const bool there = p.dx && k < k_count && m < m_count;
            own.phi[which][m] = there ? load_as(p.phi, p.phi_dtype, k * m_count + m) : 0.0f;
            own.dphi[which][m] = 0;
        }
    }
}

/* Blocks of columns, and of tokens. */
template <typename T, int N>
__global__ void __launch_bounds__(APPLY_THREADS, 3)
    apply_in_registers(const __grid_constant__ problem p, const __grid_constant__ parts_of parts) {
    constexpr int TOKENS = tokens_of_stage<T>;
    extern __shared__ __align__(128) char memory[];
    stage<T> *const stages = (stage<T> *)memory;
    const int64_t each = mhc_ceil(p.tokens, parts.adders), first = blockIdx.y * each, k_count = p.hc * p.c;
    const int64_t end = first + each < p.tokens ? first + each : p.tokens, m_count = mhc_m(p.hc);
    two_columns own;
    const fetched_columns<T, N> columns(p);
    begin_columns(p, own);
    if (first < end) fetch_stage<T, N>(p, parts, first, end, columns, stages[0]);
    int now = 0;
    for (int64_t n = first; n < end; n += TOKENS, now ^= 1) {
        if (n + TOKENS < end) fetch_stage<T, N>(p, parts, n + TOKENS, end, columns, stages[now ^ 1]);
        else end_of_copies();
        wait_for_copies<1>();
        __syncthreads();
        const int rows = end - n < TOKENS ? (int)(end - n) : TOKENS;
        for (int row = 0; row < rows; row++) apply_token<T, N>(p, stages[now], row, n + row, own);
        __syncthreads(); /* nobody needs this stage any more */
    }
    if (!p.dphi) return;
    float *const to = p.workspace + parts.dphi + (blockIdx.y * k_count + own.k) * m_count;
#pragma unroll
    for (int which = 0; which < 2; which++)
#pragma unroll
        for (int m = 0; m < MHC_GROUP; m++)
            if (own.k + which < k_count && m < m_count) to[which * m_count + m] = own.dphi[which][m];
}

/* ---- more coefficients ------------------------------------------------------------------------------------------------ */

enum { DX_TOKENS = 8 };

/* A thread has a column, and eight tokens at a time. */
template <typename T>
__global__ void __launch_bounds__(APPLY_THREADS)
    dx_of_many(const __grid_constant__ problem p, const __grid_constant__ parts_of parts) {
    __shared__ float v[MHC_GROUP][DX_TOKENS];
    const int64_t k = (int64_t)blockIdx.x * APPLY_THREADS + threadIdx.x, k_count = p.hc * p.c, m_count = mhc_m(p.hc);
    const int64_t s = k < k_count ? k / p.c : 0;
    for (int64_t first = (int64_t)blockIdx.y * DX_TOKENS; first < p.tokens; first += (int64_t)gridDim.y * DX_TOKENS) {
        float dx[DX_TOKENS] = {};
        for (int64_t from = 0; from < m_count; from += MHC_GROUP) {
            for (int item = threadIdx.x; item < MHC_GROUP * DX_TOKENS; item += APPLY_THREADS) {
                const int64_t n = first + item / MHC_GROUP;
                v[item % MHC_GROUP][item / MHC_GROUP] =
                    n < p.tokens ? p.workspace[parts.v + n * parts.v_stride + from + item % MHC_GROUP] : 0.0f;
            }
            __syncthreads();
            for (int m = 0; m < MHC_GROUP && from + m < m_count && k < k_count; m++) {
                const float phi = load_as(p.phi, p.phi_dtype, k * m_count + from + m);
#pragma unroll
                for (int t = 0; t < DX_TOKENS; t++) dx[t] = fmaf(v[m][t], phi, dx[t]);
            }
            __syncthreads();
        }
        if (k >= k_count) continue;
#pragma unroll
        for (int t = 0; t < DX_TOKENS; t++) {
            const int64_t n = first + t, at = n * k_count + k;
            if (n >= p.tokens) continue;
            const float *side = p.workspace + parts.side + n * parts.side_stride;
            dx[t] = fmaf(side[p.hc], to_f32(((const T *)p.x)[at]), dx[t]);
            if (p.dx_in) dx[t] = fmaf(side[s], to_f32(((const T *)p.dx_in)[n * p.c + k - s * p.c]), dx[t]);
            if (p.dx_so_far) dx[t] += to_f32(((const T *)p.dx_so_far)[at]);
            ((T *)p.dx)[at] = from_f32<T>(dx[t]);
        }
    }
}

/* A thread has a column and 24 coefficients; blocks of columns, of tokens, of coefficients. */
template <typename T>
__global__ void __launch_bounds__(APPLY_THREADS)
    dphi_of_many(const __grid_constant__ problem p, const __grid_constant__ parts_of parts) {
    __shared__ __align__(16) float v[DX_TOKENS][MHC_GROUP];
    const int64_t k = (int64_t)blockIdx.x * APPLY_THREADS + threadIdx.x, k_count = p.hc * p.c, m_count = mhc_m(p.hc);
    const int64_t each = mhc_ceil(p.tokens, parts.adders), begin = blockIdx.y * each, from = blockIdx.z * MHC_GROUP;
    const int64_t end = begin + each < p.tokens ? begin + each : p.tokens;
    float sum[MHC_GROUP] = {};
    for (int64_t first = begin; first < end; first += DX_TOKENS) {
        for (int item = threadIdx.x; item < MHC_GROUP * DX_TOKENS; item += APPLY_THREADS) {
            const int64_t n = first + item / MHC_GROUP;
            v[item / MHC_GROUP][item % MHC_GROUP] =
                n < end ? p.workspace[parts.v + n * parts.v_stride + from + item % MHC_GROUP] : 0.0f;
        }
        __syncthreads();
        for (int t = 0; t < DX_TOKENS && first + t < end && k < k_count; t++) {
            const float x = to_f32(((const T *)p.x)[(first + t) * k_count + k]);
#pragma unroll
            for (int m = 0; m < MHC_GROUP; m++) sum[m] = fmaf(v[t][m], x, sum[m]);
        }
        __syncthreads();
    }
    if (k >= k_count) return;
    float *const to = p.workspace + parts.dphi + (blockIdx.y * k_count + k) * m_count + from;
#pragma unroll
    for (int m = 0; m < MHC_GROUP; m++)
        if (from + m < m_count) to[m] = sum[m];
}

template <typename T, int N>
static cudaError_t launch_in_registers(const liger_context *context, const problem &p, const parts_of &parts,
                                       cudaStream_t stream) {
    const dim3 grid(grid_size(p.hc * p.c, MHC_COLUMNS), (unsigned)parts.adders);
    const cudaError_t error = allow_shared_memory<apply_in_registers<T, N>>(context, APPLY_SHARED);
    if (error != cudaSuccess) return error;
    apply_in_registers<T, N><<<grid, APPLY_THREADS, APPLY_SHARED, stream>>>(p, parts);
    return cudaSuccess;
}

template <typename T>
static cudaError_t launch_apply(const liger_context *context, const problem &p, const parts_of &parts,
                                cudaStream_t stream) {
    const bool packable = whole_packs(p.c, p.dtype) && pointer_is_packable(p.x) && pointer_is_packable(p.dx) &&
                          pointer_is_packable(p.dx_so_far) && pointer_is_packable(p.dx_in);
    if (mhc_m(p.hc) <= MHC_GROUP)
        return packable ? launch_in_registers<T, pack_size<T>>(context, p, parts, stream)
                        : launch_in_registers<T, 1>(context, p, parts, stream);
    const unsigned columns = grid_size(p.hc * p.c, APPLY_THREADS);
    if (p.dx && p.tokens > 0)
        dx_of_many<T><<<dim3(columns, grid_size(p.tokens, DX_TOKENS, 65535)), APPLY_THREADS, 0, stream>>>(p, parts);
    if (p.dphi)
        dphi_of_many<T>
            <<<dim3(columns, (unsigned)parts.adders, (unsigned)mhc_groups(p.hc)), APPLY_THREADS, 0, stream>>>(p, parts);
    return cudaSuccess;
}

} // namespace mhc

#endif
