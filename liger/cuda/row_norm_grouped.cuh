/* row_norm_grouped.cuh - backward where rows come in groups with parameters of their own; what a formula B brings stands in
 * row_norm.cuh.
 *
 * A block walks the rows of a part of a group, and then of its next one, and keeps the group's two sums in registers. Rows too
 * wide for that, or not aligned, take the loop kernels: one for dx, one for the sums. */
#ifndef LIGER_CUDA_ROW_NORM_GROUPED_CUH
#define LIGER_CUDA_ROW_NORM_GROUPED_CUH

#include "liger/cuda/row_norm_backward.cuh"

namespace row_norm {

enum {
    GROUPED_PACKS = 2, /* of a row that a thread has, at most */
    GROUPED_SUMS = 2,
    GROUPED_LOOP_BLOCKS = 2 /* of a multiprocessor: more parameters are more registers */
};

/* The rows of one part. */
struct group_part {
    int64_t group, begin, end;
};
__device__ __forceinline__ group_part part_of(const norm_groups &plan, int64_t which) {
    const int64_t group = plan.parts > 1 ? which / plan.parts : which;
    const int64_t first = group * plan.group_rows, begin = first + (which - group * plan.parts) * plan.part_rows;
    return {group, begin, min(begin + plan.part_rows, first + plan.group_rows)};
}
__device__ __forceinline__ int64_t parts_in(const norm_groups &plan) { return plan.groups * plan.parts; }

/* A part has been added up. */
template <typename B, int N>
__device__ __forceinline__ void finish_part(const typename B::problem &p, int64_t which, int64_t group, int unit,
                                            int64_t c, const float (&sums)[GROUPED_SUMS][N], bool first) {
    if (p.workspace == NULL) return; /* nobody asks for a parameter's gradient */
    if (p.plan.parts == 1) {
        float *row = p.workspace + (GROUPED_SUMS * p.plan.units + unit) * p.cols;
        B::finish_group(p, group, c, sums, row + c, first);
        return;
    }
#pragma unroll
    for (int i = 0; i < GROUPED_SUMS; i++) {
        pack<float, N> out;
        repack(sums[i], out);
        store_pack<float, N>(p.workspace + (i * p.plan.units + which) * p.cols + c, out);
    }
}

template <typename B, int NV>
__global__ void __launch_bounds__(BLOCK, 1) backward_grouped(const __grid_constant__ typename B::problem p) {
    using T = typename B::type;
    constexpr int N = pack_size<T>;
    __shared__ float slots[2][B::SUMS][MAX_WARPS];
    const int cols = (int)p.cols, warps = (int)blockDim.x / WARP;
    const auto column = [&](int k) { return (int)(threadIdx.x + k * blockDim.x) * N; };
    const float per_col = 1.0f / (float)cols;
    int phase = 0;
    for (int64_t which = blockIdx.x; which < parts_in(p.plan); which += gridDim.x) {
        const group_part part = part_of(p.plan, which);
        float partial[NV][GROUPED_SUMS][N] = {}, scale[NV][N];
        pack<T, N> dy[NV], x[NV]; /* of the row that comes next */
        const auto fetch = [&](int64_t r) {
#pragma unroll
            for (int k = 0; k < NV; k++) {
                if (column(k) >= cols || r >= part.end) continue;
                dy[k] = load_pack<T, N>(row_at<T>(p.dy, r) + column(k));
                x[k] = load_pack<T, N>(row_at<T>(p.x, r) + column(k));
            }
        };
        fetch(part.begin);
#pragma unroll
        for (int k = 0; k < NV; k++)
            if (column(k) < cols) B::scale(p, part.group * p.plan.group_rows, column(k), scale[k]);
        for (int64_t r = part.begin; r < part.end; r++, phase ^= 1) {
            const typename B::facts facts = B::facts_of(p, r);
            float sums[B::SUMS] = {}, g[NV][N], values[NV][N];
#pragma unroll
            for (int k = 0; k < NV; k++) {
                if (column(k) >= cols) continue;
                float upstream[N];
                unpack(dy[k], upstream);
                unpack(x[k], values[k]);
                B::terms(facts, upstream, scale[k], values[k], g[k]);
                B::gather(p, facts, upstream, g[k], values[k], sums, partial[k]);
            }
            fetch(r + 1);
            if (p.dx.data == NULL) continue;
            group_sums(sums, slots[phase], 0, warps);
#pragma unroll
            for (int i = 0; i < B::SUMS; i++) sums[i] *= per_col;
            const typename B::pull pull = B::pull_of(facts, sums);
#pragma unroll
            for (int k = 0; k < NV; k++)
                if (column(k) < cols)
                    store_dx<B, N>(facts, pull, g[k], values[k], NULL, row_at<T>(p.dx, r) + column(k));
        }
#pragma unroll
        for (int k = 0; k < NV; k++)
            if (column(k) < cols)
                finish_part<B, N>(p, which, part.group, blockIdx.x, column(k), partial[k], which == blockIdx.x);
    }
}

/* One thread per column and unit. */
template <typename B>
__global__ void __launch_bounds__(COLUMN_BLOCK) grouped_loop_sums(const __grid_constant__ typename B::problem p) {
    using T = typename B::type;
    const int64_t c = (int64_t)blockIdx.x * COLUMN_BLOCK + threadIdx.x;
    if (c >= p.cols) return;
    for (int64_t which = blockIdx.y; which < parts_in(p.plan); which += gridDim.y) {
        const group_part part = part_of(p.plan, which);
        float partial[GROUPED_SUMS][1] = {}, scale[1];
        B::scale(p, part.begin, c, scale);
        for (int64_t r = part.begin; r < part.end; r++) {
            const typename B::facts facts = B::facts_of(p, r);
            const float dy[1] = {to_f32(row_at<T>(p.dy, r)[c])};
            float x[1] = {to_f32(row_at<T>(p.x, r)[c])}, g[1], nowhere[B::SUMS] = {};
            B::terms(facts, dy, scale, x, g);
            B::gather(p, facts, dy, g, x, nowhere, partial);
        }
        finish_part<B, 1>(p, which, part.group, blockIdx.y, c, partial, which == blockIdx.y);
    }
}

/* Groups of several parts: 32 columns of one group a block, 32 fixed interleaved sums, then those in order. */
template <typename B>
__global__ void __launch_bounds__(1024) add_parts(const __grid_constant__ typename B::problem p) {
    __shared__ float sums[GROUPED_SUMS][32][33];
    const int64_t c = (int64_t)blockIdx.x * 32 + threadIdx.x, group = blockIdx.y;
    float total[GROUPED_SUMS][1];
#pragma unroll
    for (int i = 0; i < GROUPED_SUMS; i++) {
        const float *parts = p.workspace + (i * p.plan.units + group * p.plan.parts) * p.cols;
        float sum = 0;
        if (c < p.cols)
            for (int64_t k = threadIdx.y; k < p.plan.parts; k += 32) sum += parts[k * p.cols + c];
        sums[i][threadIdx.y][threadIdx.x] = sum;
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < GROUPED_SUMS; i++)
        total[i][0] = warp_sum(sums[i][threadIdx.x][threadIdx.y]); /* transposed: warp y owns column y */
    const int64_t column = (int64_t)blockIdx.x * 32 + threadIdx.y;
    float *row = p.workspace + (GROUPED_SUMS * p.plan.units + group) * p.cols;
    if (threadIdx.x == 0 && column < p.cols) B::finish_group(p, group, column, total, row + column, true);
}

template <typename B>
void launch_grouped(const typename B::problem &p, bool packable, cudaStream_t stream) {
    using T = typename B::type;
    const int64_t packs = p.cols / pack_size<T>;
    const unsigned units = (unsigned)p.plan.units;
    if (packable && packs <= BLOCK / 2) {
        backward_grouped<B, 1><<<units, round_up_to_warp(packs), 0, stream>>>(p);
    } else if (packable && packs <= GROUPED_PACKS * BLOCK) {
        backward_grouped<B, GROUPED_PACKS><<<units, round_up_to_warp((packs + 1) / GROUPED_PACKS), 0, stream>>>(p);
    } else {
        const dim3 columns(grid_size(p.cols, COLUMN_BLOCK), units);
        if (p.workspace) grouped_loop_sums<B><<<columns, COLUMN_BLOCK, 0, stream>>>(p);
        const unsigned grid = grid_size(p.rows, 1);
        if (p.dx.data && packable)
            backward_loop_dx<B, pack_size<T>, GROUPED_LOOP_BLOCKS><<<grid, BLOCK, 0, stream>>>(p);
        else if (p.dx.data) backward_loop_dx<B, 1, GROUPED_LOOP_BLOCKS><<<grid, BLOCK, 0, stream>>>(p);
    }
    if (p.workspace && p.plan.parts > 1) {
        const dim3 grid(grid_size(p.cols, 32), (unsigned)p.plan.groups);
        add_parts<B><<<grid, dim3(32, 32), 0, stream>>>(p);
    }
}

/* All of backward: the rows, the groups, and what all groups add up to, to `out`. Rows are 1 or more. */
template <typename B>
cudaError_t run_grouped(const typename B::problem &p, void *out, liger_dtype dtype, bool packable,
                        cudaStream_t stream) {
    launch_grouped<B>(p, packable, stream);
    if (out == NULL) return cudaSuccess;
    const int count = (int)(p.plan.parts > 1 ? p.plan.groups : p.plan.units);
    const float *rows = p.workspace + GROUPED_SUMS * p.plan.units * p.cols;
    add_partials<<<grid_size(p.cols, 32), dim3(32, 32), 0, stream>>>(rows, count, p.cols, {{out, NULL}, dtype});
    return cudaSuccess;
}

} // namespace row_norm

#endif
