/* jsd_cuda.cu - the generalized Jensen-Shannon divergence on the GPU: the element of cuda/jensen_shannon.cuh in the kernels of
 * cuda/divergence.cuh. */
#include <type_traits>

#include "liger/core/kernel_table.h"
#include "liger/cuda/divergence.cuh"
#include "liger/cuda/jensen_shannon.cuh"
#include "liger/ops/jsd/jsd_problem.h"

namespace {

/* A skew mixture has kernels of its own, which may have more registers. */
template <bool SKEW>
struct jsd {
    template <typename T>
    static constexpr int BLOCKS = SKEW                     ? 2
                                  : std::is_same_v<T, f16> ? 3 /* which takes more registers to widen */
                                                           : 4;
    using problem = jsd_problem;

    template <int N, bool EXACT>
    static __device__ __forceinline__ void terms(const problem &p, float (&x)[N], float (&y)[N]) {
        const auto visit = [&](auto element_of) {
#pragma unroll
            for (int k = 0; k < N; k++) {
                const jensen_shannon::element e = element_of(x[k], y[k]);
                x[k] = e.slope, y[k] = e.value;
            }
        };
        if constexpr (SKEW) jensen_shannon::by_skew_mode<EXACT>(p.mixture, visit);
        else jensen_shannon::by_mode<EXACT>(p.mixture, visit);
    }
};

} // namespace

extern "C" liger_status jsd_cuda(liger_context *context, const struct jsd_problem *problem, liger_stream stream) {
    if (jensen_shannon::is_skew(problem->mixture)) return divergences::run<jsd<true>>(context, *problem, "jsd", stream);
    return divergences::run<jsd<false>>(context, *problem, "jsd", stream);
}
