/* mta_window.cuh - multi-token attention's correlation with multiplications in f32: planes and taps of any dtype, no stride or
 * dilation, at most 9 columns and 17 rows of taps.
 *
 * A block has 64 x 64 outputs, its window in shared memory as f32; a thread has 4 x 4 outputs and takes 12 inputs of a row at a
 * time: 3 loads for up to 4 rows of 9 taps, 144 multiplications. Bench shape in f32: 10.9 G multiplications, .37 ms at the rate
 * of an H200, and 1.6 GB of memory, .38 ms. */
#ifndef LIGER_OPS_MTA_WINDOW_CUH
#define LIGER_OPS_MTA_WINDOW_CUH

#include "liger/cuda/launch.cuh"
#include "liger/ops/multi_token_attention/mta_source.cuh"

namespace mta {

enum { SIDE = 64, OWN = 4, WINDOW_THREADS = SIDE / OWN * (SIDE / OWN), WINDOW_PITCH = SIDE + 8 };
enum { WINDOW_TAP_ROWS = 17, WINDOW_TAP_COLS = 9, TAP_PITCH = 12 };

static bool fits_window(const mta_shape &s) {
    return s.stride[0] == 1 && s.stride[1] == 1 && s.dilation[0] == 1 && s.dilation[1] == 1 &&
           s.kernel[0] <= WINDOW_TAP_ROWS && s.kernel[1] <= WINDOW_TAP_COLS;
}

/* One row of inputs, which output row i meets with the taps' row u - i. COLS: the taps' columns, 0: known at run time. */
template <int COLS>
__device__ __forceinline__ void add_row(const float *in, const float *taps, int u, int kh, int kw,
                                        float (&sum)[OWN][OWN]) {
    float x[OWN + 8];
#pragma unroll
    for (int k = 0; k < OWN + 8; k += 4) *(float4 *)(x + k) = *(const float4 *)(in + k);
#pragma unroll
    for (int i = 0; i < OWN; i++) {
        if (u - i < 0 || u - i >= kh) continue;
        float tap[TAP_PITCH];
#pragma unroll
        for (int k = 0; k < TAP_PITCH; k += 4) *(float4 *)(tap + k) = *(const float4 *)(taps + (u - i) * TAP_PITCH + k);
#pragma unroll
        for (int v = 0; v < WINDOW_TAP_COLS; v++)
            if (COLS == WINDOW_TAP_COLS || v < kw) {
#pragma unroll
                for (int e = 0; e < OWN; e++) sum[i][e] = fmaf(tap[v], x[e + v], sum[i][e]);
            }
    }
}

/* Grid (tiles of a plane, planes). */
template <typename T, source_kind KIND>
__global__ void __launch_bounds__(WINDOW_THREADS, at_most_blocks(3, WINDOW_THREADS))
    correlate_windows(const __grid_constant__ correlation<T> c, unsigned planes) {
    __shared__ __align__(16) float window[(SIDE + WINDOW_TAP_ROWS - 1) * WINDOW_PITCH];
    __shared__ __align__(16) float taps[WINDOW_TAP_ROWS * TAP_PITCH];
    const int size = (int)c.shape.size, kh = (int)c.shape.kernel[0], kw = (int)c.shape.kernel[1];
    const int tiles = (size + SIDE - 1) / SIDE, across = threadIdx.x % (SIDE / OWN) * OWN;
    const int down = threadIdx.x / (SIDE / OWN) * OWN;
    const int row = (int)blockIdx.x / tiles * SIDE, col = (int)blockIdx.x % tiles * SIDE;
    for (unsigned plane = blockIdx.y; plane < planes; plane += gridDim.y) {
        const group_place of = group_of(c, plane);
        float sum[OWN][OWN] = {};
        for (int64_t k = 0; k < c.in_channels && col <= row; k++) {
            const int64_t first = c.taps_of(of.group, of.of_out, k);
            __syncthreads();
            for (int i = threadIdx.x; i < (SIDE + kh - 1) * WINDOW_PITCH; i += WINDOW_THREADS)
                window[i] = c.in.template at<KIND>(of.in_plane + k, row + i / WINDOW_PITCH - c.shape.padding[0],
                                                   col + i % WINDOW_PITCH - c.shape.padding[1]);
            for (int i = threadIdx.x; i < kh * kw; i += WINDOW_THREADS)
                taps[i / kw * TAP_PITCH + i % kw] =
                    load_as(c.weight, c.weight_dtype, first + (c.transposed ? kh * kw - 1 - i : i));
            __syncthreads();
            const float *from = window + down * WINDOW_PITCH + across;
            if (kw == WINDOW_TAP_COLS) {
                for (int u = 0; u < kh + OWN - 1; u++, from += WINDOW_PITCH)
                    add_row<WINDOW_TAP_COLS>(from, taps, u, kh, kw, sum);
            } else {
                for (int u = 0; u < kh + OWN - 1; u++, from += WINDOW_PITCH) add_row<0>(from, taps, u, kh, kw, sum);
            }
        }
        const float bias = c.bias_of(of.channel);
#pragma unroll
        for (int i = 0; i < OWN; i++)
#pragma unroll
            for (int e = 0; e < OWN; e++) {
                const int r = row + down + i, at = col + across + e;
                if (r < size && at < size)
                    c.out[((int64_t)plane * size + r) * size + at] = from_f32<T>(at <= r ? sum[i][e] + bias : 0.0f);
            }
    }
}

/* ---- dweight and dbias: a thread has the sums of all taps over 4 outputs of every 16th row pair ---------------------- */

enum { SUM_TAP_ROWS = 9, SUM_WARPS = WINDOW_THREADS / WARP };

static bool fits_sums(const mta_shape &s) { return fits_window(s) && s.kernel[0] <= SUM_TAP_ROWS; }

/* Adds what one row of 4 outputs has: sum[u][v] += Σ dy · in. */
template <int COLS>
__device__ __forceinline__ void add_taps(const float *in, const float (&dy)[OWN], int kh, int kw,
                                         float (&sum)[SUM_TAP_ROWS][WINDOW_TAP_COLS]) {
#pragma unroll
    for (int u = 0; u < SUM_TAP_ROWS; u++) {
        if (u >= kh) continue;
        float x[OWN + 8];
#pragma unroll
        for (int k = 0; k < OWN + 8; k += 4) *(float4 *)(x + k) = *(const float4 *)(in + u * WINDOW_PITCH + k);
#pragma unroll
        for (int v = 0; v < WINDOW_TAP_COLS; v++)
            if (COLS == WINDOW_TAP_COLS || v < kw) {
#pragma unroll
                for (int e = 0; e < OWN; e++) sum[u][v] = fmaf(dy[e], x[e + v], sum[u][v]);
            }
    }
}

/* Block pair · chunks + chunk: every chunks-th tile, from the chunk-th on. */
template <typename T, source_kind KIND>
__global__ void __launch_bounds__(WINDOW_THREADS, at_most_blocks(2, WINDOW_THREADS))
    sum_windows(const __grid_constant__ tap_sums q, const source<T> scores, const source<T> upstream) {
    __shared__ __align__(16) float window[(SIDE + SUM_TAP_ROWS - 1) * WINDOW_PITCH];
    __shared__ __align__(16) float dy[SIDE * SIDE];
    __shared__ float slots[SUM_WARPS][SUM_TAP_ROWS * WINDOW_TAP_COLS + 1];
    const mta_shape &s = q.shape;
    const int kh = (int)s.kernel[0], kw = (int)s.kernel[1], tiles = ((int)s.size + SIDE - 1) / SIDE;
    const int64_t of_group = mta_in_of_group(&s), pair = blockIdx.x / s.chunks, chunk = blockIdx.x % s.chunks;
    const int64_t out = pair / of_group, in = out / (s.out / s.groups) * of_group + pair % of_group;
    const int64_t triangle = (int64_t)tiles * (tiles + 1) / 2;
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, across = lane % (SIDE / OWN) * OWN;
    float sum[SUM_TAP_ROWS][WINDOW_TAP_COLS] = {}, plain = 0.0f;
    for (int64_t item = chunk; item < s.batch * triangle; item += s.chunks) {
        const tile_place at = tile_of(item, triangle, SIDE);
        __syncthreads();
        for (int i = threadIdx.x; i < SIDE * SIDE; i += WINDOW_THREADS)
            dy[i] = upstream.template at<AS_IT_IS>(at.sample * s.out + out, at.row + i / SIDE, at.col + i % SIDE);
        for (int i = threadIdx.x; q.taps && i < (SIDE + kh - 1) * WINDOW_PITCH; i += WINDOW_THREADS)
            window[i] = scores.template at<KIND>(at.sample * s.in + in, at.row + i / WINDOW_PITCH - s.padding[0],
                                                 at.col + i % WINDOW_PITCH - s.padding[1]);
        __syncthreads();
        for (int row = warp * 2 + lane / (SIDE / OWN); row < SIDE; row += 2 * SUM_WARPS) {
            float g[OWN];
            *(float4 *)g = *(const float4 *)(dy + row * SIDE + across);
            plain += (g[0] + g[1]) + (g[2] + g[3]);
            if (!q.taps) continue;
            if (kw == WINDOW_TAP_COLS) add_taps<WINDOW_TAP_COLS>(window + row * WINDOW_PITCH + across, g, kh, kw, sum);
            else add_taps<0>(window + row * WINDOW_PITCH + across, g, kh, kw, sum);
        }
    }
#pragma unroll
    for (int u = 0; u < SUM_TAP_ROWS; u++)
#pragma unroll
        for (int v = 0; v < WINDOW_TAP_COLS; v++) {
            const float of_warp = warp_sum(sum[u][v]);
            if (lane == 0) slots[warp][u * WINDOW_TAP_COLS + v] = of_warp;
        }
    plain = warp_sum(plain);
    if (lane == 0) slots[warp][SUM_TAP_ROWS * WINDOW_TAP_COLS] = plain;
    __syncthreads();
    float *const part = q.parts + chunk * (mta_taps(&s) + s.out);
    for (int k = threadIdx.x; k < kh * kw + 1; k += WINDOW_THREADS) {
        const bool last = k == kh * kw;
        const int from = last ? SUM_TAP_ROWS * WINDOW_TAP_COLS : k / kw * WINDOW_TAP_COLS + k % kw;
        float total = 0.0f;
        for (int w = 0; w < SUM_WARPS; w++) total += slots[w][from];
        if (last && pair % of_group == 0) part[mta_taps(&s) + out] = total;
        if (!last && q.taps) part[pair * kh * kw + k] = total;
    }
}

} // namespace mta

#endif
