/* kl_div_cuda.cu - what the Kullback-Leibler divergence makes of an element on the GPU; how it is run stands in
 * cuda/divergence.cuh. */
#include <float.h>

#include <type_traits>

#include "liger/core/kernel_table.h"
#include "liger/cuda/divergence.cuh"
#include "liger/ops/kl_div/kl_div_problem.h"

namespace {

struct kl_div {
    template <typename T>
    static constexpr int BLOCKS = std::is_same_v<T, f16> ? 3 : 4; /* which takes more registers to widen */
    using problem = kl_div_problem;

    /* factor · difference, and 0 where the factor is; NaN is not. */
    static __device__ __forceinline__ void finish(float factor, float difference, float &x, float &y) {
        x = -factor;
        y = factor == 0.0f ? 0.0f : factor * difference;
    }
    template <int N, bool EXACT>
    static __device__ __forceinline__ void terms(const problem &p, float (&x)[N], float (&y)[N]) {
        if (p.log_target) {
#pragma unroll
            for (int k = 0; k < N; k++) finish(expf(y[k]), y[k] - x[k], x[k], y[k]);
        } else {
            const float eps = fmaxf(p.eps, FLT_MIN);
#pragma unroll
            for (int k = 0; k < N; k++) finish(y[k], log_of<EXACT>(fmaxf(eps, y[k])) - x[k], x[k], y[k]);
        }
    }
};

} // namespace

extern "C" liger_status kl_div_cuda(liger_context *context, const struct kl_div_problem *problem, liger_stream stream) {
    return divergences::run<kl_div>(context, *problem, "kl_div", stream);
}
