/* ce_tvd_backward_cuda.cu - the gradient of cross entropy and total variation on CUDA. Both softmaxes are known, so that it goes
 * element by element: two reads and one write, or one read and one write where forward has left signs. Much must be known of a
 * row: a thread has several packs of it, all of them on their way at once. */
#include "liger/cuda/approx.cuh"
#include "liger/cuda/launch.cuh"
#include "liger/ops/ce_tvd/ce_tvd_problem.h"
#include "liger/ops/ce_tvd/ce_tvd_signs.cuh"

namespace {

using problem = ce_tvd_backward_problem;
using ce_tvd::TILE, ce_tvd::TILE_VECTORS;

enum { THREADS = 256, AHEAD = 4 /* packs of a thread, on their way */, SIGNED_BLOCKS = 4, MAX_GRID_Y = 65535 };

struct row_facts {
    float max, log_sum, teacher_max, teacher_log_sum;
    ce_tvd_factors factors;
    int64_t target;

    __device__ __forceinline__ row_facts(const problem &p, int64_t r)
        : max(p.student_max[r]), log_sum(p.student_log_sum[r]), teacher_max(p.teacher_max[r]),
          teacher_log_sum(p.teacher_log_sum[r]), factors(ce_tvd_factors_of(&p, r)),
          target(index_at(p.target, p.target_dtype, r)) {}
};

template <typename T, int N>
__device__ __forceinline__ pack<T, N> load_from(const liger_rows &rows, int64_t r, int64_t c) {
    return load_pack<T, N>(row_at<const T>(rows, r) + c);
}
template <typename T, int N>
__device__ __forceinline__ void store_zeros(const problem &p, int64_t r, int64_t c) {
    const pack<T, N> zeros = {};
    store_whole_pack<T, N>(row_at<T>(p.dstudent, r) + c, zeros);
}

/* factor(k, p) is that of the k-th value. */
template <typename T, int N, typename F>
__device__ __forceinline__ void write_pack(const problem &p, const row_facts &of, const pack<T, N> &student, int64_t r,
                                           int64_t c, F factor) {
    float d[N];
    unpack(student, d);
#pragma unroll
    for (int k = 0; k < N; k++) d[k] = exp_of<false>((d[k] - of.max) - of.log_sum);
#pragma unroll
    for (int k = 0; k < N; k++) d[k] *= factor(k, d[k]);
    if ((uint64_t)(of.target - c) < (uint64_t)N) {
#pragma unroll
        for (int k = 0; k < N; k++) d[k] -= of.target - c == k ? of.factors.hit : 0.0f;
    }
    if (of.target < 0 || of.target >= p.cols) {
#pragma unroll
        for (int k = 0; k < N; k++) d[k] = NAN;
    }
    pack<T, N> out;
    repack(d, out);
    store_whole_pack<T, N>(row_at<T>(p.dstudent, r) + c, out);
}

template <typename T, int N>
__device__ __forceinline__ void write_compared(const problem &p, const row_facts &of, const pack<T, N> &student,
                                               const pack<T, N> &teacher, int64_t r, int64_t c) {
    float t[N];
    unpack(teacher, t);
#pragma unroll
    for (int k = 0; k < N; k++) t[k] = exp_of<false>((t[k] - of.teacher_max) - of.teacher_log_sum);
    write_pack(p, of, student, r, c, [&](int k, float s) {
        return s > t[k] ? of.factors.above : s < t[k] ? of.factors.below : of.factors.equal;
    });
}
template <typename T, int N>
__device__ __forceinline__ void write_signed(const problem &p, const row_facts &of, const pack<T, N> &student,
                                             unsigned signs, int64_t r, int64_t c) {
    write_pack(p, of, student, r, c,
               [&](int k, float) { return signs >> (N - 1 - k) & 1 ? of.factors.below : of.factors.above; });
}

/* ---- both models' logits ------------------------------------------------------------------------------------------ */

template <typename T, int N>
__global__ void __launch_bounds__(THREADS) gradient_kernel(const __grid_constant__ problem p) {
    const int64_t first = ((int64_t)blockIdx.x * AHEAD * blockDim.x + threadIdx.x) * N, step = (int64_t)blockDim.x * N;
    for (int64_t r = (int64_t)blockIdx.y * blockDim.y + threadIdx.y; r < p.rows; r += (int64_t)gridDim.y * blockDim.y) {
        if (index_at(p.target, p.target_dtype, r) == p.ignore_index) {
#pragma unroll
            for (int u = 0; u < AHEAD; u++)
                if (first + u * step < p.cols) store_zeros<T, N>(p, r, first + u * step);
            continue;
        }
        pack<T, N> student[AHEAD], teacher[AHEAD];
#pragma unroll
        for (int u = 0; u < AHEAD; u++) {
            if (first + u * step >= p.cols) continue;
            student[u] = load_from<T, N>(p.student, r, first + u * step);
            teacher[u] = load_from<T, N>(p.teacher, r, first + u * step);
        }
        const row_facts row(p, r);
#pragma unroll
        for (int u = 0; u < AHEAD; u++)
            if (first + u * step < p.cols) write_compared(p, row, student[u], teacher[u], r, first + u * step);
    }
}

/* Narrow rows share a block. */
template <typename T, int N>
void launch_gradient(const problem &p, cudaStream_t stream) {
    const int64_t packs = p.cols / N;
    unsigned x = THREADS;
    while (x > 1 && (int64_t)x / 2 * AHEAD >= packs) x /= 2;
    const dim3 block(x, THREADS / x), grid(grid_size(packs, x * AHEAD), grid_size(p.rows, block.y, MAX_GRID_Y));
    gradient_kernel<T, N><<<grid, block, 0, stream>>>(p);
}

/* ---- the student's, and signs ------------------------------------------------------------------------------------- */

/* A tile of each row for a warp. With the registers of SIGNED_BLOCKS a multiprocessor, a row without signs goes pack by pack. */
template <typename T>
__global__ void __launch_bounds__(THREADS, at_most_blocks(SIGNED_BLOCKS, THREADS))
    signed_gradient_kernel(const __grid_constant__ problem p) {
    constexpr int N = pack_size<T>, WARPS = THREADS / WARP, STEP = WARP * N;
    const int64_t vector = ((int64_t)blockIdx.x * WARPS + threadIdx.x / WARP) * TILE + threadIdx.x % WARP;
    const int64_t first = vector * N;
    for (int64_t r = blockIdx.y; r < p.rows; r += gridDim.y) {
        const bool is_signed = p.has_signs[r];
        const row_facts row(p, r); /* on its way at once with what is asked next */
        if (row.target == p.ignore_index) {
#pragma unroll
            for (int u = 0; u < TILE_VECTORS; u++)
                if (first + u * STEP < p.cols) store_zeros<T, N>(p, r, first + u * STEP);
        } else if (is_signed) {
            pack<T, N> student[TILE_VECTORS];
            pack<uint8_t, TILE_VECTORS> signs;
#pragma unroll
            for (int u = 0; u < TILE_VECTORS; u++)
                if (first + u * STEP < p.cols) student[u] = load_from<T, N>(p.student, r, first + u * STEP);
            if (first < p.cols)
                signs = load_pack<uint8_t, TILE_VECTORS>(ce_tvd::signs_at(row_at<T>(p.dstudent, r), vector));
            __syncwarp(); /* all have theirs, before one writes there */
#pragma unroll
            for (int u = 0; u < TILE_VECTORS; u++)
                if (first + u * STEP < p.cols) write_signed(p, row, student[u], signs.value[u], r, first + u * STEP);
        } else {
#pragma unroll 1
            for (int64_t c = first; c < p.cols && c < first + TILE_VECTORS * STEP; c += STEP)
                write_compared(p, row, load_from<T, N>(p.student, r, c), load_from<T, N>(p.teacher, r, c), r, c);
        }
    }
}

template <typename T>
void launch_signed_gradient(const problem &p, cudaStream_t stream) {
    const int64_t per_block = (int64_t)THREADS * TILE_VECTORS * pack_size<T>;
    const dim3 grid(grid_size(p.cols, per_block), grid_size(p.rows, 1, MAX_GRID_Y));
    signed_gradient_kernel<T><<<grid, THREADS, 0, stream>>>(p);
}

} // namespace

extern "C" liger_status ce_tvd_backward_cuda(liger_context *context, const problem *given, liger_stream stream) {
    const problem &p = *given;
    LIGER_ON_DEVICE(context, "ce_tvd_backward");
    const size_t element = liger_dtype_size(p.dtype);
    const bool packable = p.cols * element % PACK_BYTES == 0 && rows_are_packable(p.student, element) &&
                          rows_are_packable(p.teacher, element) && rows_are_packable(p.dstudent, element);
    const bool is_signed = p.has_signs && packable && ce_tvd::has_room_for_signs(p.dstudent, p.cols, element);
    LIGER_FOR_FLOAT(p.dtype, T, if (is_signed) launch_signed_gradient<T>(p, (cudaStream_t)stream);
                    else if (packable) launch_gradient<T, pack_size<T>>(p, (cudaStream_t)stream);
                    else launch_gradient<T, 1>(p, (cudaStream_t)stream))
    return launched(context, "ce_tvd_backward", stream);
}
