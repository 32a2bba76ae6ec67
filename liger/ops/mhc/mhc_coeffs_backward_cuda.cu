/* mhc_coeffs_backward_cuda.cu - the coefficients of hyper-connections on the GPU, backward.
 *
 * Of N = 16384 tokens of 4 streams of 4096 in bf16, x 537 MB:
 *   1. ⟨dx_in, x⟩ of each stream: 1.25 x, .16 ms at 4.26 TB/s.
 *   2. each token's dlogits: 4 threads a token repeat Sinkhorn's iteration in registers, keep what each step has divided by (10 MB,
 *      which stay in L2) and go back, undoing the divisions: 10 us. Σ dlogits and Σ dlogits · mix are added up beside it.
 *   3. dx and dphi from one read: x, dx_so_far, dx_in (.25 x) and dx move 3.25 x, .41 ms. rstd · dmix is f32, and so are its
 *      products with phi and x: 48 multiplications for each element of x, 12.9 G, .45 ms on the H200's 128 of a multiprocessor and
 *      cycle: both bounds are close, and this one is the larger. On tensor cores the factor would have to be three bf16s.
 *      A thread has two columns of x, their 48 numbers of phi and 48 sums for dphi in registers, and goes through tokens, which
 *      come in two stages of 16 through shared memory: 24 KB of them are on their way while 24 KB are worked on, in three blocks a
 *      multiprocessor. 64 blocks along k times 6 along the tokens are one wave.
 *   4. dphi is the sum of the 6 in order: 9 MB, 5 us.
 * Prediction: .8 ms. */
#include "liger/core/kernel_table.h"
#include "liger/cuda/shared_memory.cuh"
#include "liger/ops/mhc/mhc_sinkhorn.cuh"
#include "liger/ops/mhc/mhc_streams.cuh"

