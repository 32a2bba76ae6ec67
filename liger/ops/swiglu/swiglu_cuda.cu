/* swiglu_cuda.cu - SwiGLU on the GPU: the formula; how it is run stands in gated.cuh. */
#include "liger/cuda/gated.cuh"
#include "liger/ops/swiglu/swiglu_problem.h"

namespace {

/* 1/(1 + e^-g) within 3 ulp: expf within 1, and the hardware's reciprocal within 1. (e^-g overflows below g = -88.7,
 * the reciprocal is flushed below -87.3: 0 either way.) */
__device__ __forceinline__ float sigmoid(float g) { return reciprocal_approx(1.0f + expf(-g)); }

struct swiglu {
    using forward_problem = swiglu_forward_problem;
    using backward_problem = swiglu_backward_problem;

    template <typename A>
    static __device__ __forceinline__ float activation(const forward_problem &p, float gate) {
        const float g = gate * p.gate_multiplier;
        return g * sigmoid(g);
    }
    template <typename T, int N>
    static __device__ __forceinline__ void finish(const forward_problem &p, float (&y)[N]) {
        if (p.down_multiplier == 1.0f) return;
        round_all<T>(y);
#pragma unroll
        for (int k = 0; k < N; k++) y[k] *= p.down_multiplier;
    }
    template <typename T, int N>
    static __device__ __forceinline__ void gradients(const backward_problem &p, const float (&dy)[N], float (&gate)[N],
                                                     float (&up)[N]) {
#pragma unroll
        for (int k = 0; k < N; k++) {
            const float d = dy[k] * p.down_multiplier, g = gate[k] * p.gate_multiplier;
            const float s = sigmoid(g), silu = g * s, slope = fmaf(silu, 1.0f - s, s);
            gate[k] = d * up[k] * slope * p.gate_multiplier;
            up[k] = d * silu;
        }
    }
};

} // namespace

extern "C" liger_status swiglu_forward_cuda(liger_context *context, const swiglu_forward_problem *problem,
                                            liger_stream stream) {
    return gated::run_forward<swiglu>(context, *problem, "swiglu_forward", stream);
}

extern "C" liger_status swiglu_backward_cuda(liger_context *context, const swiglu_backward_problem *problem,
                                             liger_stream stream) {
    return gated::run_backward<swiglu>(context, *problem, "swiglu_backward", stream);
}
