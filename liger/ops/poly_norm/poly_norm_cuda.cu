/* poly_norm_cuda.cu - PolyNorm on the GPU: the formula; how it is run stands in row_norm.cuh. */
#include "liger/cuda/row_norm.cuh"
#include "liger/ops/poly_norm/poly_norm_problem.h"

namespace {

template <typename T>
struct forward {
    using type = T;
    using problem = poly_norm_forward_problem;
    static constexpr bool ADDS = false;
    static constexpr int TWO_PACKS = 512, FOUR_PACKS = 1024, FOUR_PACKS_BLOCKS = 4, EIGHT_PACKS_BLOCKS = 2;
    static constexpr bool WIDE = false;
    struct shares {
        float sum[3];
    };
    struct statistics {
        float rstd[3], factor[3], bias;
    };

    template <typename R>
    static __device__ __forceinline__ statistics measure(const problem &p, const R &row) {
        statistics m;
#pragma unroll
        for (int k = 0; k < 3; k++) m.factor[k] = load_as(p.weight, p.weight_dtype, k);
        m.bias = load_as(p.bias, p.weight_dtype, 0);
        row.sums(
            m.rstd,
            [](float s, float x) {
                const float cube = x * x * x;
                return fmaf(cube, cube, s);
            },
            [](float s, float x) { return fmaf(x * x, x * x, s); }, [](float s, float x) { return fmaf(x, x, s); });
#pragma unroll
        for (int k = 0; k < 3; k++) {
            m.rstd[k] = 1.0f / sqrtf(m.rstd[k] / (float)p.cols + p.epsilon);
            m.factor[k] *= m.rstd[k];
        }
        return m;
    }
    static __device__ __forceinline__ void keep(const problem &p, int64_t r, const statistics &m) {
        for (int k = 0; p.rstd && k < 3; k++) p.rstd[3 * r + k] = m.rstd[k];
    }

    template <int N>
    struct parameters {
        __device__ __forceinline__ void load(const problem &, int64_t, int64_t) {}
    };
    static __device__ __forceinline__ bool has_parameters(const problem &) { return false; }
    static __device__ __forceinline__ bool has_all_parameters(const problem &) { return false; }

    template <bool ALL, int N>
    static __device__ __forceinline__ void apply(const problem &, const statistics &m, const parameters<N> &,
                                                 float (&x)[N]) {
#pragma unroll
        for (int i = 0; i < N; i++)
            x[i] = fmaf(fmaf(fmaf(m.factor[0], x[i], m.factor[1]), x[i], m.factor[2]), x[i], m.bias);
    }
};

/* dx = slope(x) · dy - x · back(x²), two polynomials of the row. */
template <typename T>
struct backward {
    using type = T;
    using problem = poly_norm_backward_problem;
    static constexpr bool ADDS = false;
    static constexpr int SUMS = 4, PARTIALS = 0, TOTALS = 4; /* of dy · x³, dy · x², dy · x, dy */
    struct facts {
        float rstd[3], weight[3];
    };
    struct pull {
        float slope[3], back[3];
    };

