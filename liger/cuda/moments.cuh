/* moments.cuh - mean and variance of a row that several warps share, in one exchange between them. */
#ifndef LIGER_CUDA_MOMENTS_CUH
#define LIGER_CUDA_MOMENTS_CUH

#include "liger/cuda/reduce.cuh"

namespace row_norm {

/* The row's mean is `mean` + `missing`, which f32 cannot hold in one number where the row has a large common offset. */
struct moments {
    float mean, missing, variance;
};
/* Of a warp: its mean is origin + rest, its squares are about that mean. */
struct alignas(16) moments_share {
    float origin, rest, squares, count;
};

/* A value among those of this warp, and how many there are. */
struct warp_values {
    float lead, count;
};

/* All sums are of differences, to a value of the row and then to the warp's mean: nothing cancels, whatever the row's offset,
 * and a row of one value has variance 0. fold(f) is the last s = f(s, values) over the packs of this thread, from 0. */
template <int MOST = MAX_WARPS, typename FOLD>
__device__ __forceinline__ moments moments_of(const FOLD &fold, warp_values of, float per_col, moments_share *slots,
                                              int warps, at_most_warps<MOST> = {}) {
    moments_share mine = {isfinite(of.lead) ? of.lead : 0.0f, 0, 0, of.count};
    const float differences = fold([&](float so_far, const auto &x) {
        float sum = 0;
        for (const float value : x) sum += value - mine.origin;
        return so_far + sum;
    });
    const float all_differences = warp_sum(differences);
    mine.rest = of.count > 0 ? all_differences / mine.count : 0.0f;
    const float mean = mine.origin + mine.rest, missing = mine.rest - (mean - mine.origin);
    const float squares_of_thread = fold([&](float so_far, const auto &x) {
        float sum = 0;
        for (const float value : x) sum = fmaf(value - mean, value - mean, sum);
        return so_far + sum;
    });
    mine.squares = fmaf(-mine.count * missing, missing, warp_sum(squares_of_thread));
    const int place = threadIdx.x % MOST;
    float origin = mine.origin;
    if (warps > 1) {
        if (threadIdx.x % WARP == 0) slots[threadIdx.x / WARP] = mine;
        __syncthreads();
        origin = slots[0].origin;
        mine = slots[place < warps ? place : 0];
    }
    const auto over_warps = [&](float x) { return lanes_sum<MOST>(place < warps ? x : 0.0f); };
    const float from_origin = (mine.origin - origin) + mine.rest, of_rest = over_warps(mine.count * from_origin);
    const float rest = warps > 1 ? of_rest * per_col : from_origin;
    const float apart = from_origin - rest, squares = fmaf(mine.count * apart, apart, mine.squares);
    const float variance = over_warps(squares) * per_col, whole = origin + rest;
    return {whole, rest - (whole - origin), variance < 0.0f ? 0.0f : variance}; /* NaN is not less than 0 */
}

/* How many of the packs between `from` and `packs` a warp has, one a lane. */
__device__ __forceinline__ int warp_packs(int packs, int from) {
    const int left = packs - from - (int)threadIdx.x / WARP * WARP;
    return left < 0 ? 0 : left > WARP ? WARP : left;
}

} // namespace row_norm

#endif
