/* jsd_cuda.cu - what the generalized Jensen-Shannon divergence makes of an element on the GPU; how it is run stands in
 * cuda/divergence.cuh.
 *
 * Of P and Q let E be the larger, e·E the smaller, and w the weight of the smaller: M = E·g with g = w·e + (1 - w). Then
 *   value = -E·(g·log g + w·e·|x - y|),     x - log M = min(x - y, 0) - log g
 */
#include "liger/core/kernel_table.h"
#include "liger/cuda/divergence.cuh"
#include "liger/ops/jsd/jsd_problem.h"

namespace {

/* e to a power below this is 0; differences of such powers are finite. */
constexpr float LOWEST = -0x1p100f;

__device__ __forceinline__ float bounded(float x) { return x < LOWEST ? LOWEST : x; } /* NaN stays */

struct jsd {
    enum { BLOCKS = 3 };
    using problem = jsd_problem;

    template <bool EXACT>
    static __device__ __forceinline__ void two_sided(float beta, float &x, float &y) {
        const float a = bounded(x), b = bounded(y), d = a - b, rest = 1.0f - beta;
        const bool x_is_larger = d > 0.0f;
        const float e = divergences::exponential<EXACT>(-fabsf(d)),
                    large = divergences::exponential<EXACT>(fmaxf(a, b));
        const float weight = x_is_larger ? beta : rest, other = x_is_larger ? rest : beta;
        const float g = fmaf(weight, e, other),
                    log_g = divergences::logarithm<EXACT>(g); /* 1 if e is: the weights' sum is exact */
        const float q = x_is_larger ? large : large * e, below = x_is_larger ? 0.0f : d;
        y = -large * fmaf(weight * e, fabsf(d), g * log_g);
        x = rest * q * (below - log_g);
    }

    template <int N, bool EXACT>
    static __device__ __forceinline__ void terms(const problem &p, float (&x)[N], float (&y)[N]) {
        if (p.beta == 0.0f) {
#pragma unroll
            for (int k = 0; k < N; k++) {
                const float target = expf(y[k]);
                y[k] = target == 0.0f ? 0.0f : target * (y[k] - x[k]);
                x[k] = -target;
            }
        } else if (p.beta == 1.0f) {
#pragma unroll
            for (int k = 0; k < N; k++) {
                const float q = expf(x[k]);
                y[k] = q == 0.0f ? 0.0f : q * (x[k] - y[k]);
                x[k] = y[k] + q;
            }
        } else {
#pragma unroll
            for (int k = 0; k < N; k++) two_sided<EXACT>(p.beta, x[k], y[k]);
        }
    }
};

} // namespace

extern "C" liger_status jsd_cuda(liger_context *context, const struct jsd_problem *problem, liger_stream stream) {
    return divergences::run<jsd>(context, *problem, "jsd", stream);
}