    static __device__ __forceinline__ facts facts_of(const problem &p, int64_t r) {
        facts f;
#pragma unroll
        for (int k = 0; k < 3; k++) f.rstd[k] = p.rstd[3 * r + k], f.weight[k] = load_as(p.weight, p.weight_dtype, k);
        return f;
    }
    template <int N>
    static __device__ __forceinline__ void scale(const problem &, int64_t, int64_t, float (&)[N]) {}
    template <int N>
    static __device__ __forceinline__ void terms(const facts &, const float (&dy)[N], const float (&)[N], float (&)[N],
                                                 float (&g)[N]) {
#pragma unroll
        for (int i = 0; i < N; i++) g[i] = dy[i];
    }
    template <int N>
    static __device__ __forceinline__ void gather(const problem &, const facts &, const float (&)[N],
                                                  const float (&g)[N], const float (&x)[N], float (&sums)[SUMS],
                                                  float (&)[1][N]) {
#pragma unroll
        for (int i = 0; i < N; i++) {
            const float once = g[i] * x[i], twice = once * x[i];
            sums[0] = fmaf(twice, x[i], sums[0]);
            sums[1] += twice;
            sums[2] += once;
            sums[3] += g[i];
        }
    }
    static __device__ __forceinline__ void add_totals(const facts &f, const float (&sums)[SUMS], float (&totals)[4]) {
#pragma unroll
        for (int k = 0; k < 3; k++) totals[k] = fmaf(f.rstd[k], sums[k], totals[k]);
        totals[3] += sums[3];
    }
    /* No power of rstd stands alone: its cube leaves the range of f32. */
    static __device__ __forceinline__ pull pull_of(const facts &f, const float (&means)[SUMS]) {
        pull of;
#pragma unroll
        for (int k = 0; k < 3; k++) {
            of.slope[k] = f.weight[k] * (float)(3 - k) * f.rstd[k];
            of.back[k] = of.slope[k] * (f.rstd[k] * means[k]) * f.rstd[k];
        }
        return of;
    }
    static __device__ __forceinline__ float dx_of(const facts &, const pull &of, float g, float x) {
        const float square = x * x;
        const float slope = fmaf(fmaf(of.slope[0], x, of.slope[1]), x, of.slope[2]);
        const float back = fmaf(fmaf(of.back[0], square, of.back[1]), square, of.back[2]);
        return fmaf(-back, x, slope * g);
    }
    LIGER_HOST_DEVICE static bool gathers(const problem &, int) { return false; }
    static row_norm::totals_to totals_of(const problem &p) {
        return {{p.dweight, p.dweight, p.dweight, p.dbias}, {0, 1, 2, 0}, p.weight_dtype};
    }
};

template <typename T>
void launch_forward(const liger_context *context, const poly_norm_forward_problem &p, bool packable,
                    cudaStream_t stream) {
    if (row_norm::fits_registers<T>(p, packable)) row_norm::launch_forward_registers<forward<T>>(context, p, stream);
    else row_norm::launch_forward_loop<forward<T>>(p, packable, stream);
}

template <typename T>
cudaError_t launch_backward(const liger_context *context, poly_norm_backward_problem &p, bool packable,
                            cudaStream_t stream) {
    const int rung = row_norm::rung_of<T>(context, p, packable, false);
    if (rung < 0) return row_norm::launch_backward_loop<backward<T>>(context, p, packable, stream);
    return row_norm::launch_backward_registers<backward<T>>(context, p, rung, stream);
}

} // namespace

extern "C" liger_status poly_norm_forward_cuda(liger_context *context, const poly_norm_forward_problem *problem,
                                               liger_stream stream) {
    const poly_norm_forward_problem &p = *problem;
    LIGER_ON_DEVICE(context, "poly_norm_forward");
    const size_t element = liger_dtype_size(p.dtype);
    const bool packable =
        p.cols * element % PACK_BYTES == 0 && rows_are_packable(p.x, element) && rows_are_packable(p.y, element);
    LIGER_FOR_FLOAT(p.dtype, T, launch_forward<T>(context, p, packable, (cudaStream_t)stream));
    return launched(context, "poly_norm_forward", stream);
}

extern "C" liger_status poly_norm_backward_cuda(liger_context *context, const poly_norm_backward_problem *problem,
                                                liger_stream given) {
    const poly_norm_backward_problem &p = *problem;
    const cudaStream_t stream = (cudaStream_t)given;
    LIGER_ON_DEVICE(context, "poly_norm_backward");
    const size_t element = liger_dtype_size(p.dtype), of_weight = liger_dtype_size(p.weight_dtype);
    const bool packable = p.cols * element % PACK_BYTES == 0 && rows_are_packable(p.x, element) &&
                          rows_are_packable(p.dy, element) && rows_are_packable(p.dx, element);
    cudaError_t error = cudaSuccess;
    if (p.rows == 0) {
        if (p.dweight) error = cudaMemsetAsync(p.dweight, 0, 3 * of_weight, stream);
        if (p.dbias && error == cudaSuccess) error = cudaMemsetAsync(p.dbias, 0, of_weight, stream);
    } else {
        poly_norm_backward_problem q = p;
        LIGER_FOR_FLOAT(q.dtype, T, error = launch_backward<T>(context, q, packable, stream));
    }
    LIGER_TRY(cuda_status(error, "poly_norm_backward"));
    return launched(context, "poly_norm_backward", stream);
}
