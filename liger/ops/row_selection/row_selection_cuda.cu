/* row_selection_cuda.cu - which rows count, on CUDA: one block looks at the targets, in order. */
#include "liger/core/kernel_table.h"
#include "liger/cuda/launch.cuh"
#include "liger/cuda/reduce.cuh"
#include "liger/ops/row_selection/row_selection_problem.h"

namespace {

/* A warp has LOADS·32 neighbouring targets of a tile, 32 to a load: their order is that of loads, then of lanes. */
enum { SELECT_THREADS = 1024, SELECT_WARPS = SELECT_THREADS / WARP, LOADS = 8, TILE = SELECT_THREADS * LOADS };
static_assert(SELECT_WARPS == WARP, "a lane for the count of each warp");

/* Where the warp's first row stands among those that count, and in *total how many of the tile there are. */
__device__ __forceinline__ int warp_offset(const int *counts, int *total) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const int mine = counts[lane];
    int up_to = mine; /* of the warps up to that of this lane's number */
#pragma unroll
    for (int offset = 1; offset < WARP; offset *= 2) {
        const int below = __shfl_up_sync(0xffffffffu, up_to, offset);
        if (lane >= offset) up_to += below;
    }
    *total = __shfl_sync(0xffffffffu, up_to, WARP - 1);
    return __shfl_sync(0xffffffffu, up_to - mine, warp);
}

/* All rows of all tiles. Returns how many count. */
template <typename I>
__device__ __forceinline__ int64_t place_rows(const row_select_problem &p) {
    __shared__ int counts[2][SELECT_WARPS]; /* for every other tile: nobody writes where another may still read */
    const I *target = (const I *)p.target;
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const unsigned before = (1u << lane) - 1;
    int64_t first_place = 0;
    int turn = 0;
    for (int64_t tile = 0; tile < p.rows; tile += TILE, turn ^= 1) {
        const int64_t first = tile + warp * (LOADS * WARP) + lane;
        unsigned counted[LOADS]; /* a bit for each lane */
#pragma unroll
        for (int k = 0; k < LOADS; k++) {
            const int64_t r = first + k * WARP;
            counted[k] = r < p.rows && (int64_t)target[r] != p.ignore_index;
        }
        int of_warp = 0;
#pragma unroll
        for (int k = 0; k < LOADS; k++) {
            counted[k] = __ballot_sync(0xffffffffu, counted[k]);
            of_warp += __popc(counted[k]);
        }
        if (lane == 0) counts[turn][warp] = of_warp;
        __syncthreads();
        int of_tile;
        int64_t place = first_place + warp_offset(counts[turn], &of_tile);
#pragma unroll
        for (int k = 0; k < LOADS; k++) {
            const int64_t r = first + k * WARP, mine = place + __popc(counted[k] & before);
            const bool kept = (counted[k] >> lane & 1) && mine < p.most;
            if (r < p.rows) p.place_of[r] = kept ? mine : -1;
            if (kept) p.row_of[mine] = r;
            place += __popc(counted[k]);
        }
        first_place += of_tile;
    }
    return first_place;
}

template <typename I>
__global__ void __launch_bounds__(SELECT_THREADS) select_kernel(const __grid_constant__ row_select_problem p) {
    const int64_t count = place_rows<I>(p);
    for (int64_t i = count + threadIdx.x; i < p.most; i += SELECT_THREADS) p.row_of[i] = -1;
    if (threadIdx.x == 0) *p.count = count;
}

} // namespace

extern "C" liger_status row_select_cuda(liger_context *context, const struct row_select_problem *problem,
                                        liger_stream stream) {
    LIGER_ON_DEVICE(context, "row_select");
    if (problem->target_dtype == LIGER_I32)
        select_kernel<int32_t><<<1, SELECT_THREADS, 0, (cudaStream_t)stream>>>(*problem);
    else select_kernel<int64_t><<<1, SELECT_THREADS, 0, (cudaStream_t)stream>>>(*problem);
    return launched(context, "row_select", stream);
}
