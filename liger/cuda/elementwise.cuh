/* elementwise.cuh - one kernel for whatever is computed element by element: bound by memory, so that nothing matters but many
 * loads on their way.
 *
 * A thread moves one pack per tensor, in 32 registers: a multiprocessor then holds all the threads that it can. Tensors in
 * one piece come as one long row; rows with gaps add a second grid dimension. What is left of a row behind its last whole
 * pack is done one element at a time.
 *
 * A body brings
 *   BODY::problem               rows, cols
 *   BODY::FROM_THE_END          see from_the_end()
 *   BODY::run<N>(p, r, i)       elements i to i + N - 1 of row r: a pack, or one */
#ifndef LIGER_CUDA_ELEMENTWISE_CUH
#define LIGER_CUDA_ELEMENTWISE_CUH

#include "liger/cuda/launch.cuh"
#include "liger/cuda/pack.cuh"

namespace elementwise {

enum { THREADS = 256, MAX_GRID_Y = 65535 };

/* The thread behind a row's last pack does what is left of the row. */
template <typename BODY, int N>
__device__ __forceinline__ void run_pack(const typename BODY::problem &p, int64_t r, int64_t c) {
    const int64_t packs = p.cols / N;
    if (c < packs) BODY::template run<N>(p, r, c * N);
    if constexpr (N > 1) {
        if (c != packs) return;
        for (int64_t i = packs * N; i < p.cols; i++) BODY::template run<1>(p, r, i);
    }
}

template <typename BODY, int N>
__global__ void __launch_bounds__(THREADS) flat_kernel(const __grid_constant__ typename BODY::problem p) {
    let_next_kernel_start();
    wait_for_previous_kernel();
    const unsigned block = BODY::FROM_THE_END ? gridDim.x - 1 - blockIdx.x : blockIdx.x;
    run_pack<BODY, N>(p, 0, (int64_t)block * THREADS + threadIdx.x);
}
template <typename BODY, int N>
__global__ void __launch_bounds__(THREADS) rows_kernel(const __grid_constant__ typename BODY::problem p) {
    let_next_kernel_start();
    wait_for_previous_kernel();
    const int64_t c = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    for (int64_t i = (int64_t)blockIdx.y * blockDim.y + threadIdx.y; i < p.rows; i += (int64_t)gridDim.y * blockDim.y)
        run_pack<BODY, N>(p, BODY::FROM_THE_END ? from_the_end(p.rows, i) : i, c);
}

/* Narrow rows share a block. */
template <typename BODY, int N>
void launch_packs(const liger_context *context, const typename BODY::problem &p, cudaStream_t stream) {
    const int64_t items = p.cols / N + (p.cols % N != 0);
    if (p.rows == 1) {
        launch_next(context, flat_kernel<BODY, N>, grid_size(items, THREADS), THREADS, stream, p);
        return;
    }
    unsigned x = THREADS;
    while (x > 1 && (int64_t)x / 2 >= items) x /= 2;
    const dim3 block(x, THREADS / x), grid(grid_size(items, x), grid_size(p.rows, block.y, MAX_GRID_Y));
    launch_next(context, rows_kernel<BODY, N>, grid, block, stream, p);
}

template <typename BODY, typename T>
void launch(const liger_context *context, const typename BODY::problem &p, bool packable, cudaStream_t stream) {
    if (packable) launch_packs<BODY, pack_size<T>>(context, p, stream);
    else launch_packs<BODY, 1>(context, p, stream);
}

} // namespace elementwise

#endif
