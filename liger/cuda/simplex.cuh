/* simplex.cuh - the threshold tau of the nearest point of the simplex, y = max(x - tau, 0) with the sum 1, on CUDA: by Newton's
 * method until tau stays where it is.
 *
 * Σ max(x - tau, 0) is convex and falls with tau: from a start below tau steps only rise, and none beyond tau, so that the
 * support only shrinks: where a step does not rise, it is the row's. What is below max x - 1 is never part of it, and tau of
 * any part of a row is not above that of the whole: of eight to some thirty large values it is a start from which the random
 * rows of a vocabulary need two or three steps.
 *
 * The sum is of x - origin, which is exact for all that may be in a support: beyond 2 the origin is the maximum, where a
 * difference of at most 1 loses nothing, below it is 0. A thread adds in two floats, threads are added in double. */
#ifndef LIGER_CUDA_SIMPLEX_CUH
#define LIGER_CUDA_SIMPLEX_CUH

#include "liger/cuda/vocab_rows.cuh"

namespace simplex {

/* The largest value; +inf stands for one that is no number, or infinite. What has been merged is that of four parts: so of a
 * row that two blocks share there are eight to begin from, and not two. */
struct maximum {
    float of[4];

    __device__ __forceinline__ void take(float x) { of[0] = x <= FLT_MAX ? fmaxf(of[0], x) : INFINITY; }
    __device__ __forceinline__ float max() const { return fmaxf(fmaxf(of[0], of[1]), fmaxf(of[2], of[3])); }
};
__device__ __forceinline__ maximum only(float max) { return {max, -INFINITY, -INFINITY, -INFINITY}; }
__device__ __forceinline__ maximum no_maximum() { return only(-INFINITY); }
__device__ __forceinline__ maximum warp_merge(const maximum &a) {
    float max = a.max();
    maximum parts;
#pragma unroll
    for (int offset = WARP / 2; offset >= 4; offset /= 2) max = fmaxf(max, __shfl_xor_sync(0xffffffffu, max, offset));
#pragma unroll
    for (int k = 0; k < 4; k++) parts.of[k] = __shfl_sync(0xffffffffu, max, k);
    return parts;
}
/* One value for each lane, no two the same one of the row: from what has come of a cluster's blocks, to a lane each, or of
 * warps, or from its own. */
template <typename X>
__device__ __forceinline__ float one_of(const maximum &of_lane) {
    if (!X::OF_CLUSTER) return of_lane.max();
    static_assert(vocab_rows::MAX_CLUSTER * 4 <= WARP, "a lane for each part");
    const int lane = threadIdx.x % WARP;
    float one = -INFINITY;
#pragma unroll
    for (int k = 0; k < 4; k++) {
        const float part = __shfl_sync(0xffffffffu, of_lane.of[k], lane % vocab_rows::MAX_CLUSTER);
        if (lane / vocab_rows::MAX_CLUSTER == k) one = part;
    }
    return one;
}

/* Σ (x - origin) over the values above a threshold, and how many they are. */
struct members {
    double sum;
    int64_t count;
};
__device__ __forceinline__ members no_members() { return {0.0, 0}; }
__device__ __forceinline__ int64_t warp_count(int64_t count) {
#if __CUDA_ARCH__ >= 800
    if (!__any_sync(0xffffffffu, count >> 26 != 0)) return __reduce_add_sync(0xffffffffu, (unsigned)count);
#endif
#pragma unroll
    for (int offset = WARP / 2; offset > 0; offset /= 2)
        count += __shfl_xor_sync(0xffffffffu, (long long)count, offset);
    return count;
}
__device__ __forceinline__ members warp_merge(members a) {
    if (!__any_sync(0xffffffffu, a.count != 0)) return a; /* as in most warps of most rows */
#pragma unroll
    for (int offset = WARP / 2; offset > 0; offset /= 2) a.sum += __shfl_xor_sync(0xffffffffu, a.sum, offset);
    return {a.sum, warp_count(a.count)};
}

/* A thread's members, in two floats: what an addition has rounded away is added apart. */
struct thread_members {
    float sum = 0.0f, rounded = 0.0f;
    uint32_t count = 0;

    __device__ __forceinline__ void add(float d) {
        const float next = sum + d, added = next - sum;
        rounded += (sum - (next - added)) + (d - added);
        sum = next;
        count++;
    }
    __device__ __forceinline__ members all() const { return {(double)sum + (double)rounded, count}; }
};

/* tau = origin + rest + lower; `above` is the largest float that is not above tau, so that x > tau is x > above. All of them
 * NaN: the row has no tau. */
struct threshold {
    float above, origin, rest, lower;

    __device__ __forceinline__ bool has(float x) const { return !(x <= above); }
    __device__ __forceinline__ float y(float x) const {
        const float y = ((x - origin) - rest) - lower;
        return has(x) ? y < 0.0f ? 0.0f : y : 0.0f; /* NaN is not below 0 */
    }
};

/* A start: three steps on one value of each lane, no two the same one of the row, in f32, and a bit below for what they round. */
__device__ __forceinline__ float start_below(float max, float of_lane) {
    float above = __fadd_rd(max, -1.0f);
#pragma unroll
    for (int step = 0; step < 3; step++) {
        const bool in = of_lane > above;
        const int count = __popc(__ballot_sync(0xffffffffu, in));
        const float sum = warp_sum(in ? of_lane - max : 0.0f);
        above = __fadd_rd(max, (sum - 1.0f) / (float)count - 0x1p-14f);
    }
    return above;
}

/* a / count, but for half a unit in the last place of a double: the division itself needs twenty registers more. */
__device__ __forceinline__ double quotient(double a, double count) {
    double inverse = (double)reciprocal_approx((float)count);
    inverse = fma(inverse, fma(-count, inverse, 1.0), inverse);
    inverse = fma(inverse, fma(-count, inverse, 1.0), inverse);
    const double q = a * inverse;
    return fma(fma(-count, q, a), inverse, q);
}

/* members_above(above, origin): this thread's. All threads of the row take part, with the same `max` and `start`, which must
 * not be above tau: a step from there would be the last, though it falls. */
template <typename M, typename X>
__device__ __forceinline__ threshold find_threshold(float max, float start, M members_above, X &again) {
    if (fabsf(max) == INFINITY) return {NAN, NAN, NAN, NAN};
    const float origin = fabsf(max) < 2.0f ? 0.0f : max;
    double tau;
    float above, next = start;
    do { /* from a start below tau it only rises: it ends */
        above = next;
        const members all = again.all(members_above(above, origin), no_members());
        tau = quotient(all.sum - 1.0, (double)all.count);
        next = __double2float_rd(__dadd_rd((double)origin, tau));
    } while (next > above);
    const float rest = (float)tau;
    return {next, origin, rest, (float)(tau - (double)rest)};
}

} // namespace simplex

#endif
