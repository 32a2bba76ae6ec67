/* interleave_cuda.cu - blocks in another order on the GPU, in place: a cycle is moved by whoever has its first place. */
#include "liger/core/kernel_table.h"
#include "liger/cuda/launch.cuh"
#include "liger/cuda/pack.cuh"
#include "liger/ops/interleave/interleave_problem.h"

namespace {

enum { THREADS = 128 };

/* W: what a thread moves at a time. */
template <typename W>
__global__ void __launch_bounds__(THREADS) move_cycles(W *data, int64_t rows, int64_t cols, int64_t words) {
    for (int64_t start = blockIdx.x; start < rows * cols; start += gridDim.x) {
        const int64_t next = interleave_source(rows, cols, start);
        int64_t at = next;
        while (at > start) at = interleave_source(rows, cols, at);
        if (next == start || at < start) continue; /* it stays, or another place of its cycle comes first */
        for (int64_t c = threadIdx.x; c < words; c += THREADS) {
            const W kept = data[start * words + c];
            int64_t to = start;
            for (int64_t from = next; from != start; to = from, from = interleave_source(rows, cols, from))
                data[to * words + c] = data[from * words + c];
            data[to * words + c] = kept;
        }
    }
}

template <typename W>
void launch(const interleave_problem &p, cudaStream_t stream) {
    const int64_t words = p.block * (int64_t)liger_dtype_size(p.dtype) / (int64_t)sizeof(W);
    move_cycles<<<grid_size(p.rows * p.cols, 1), THREADS, 0, stream>>>((W *)p.data, p.rows, p.cols, words);
}

} // namespace

extern "C" liger_status interleave_cuda(liger_context *context, const interleave_problem *problem, liger_stream given) {
    const interleave_problem &p = *problem;
    const cudaStream_t stream = (cudaStream_t)given;
    LIGER_ON_DEVICE(context, "interleave");
    const size_t element = liger_dtype_size(p.dtype);
    if (p.rows * p.cols * p.block == 0) return LIGER_OK;
    if (p.block * element % PACK_BYTES == 0 && (uintptr_t)p.data % PACK_BYTES == 0) launch<uint4>(p, stream);
    else if (element == sizeof(float)) launch<uint32_t>(p, stream);
    else launch<uint16_t>(p, stream);
    return launched(context, "interleave", given);
}
