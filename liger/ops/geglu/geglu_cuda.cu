/* geglu_cuda.cu - GeGLU on the GPU: the formula; how it is run stands in gated.cuh.
 *
 * Forward: gelu in the tanh form, step by step as PyTorch computes it, because its bits in 16-bit dtypes are part of the
 * contract: tanhf is the accurate one. */
#include "liger/cuda/gated.cuh"
#include "liger/ops/geglu/geglu_problem.h"

namespace {

constexpr float SCALE = 0.797884560802865356f, CUBIC = 0.044715f; /* √(2/π) */

__device__ __forceinline__ float u_of(float a) { return SCALE * (a + CUBIC * (a * a * a)); }

/* tanhf is 1 - 2/(e^2|u| + 1), and a polynomial below |u| = 0.6. In bf16 the polynomial never decides a bit of gelu: of all
 * 65536 inputs none differs without it (a test goes through them), and the forward kernel is then bound by memory alone. */
template <typename A>
__device__ __forceinline__ float tanh_for(float u) {
    if constexpr (!std::is_same_v<A, bf16>) return tanhf(u);
    const float e = exp2_approx(fabsf(u) * 2.885390043258667f);
    return copysignf(fmaf(reciprocal_approx(e + 1.0f), -2.0f, 1.0f), u);
}

/* gelu and its slope. With t = tanh u the halves ½(1 ± t) are taken from e^(-2|u|), so that neither cancels: gelu is a times
 * one of them, the slope ½(1 + t) + ½·a·(1 - t²)·u'. Beyond |a| = 1e4, where the smaller half has long been 0, a² need not
 * overflow. Here the bits of the tanh form are nobody's contract, and a second tanh would bind the kernel. */
struct gelu_and_slope {
    float gelu, slope;
    __device__ __forceinline__ explicit gelu_and_slope(float a) {
        const float e = expf(-2.0f * fabsf(u_of(a))), larger = reciprocal_approx(1.0f + e), smaller = e * larger;
        const float bounded = fminf(fabsf(a), 1e4f), du = 2.0f * SCALE * fmaf(3.0f * CUBIC * bounded, bounded, 1.0f);
        const float half = a < 0.0f ? smaller : larger;
        gelu = a * half;
        slope = fmaf(a * smaller * larger, du, half);
    }
};

struct geglu {
    using forward_problem = geglu_forward_problem;
    using backward_problem = geglu_backward_problem;

    template <typename A>
    static __device__ __forceinline__ float activation(const forward_problem &, float a) {
        return 0.5f * a * (1.0f + tanh_for<A>(u_of(a)));
    }
    template <typename T, int N>
    static __device__ __forceinline__ void finish(const forward_problem &, float (&)[N]) {}

    /* gelu and dy · up are rounded to T before they meet the other factor, as separate operators would round them. */
    template <typename T, int N>
    static __device__ __forceinline__ void gradients(const backward_problem &, const float (&dy)[N], float (&gate)[N],
                                                     float (&up)[N]) {
        float slope[N];
#pragma unroll
        for (int k = 0; k < N; k++) {
            const gelu_and_slope at(gate[k]);
            slope[k] = at.slope;
            gate[k] = at.gelu;
            up[k] *= dy[k];
        }
        round_all<T>(gate);
        round_all<T>(up);
#pragma unroll
        for (int k = 0; k < N; k++) {
            const float gelu = gate[k];
            gate[k] = up[k] * slope[k];
            up[k] = gelu * dy[k];
        }
    }
};

} // namespace

extern "C" liger_status geglu_forward_cuda(liger_context *context, const geglu_forward_problem *problem,
                                           liger_stream stream) {
    return gated::run_forward<geglu>(context, *problem, "geglu_forward", stream);
}

extern "C" liger_status geglu_backward_cuda(liger_context *context, const geglu_backward_problem *problem,
                                            liger_stream stream) {
    return gated::run_backward<geglu>(context, *problem, "geglu_backward", stream);
}
