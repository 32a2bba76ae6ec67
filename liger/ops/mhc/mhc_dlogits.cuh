/* mhc_dlogits.cuh - hyper-connections backward on a GPU, from what comes from above of a token's coefficients to what its mix is
 * multiplied with: dlogits · alpha · rstd (v), what dx needs beside it (side), and the sums over tokens, a row of each block. */
#ifndef LIGER_OPS_MHC_DLOGITS_CUH
#define LIGER_OPS_MHC_DLOGITS_CUH

#include "liger/ops/mhc/mhc_sinkhorn.cuh"
#include "liger/ops/mhc/mhc_streams.cuh"

namespace mhc {

using problem = mhc_coeffs_backward_problem;
using parts_of = mhc_backward_parts;

/* ---- a row of a token to a thread ------------------------------------------------------------------------------------- */

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

/* ---- more streams: a block has a token -------------------------------------------------------------------------------- */

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
    group_sums(along, slots, 0, MHC_UNIT_THREADS / WARP);
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

static void launch_dlogits(const problem &p, const parts_of &parts, cudaStream_t stream) {
    const int lanes = mhc_lanes(p.hc);
    const unsigned grid = (unsigned)parts.units;
    if (p.dx_in)
        launch_pre_backward({p.dtype, p.tokens, p.hc, p.c, p.dx_in, p.x, NULL, NULL, p.workspace + parts.dots}, stream);
    MHC_FOR_LANES(lanes, W, { dlogits_of_lanes<W><<<grid, MHC_UNIT_THREADS, 0, stream>>>(p, parts); })
    if (lanes > MHC_MOST_LANES) dlogits_of_block<<<grid, MHC_UNIT_THREADS, 0, stream>>>(p, parts);
}

} // namespace mhc

#endif