namespace mhc {

using problem = mhc_coeffs_backward_problem;
using parts_of = mhc_backward_parts;

/* ---- dlogits -------------------------------------------------------------------------------------------------------------- */

__device__ __forceinline__ float or_zero(const float *from, int64_t i) { return from ? from[i] : 0.0f; }

/* What comes from above of h_pre[stream]. */
__device__ __forceinline__ float upstream_of_pre(const problem &p, const parts_of &parts, int64_t stream) {
    const float given = or_zero(p.dh_pre, stream);
    return p.dx_in ? given + p.workspace[parts.dots + stream] : given;
}

/* A row of the gradient of h_res becomes that of the logits whose row is given. */
template <int W>
__device__ __forceinline__ void residual_backward(const struct mhc_formula &f, float (&logit)[W], float (&g)[W], int hc,
                                                  int own, float *history) {
    float a[W];
    softmax_row(logit, hc, own < hc);
#pragma unroll
    for (int i = 0; i < W; i++) a[i] = i < hc && own < hc ? logit[i] + f.sinkhorn_eps : 0.0f;
    const int64_t last = 2 * f.steps - 1;
    for (int64_t step = 1; step <= last; step++)
        history[step * MHC_UNIT_THREADS] = sinkhorn_step(a, step, hc, own, f.sinkhorn_eps);
    for (int64_t step = last; step > 0; step--) undo_step(a, g, step, hc, own, history[step * MHC_UNIT_THREADS]);
    float dot = 0;
#pragma unroll
    for (int i = 0; i < W; i++) dot = fmaf(g[i], logit[i], dot);
#pragma unroll
    for (int i = 0; i < W; i++) g[i] = (g[i] - dot) * logit[i];
}

/* Of a row of a token: its logits of h_pre and h_post, and its row of h_res. */
template <int W>
struct row_gradient {
    float res[W], pre, post;
};

/* What the token's rows have found, as v and beside it. mix likewise holds this row's. */
template <int W>
__device__ __forceinline__ void store_token(const problem &p, const parts_of &parts, int64_t n, int own, float h_pre,
                                            const row_gradient<W> &dlogits, const row_gradient<W> &mix, bool there) {
    const int hc = (int)p.hc;
    const struct mhc_formula &f = p.formula;
    const float rstd = p.rstd[n], pre = *f.alpha_pre * rstd, post = *f.alpha_post * rstd, res = *f.alpha_res * rstd;
    float *const v = p.workspace + parts.v + n * parts.v_stride;
    float *const side = p.workspace + parts.side + n * parts.side_stride;
    float along = fmaf(pre * dlogits.pre, mix.pre, post * dlogits.post * mix.post);
#pragma unroll
    for (int i = 0; i < W; i++) along = fmaf(res * dlogits.res[i], mix.res[i], along);
    along = sum_of_lanes<W>(along);
    if (!there) return;
    v[own] = pre * dlogits.pre, v[hc + own] = post * dlogits.post;
#pragma unroll
    for (int i = 0; i < W; i++)
        if (i < hc) v[2 * hc + own * hc + i] = res * dlogits.res[i];
    for (int64_t i = mhc_m(hc) + own; i < parts.v_stride; i += hc) v[i] = 0;
    side[own] = h_pre;
    for (int64_t i = hc + own; i < parts.side_stride; i += hc)
        side[i] = i == hc ? -(rstd / (float)(p.hc * p.c)) * along : 0.0f;
}

/* A row of a token; mix is set. Rows that are none, and tokens behind the last, have zeros. */
template <int W>
__device__ __forceinline__ row_gradient<W> dlogits_of(const problem &p, const parts_of &parts, int64_t n, int own,
                                                      float *history, row_gradient<W> &mix, float &h_pre, bool active) {
    const int hc = (int)p.hc;
    const int64_t stream = n * hc + (active ? own : 0);
    const struct mhc_formula &f = p.formula;
    const float *from = p.mix + n * mhc_m(hc);
    row_gradient<W> to;
    float logit[W];
#pragma unroll
    for (int i = 0; i < W; i++) {
        const int column = 2 * hc + own * hc + i;
        const bool there = active && i < hc;
        mix.res[i] = there ? from[column] : 0.0f;
        logit[i] = there ? fmaf(mix.res[i], *f.alpha_res, f.b[column]) : 0.0f;
        to.res[i] = there ? or_zero(p.dh_res, stream * hc + i) : 0.0f;
    }
    if (p.dh_res) residual_backward(f, logit, to.res, hc, own, history);
    mix.pre = mix.post = to.pre = to.post = h_pre = 0;
    if (!active) return to;
    mix.pre = from[own], mix.post = from[hc + own];
    const float pre = fmaf(mix.pre, *f.alpha_pre, f.b[own]), post = fmaf(mix.post, *f.alpha_post, f.b[hc + own]);
    h_pre = logistic(pre) + f.pre_eps;
    to.pre = upstream_of_pre(p, parts, stream) * logistic_slope(pre);
    to.post = or_zero(p.dh_post, stream) * f.post_mult * logistic_slope(post);
    return to;
}

/* Threads' sums of rows over the rows of the same number of a unit, to [2, m]. */
template <int W>
__device__ __forceinline__ void store_unit(const problem &p, const parts_of &parts, const row_gradient<W> (&sums)[2]) {
    enum { VALUES = W + 2, UNIT_WARPS = MHC_UNIT_THREADS / WARP };
    __shared__ float slots[UNIT_WARPS][2][VALUES][W];
    const int lane = threadIdx.x % WARP, hc = (int)p.hc;
#pragma unroll
    for (int part = 0; part < 2; part++)
#pragma unroll
        for (int i = 0; i < VALUES; i++) {
            float value = i < W ? sums[part].res[i < W ? i : 0] : i == W ? sums[part].pre : sums[part].post;
#pragma unroll
            for (int offset = W; offset < WARP; offset *= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
            if (lane < W) slots[threadIdx.x / WARP][part][i][lane] = value;
        }
    __syncthreads();
    float *const to = p.workspace + parts.sums + blockIdx.x * 2 * mhc_m(hc);
    for (int item = threadIdx.x; item < 2 * VALUES * W; item += MHC_UNIT_THREADS) {
        const int part = item / (VALUES * W), i = item / W % VALUES, own = item % W;
        if (own >= hc || (i < W && i >= hc)) continue;
        float total = 0;
        for (int warp = 0; warp < UNIT_WARPS; warp++) total += slots[warp][part][i][own];
        to[part * mhc_m(hc) + (i < W ? 2 * hc + own * hc + i : i == W ? own : hc + own)] = total;
    }
}

template <int W>
__global__ void __launch_bounds__(MHC_UNIT_THREADS)
    dlogits_of_lanes(const __grid_constant__ problem p, const __grid_constant__ parts_of parts) {
    constexpr int EACH = MHC_UNIT_THREADS / W;
    const int own = threadIdx.x % W;
    float *history = p.workspace + parts.history + blockIdx.x * parts.history_stride + threadIdx.x;
    row_gradient<W> sums[2] = {};
    for (int64_t first = (int64_t)blockIdx.x * EACH; first < p.tokens; first += (int64_t)gridDim.x * EACH) {
        const int64_t token = first + threadIdx.x / W, n = token < p.tokens ? token : p.tokens - 1;
        const bool there = own < p.hc && token < p.tokens;
        row_gradient<W> mix;
        float h_pre;
        const row_gradient<W> dlogits = dlogits_of(p, parts, n, own, history, mix, h_pre, own < p.hc);
        store_token(p, parts, n, own, h_pre, dlogits, mix, there);
        if (!there) continue;
        sums[0].pre += dlogits.pre, sums[0].post += dlogits.post;
        sums[1].pre = fmaf(dlogits.pre, mix.pre, sums[1].pre);
        sums[1].post = fmaf(dlogits.post, mix.post, sums[1].post);
#pragma unroll
        for (int i = 0; i < W; i++) {
            sums[0].res[i] += dlogits.res[i];
            sums[1].res[i] = fmaf(dlogits.res[i], mix.res[i], sums[1].res[i]);
        }
    }
    store_unit(p, parts, sums);
}

/* ---- dlogits of more streams: a block has a token ---------------------------------------------------------------------------- */

__device__ __forceinline__ void softmax_rows(const problem &p, const float *mix, float *a) {
    const struct mhc_formula &f = p.formula;
    for (int64_t o = threadIdx.x; o < p.hc; o += blockDim.x) {
        float *row = a + o * p.hc, most = -INFINITY, sum = 0;
        for (int64_t i = 0; i < p.hc; i++) {
            const int64_t column = 2 * p.hc + o * p.hc + i;
            most = fmaxf(most, row[i] = fmaf(mix[column], *f.alpha_res, f.b[column]));
        }
        for (int64_t i = 0; i < p.hc; i++) sum += row[i] = expf(row[i] - most);
        const float inverse = 1.0f / sum;
        for (int64_t i = 0; i < p.hc; i++) row[i] *= inverse;
    }
    __syncthreads();
}

/* One step forward (without a gradient) or back over all lines of the matrix. */
__device__ __forceinline__ void block_step(const problem &p, int64_t step, float *a, float *g, float *divisor) {
    const int64_t hc = p.hc, line = step % 2 ? 1 : hc, along = step % 2 ? hc : 1;
    for (int64_t l = threadIdx.x; l < hc; l += blockDim.x) {
        const int64_t end = l * line + hc * along;
        float sum = g ? 0 : p.formula.sinkhorn_eps;
        for (int64_t j = l * line; j < end; j += along) sum = g ? fmaf(g[j], a[j], sum) : sum + a[j];
        if (!g) divisor[l] = sum;
        const float by = divisor[l];
        const reciprocal of = reciprocal_of(by);
        for (int64_t j = l * line; j < end; j += along) {
            if (g) g[j] = times(g[j] - sum, of);
            a[j] = g ? a[j] * by : times(a[j], of);
        }
    }
    __syncthreads();
}

__device__ __forceinline__ void block_residual_backward(const problem &p, const float *mix, float *g, float *a) {
    const int64_t hc = p.hc, last = 2 * p.formula.steps - 1;
    float *const history = a + hc * hc;
    softmax_rows(p, mix, a);
    for (int64_t i = threadIdx.x; i < hc * hc; i += blockDim.x) a[i] += p.formula.sinkhorn_eps;
    __syncthreads();
    for (int64_t step = 1; step <= last; step++) block_step(p, step, a, NULL, history + step * hc);
    for (int64_t step = last; step > 0; step--) block_step(p, step, a, g, history + step * hc);
    softmax_rows(p, mix, a);
    for (int64_t o = threadIdx.x; o < hc; o += blockDim.x) {
        float dot = 0;
        for (int64_t i = o * hc; i < (o + 1) * hc; i++) dot = fmaf(g[i], a[i], dot);
        for (int64_t i = o * hc; i < (o + 1) * hc; i++) g[i] = (g[i] - dot) * a[i];
    }
    __syncthreads();
}

/* dlogits of h_pre and h_post, and what v's last hc² begin as. */
__device__ __forceinline__ void begin_token(const problem &p, const parts_of &parts, int64_t n, float *v, float *side) {
    const struct mhc_formula &f = p.formula;
    const float *mix = p.mix + n * mhc_m(p.hc);
    for (int64_t s = threadIdx.x; s < p.hc; s += blockDim.x) {
        const float pre = fmaf(mix[s], *f.alpha_pre, f.b[s]);
        const float post = fmaf(mix[p.hc + s], *f.alpha_post, f.b[p.hc + s]);
        side[s] = logistic(pre) + f.pre_eps;
        v[s] = upstream_of_pre(p, parts, n * p.hc + s) * logistic_slope(pre);
        v[p.hc + s] = or_zero(p.dh_post, n * p.hc + s) * f.post_mult * logistic_slope(post);
    }
    for (int64_t i = threadIdx.x; i < p.hc * p.hc; i += blockDim.x)
        v[2 * p.hc + i] = or_zero(p.dh_res, n * p.hc * p.hc + i);
    __syncthreads();
}

/* v from dlogits, and their sums, of which each thread has its own columns. */
__device__ __forceinline__ void finish_token(const problem &p, const parts_of &parts, int64_t n, float *v, float *side,
                                             float *sums, bool first, float (*slots)[MAX_WARPS]) {
    const struct mhc_formula &f = p.formula;
    const int64_t m_count = mhc_m(p.hc);
    const float *mix = p.mix + n * m_count, rstd = p.rstd[n];
    float along[1] = {0};
    for (int64_t m = threadIdx.x; m < parts.v_stride; m += blockDim.x) {
        const float alpha = m < p.hc ? *f.alpha_pre : m < 2 * p.hc ? *f.alpha_post : *f.alpha_res;
        const float dlogit = m < m_count ? v[m] : 0.0f;
        v[m] = alpha * rstd * dlogit;
        if (m >= m_count) continue;
        along[0] = fmaf(v[m], mix[m], along[0]);
        sums[m] = first ? dlogit : sums[m] + dlogit;
        sums[m_count + m] = fmaf(dlogit, mix[m], first ? 0.0f : sums[m_count + m]);
    }
    group_sums<1>(along, slots, 0, MHC_UNIT_THREADS / WARP);
    if (threadIdx.x == 0) side[p.hc] = -(rstd / (float)(p.hc * p.c)) * along[0];
}

__global__ void __launch_bounds__(MHC_UNIT_THREADS)
    dlogits_of_block(const __grid_constant__ problem p, const __grid_constant__ parts_of parts) {
    __shared__ float slots[2][1][MAX_WARPS];
    float *const sums = p.workspace + parts.sums + blockIdx.x * 2 * mhc_m(p.hc);
    float *const room = p.workspace + parts.history + blockIdx.x * parts.history_stride;
    int turn = 0;
    for (int64_t n = blockIdx.x; n < p.tokens; n += gridDim.x, turn ^= 1) {
        float *const v = p.workspace + parts.v + n * parts.v_stride;
        float *const side = p.workspace + parts.side + n * parts.side_stride;
        begin_token(p, parts, n, v, side);
        if (p.dh_res) block_residual_backward(p, p.mix + n * mhc_m(p.hc), v + 2 * p.hc, room);
        finish_token(p, parts, n, v, side, sums, n == blockIdx.x, slots[turn]);
    }
}

/* ---- dx and dphi of up to 24 coefficients: all of them in registers ------------------------------------------------------------ */

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

/* ---- dx and dphi of more coefficients ---------------------------------------------------------------------------------------- */

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

/* ---- what was added up in parts ------------------------------------------------------------------------------------------------ */

__global__ void __launch_bounds__(THREADS)
    add_dphi(const __grid_constant__ problem p, const __grid_constant__ parts_of parts) {
    const int64_t count = p.hc * p.c * mhc_m(p.hc), i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    float sum = 0;
    if (i >= count) return;
    for (int64_t adder = 0; adder < parts.adders; adder++) sum += p.workspace[parts.dphi + adder * count + i];
    store_as(p.dphi, p.phi_dtype, i, sum);
}

/* One block: 32 columns at a time, 32 fixed interleaved sums of each, then those in order. */
__global__ void __launch_bounds__(1024)
    add_units(const __grid_constant__ problem p, const __grid_constant__ parts_of parts) {
    __shared__ float sums[32][33];
    const int64_t m_count = mhc_m(p.hc);
    float *const totals = p.workspace + parts.totals;
    for (int64_t first = 0; first < 2 * m_count; first += 32) {
        const int64_t column = first + threadIdx.x;
        float sum = 0;
        if (column < 2 * m_count)
            for (int64_t unit = threadIdx.y; unit < parts.units; unit += 32)
                sum += p.workspace[parts.sums + unit * 2 * m_count + column];
        sums[threadIdx.y][threadIdx.x] = sum;
        __syncthreads();
        const float total = warp_sum(sums[threadIdx.x][threadIdx.y]); /* transposed: warp y owns column y */
        if (threadIdx.x == 0 && first + threadIdx.y < 2 * m_count) totals[first + threadIdx.y] = total;
        __syncthreads();
    }
    for (int64_t m = threadIdx.y * 32 + threadIdx.x; p.db && m < m_count; m += 1024) p.db[m] = totals[m];
    if (threadIdx.y >= 3) return;
    const int64_t begin = threadIdx.y * p.hc, end = threadIdx.y == 2 ? m_count : begin + p.hc;
    float *const dalpha = threadIdx.y == 0 ? p.dalpha_pre : threadIdx.y == 1 ? p.dalpha_post : p.dalpha_res;
    float sum = 0;
    for (int64_t m = begin + threadIdx.x; m < end; m += 32) sum += totals[m_count + m];
    sum = warp_sum(sum);
    if (threadIdx.x == 0 && dalpha) *dalpha = sum;
}

/* ---- launches -------------------------------------------------------------------------------------------------------------------- */

static void launch_dlogits(const problem &p, const parts_of &parts, cudaStream_t stream) {
    const int lanes = mhc_lanes(p.hc);
    const unsigned grid = (unsigned)parts.units;
    if (p.dx_in)
        launch_pre_backward({p.dtype, p.tokens, p.hc, p.c, p.dx_in, p.x, NULL, NULL, p.workspace + parts.dots}, stream);
    MHC_FOR_LANES(lanes, W, { dlogits_of_lanes<W><<<grid, MHC_UNIT_THREADS, 0, stream>>>(p, parts); })
    if (lanes > MHC_MOST_LANES) dlogits_of_block<<<grid, MHC_UNIT_THREADS, 0, stream>>>(p, parts);
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

extern "C" liger_status mhc_coeffs_backward_cuda(liger_context *context, const mhc_coeffs_backward_problem *problem,
                                                 liger_stream given) {
    const mhc_coeffs_backward_problem &p = *problem;
    const cudaStream_t stream = (cudaStream_t)given;
    cudaError_t error = cudaSuccess;
    LIGER_ON_DEVICE(context, "mhc_coeffs_backward");
    const mhc_backward_parts parts = mhc_cut_backward(context->multiprocessors, p.tokens, p.hc, p.c, p.formula.steps);
    if (p.tokens > 0) mhc::launch_dlogits(p, parts, stream);
    if (p.dx || p.dphi) LIGER_FOR_FLOAT(p.dtype, T, error = mhc::launch_apply<T>(context, p, parts, stream);)
    LIGER_TRY(cuda_status(error, "mhc_coeffs_backward"));
    if (p.dphi) mhc::add_dphi<<<grid_size(p.hc * p.c * mhc_m(p.hc), mhc::THREADS), mhc::THREADS, 0, stream>>>(p, parts);
    if (p.db || p.dalpha_pre || p.dalpha_post || p.dalpha_res) mhc::add_units<<<1, dim3(32, 32), 0, stream>>>(p, parts);
    return launched(context, "mhc_coeffs_backward", given);
}
