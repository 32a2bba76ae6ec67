/* tvd_cuda.cu - what the total variation distance makes of an element on the GPU; how it is run stands in
 * cuda/divergence.cuh. */
#include "liger/core/kernel_table.h"
#include "liger/cuda/divergence.cuh"
#include "liger/ops/tvd/tvd_problem.h"

namespace {

struct tvd {
    template <typename T>
    static constexpr int BLOCKS = 4;
    using problem = tvd_problem;

    template <int N, bool EXACT>
    static __device__ __forceinline__ void terms(const problem &, float (&x)[N], float (&y)[N]) {
#pragma unroll
        for (int k = 0; k < N; k++) {
            const float d = x[k] - y[k];
            y[k] = 0.5f * fabsf(d);
            x[k] = fabsf(d) > 0.0f ? copysignf(0.5f, d) : d; /* of 0 and of NaN that itself */
        }
    }
};

} // namespace

extern "C" liger_status tvd_cuda(liger_context *context, const struct tvd_problem *problem, liger_stream stream) {
    return divergences::run<tvd>(context, *problem, "tvd", stream);
}
