/* layer_norm_cuda.cu - LayerNorm on the GPU: the formula; how it is run stands in row_norm.cuh. */
#include "liger/cuda/row_norm.cuh"
#include "liger/ops/layer_norm/layer_norm_problem.h"

namespace {

template <typename T, typename TW>
struct forward {
    using type = T;
    using problem = layer_norm_forward_problem;
    static constexpr bool ADDS = false;
    static constexpr bool WIDE = sizeof(TW) > sizeof(T); /* two vectors of f32 take more registers */
    static constexpr int TWO_PACKS = 64, FOUR_PACKS = 512, FOUR_PACKS_BLOCKS = WIDE ? 5 : 6, EIGHT_PACKS_BLOCKS = 3;
    using shares = row_norm::moments_share;

    struct statistics {
        float mean, rstd, shift; /* shift: what the rounding of the mean takes from every normal */
    };

    template <typename R>
    static __device__ __forceinline__ statistics measure(const problem &p, const R &row) {
        const row_norm::moments m = row.centred();
        const float rstd = 1.0f / sqrtf(m.variance + p.epsilon);
        return {m.mean, rstd, -m.missing * rstd};
    }
    static __device__ __forceinline__ void keep(const problem &p, int64_t r, const statistics &m) {
        if (p.mean) p.mean[r] = m.mean;
        if (p.rstd) p.rstd[r] = m.rstd;
    }

    template <int N>
    struct parameters {
        pack<TW, N> weight, bias;
        __device__ __forceinline__ void load(const problem &p, int64_t, int64_t c) {
            if (p.weight) weight = load_shared<TW, N>((const TW *)p.weight + c);
            if (p.bias) bias = load_shared<TW, N>((const TW *)p.bias + c);
        }
    };
    static __device__ __forceinline__ bool has_parameters(const problem &p) { return p.weight || p.bias; }
    static __device__ __forceinline__ bool has_all_parameters(const problem &p) { return p.weight && p.bias; }

    /* Nothing is unpacked of a parameter that is absent: registers would be kept for the choice between it and nothing. */
    template <bool ALL, int N>
    static __device__ __forceinline__ void apply(const problem &p, const statistics &m, const parameters<N> &columns,
                                                 float (&x)[N]) {
#pragma unroll
        for (int i = 0; i < N; i++) x[i] = fmaf(x[i] - m.mean, m.rstd, m.shift);
        if (ALL || p.weight) {
            float weight[N];
            unpack(columns.weight, weight);
#pragma unroll
            for (int i = 0; i < N; i++) x[i] *= weight[i];
        }
        if (ALL || p.bias) {
            float bias[N];
            unpack(columns.bias, bias);
#pragma unroll
            for (int i = 0; i < N; i++) x[i] += bias[i];
        }
    }
};

template <typename T>
struct backward {
    using type = T;
    using problem = layer_norm_backward_problem;
    static constexpr bool ADDS = false;
    static constexpr int SUMS = 2, PARTIALS = 2; /* of dy·weight and its product with the normal; dweight and dbias */
    static constexpr int TOTALS = 0;
    struct facts {
        float mean, rstd;
    };
    struct pull {
        float mean, along;
    };

    static __device__ __forceinline__ facts facts_of(const problem &p, int64_t r) { return {p.mean[r], p.rstd[r]}; }

    template <int N>
    static __device__ __forceinline__ void scale(const problem &p, int64_t, int64_t c, float (&weight)[N]) {
        if (p.weight) load_parameters<T>(p.weight, p.weight_dtype, c, weight);
#pragma unroll
        for (int i = 0; i < N; i++) weight[i] = p.weight ? weight[i] : 1.0f;
    }
    /* x becomes the normal. */
    template <int N>
    static __device__ __forceinline__ void terms(const facts &m, const float (&dy)[N], const float (&weight)[N],
                                                 float (&x)[N], float (&g)[N]) {
#pragma unroll
        for (int i = 0; i < N; i++) g[i] = dy[i] * weight[i], x[i] = (x[i] - m.mean) * m.rstd;
    }
    template <int N>
    static __device__ __forceinline__ void gather(const problem &, const facts &, const float (&dy)[N],
                                                  const float (&g)[N], const float (&normal)[N], float (&sums)[SUMS],
                                                  float (&partial)[PARTIALS][N]) {
#pragma unroll
        for (int i = 0; i < N; i++) {
            sums[0] += g[i];
            sums[1] = fmaf(g[i], normal[i], sums[1]);
            partial[0][i] = fmaf(dy[i], normal[i], partial[0][i]);
            partial[1][i] += dy[i];
        }
    }
    static __device__ __forceinline__ pull pull_of(const facts &, const float (&means)[SUMS]) {
        return {means[0], means[1]};
    }
    /* rstd last: the difference of g and its mean is then exactly 0 where they are equal. */
    static __device__ __forceinline__ float dx_of(const facts &m, const pull &pull, float g, float normal) {
        return m.rstd * fmaf(-pull.along, normal, g - pull.mean);
    }
    LIGER_HOST_DEVICE static bool gathers(const problem &p, int i) { return (i == 0 ? p.dweight : p.dbias) != NULL; }
};

template <typename T, typename TW>
void launch_forward(const liger_context *context, const layer_norm_forward_problem &p, bool packable,
                    cudaStream_t stream) {
    if (row_norm::fits_registers<T>(p, packable))
        row_norm::launch_forward_registers<forward<T, TW>>(context, p, stream);
    else row_norm::launch_forward_loop<forward<T, TW>>(p, packable, stream);
}

template <typename T>
cudaError_t launch_backward(const liger_context *context, layer_norm_backward_problem &p, bool packable,
                            cudaStream_t stream) {
    const int rung = row_norm::rung_of<T>(context, p, packable, false);
    if (rung < 0) return row_norm::launch_backward_loop<backward<T>>(context, p, packable, stream);
    return row_norm::launch_backward_registers<backward<T>>(context, p, rung, stream);
}

} // namespace

extern "C" liger_status layer_norm_forward_cuda(liger_context *context, const layer_norm_forward_problem *problem,
                                                liger_stream stream) {
    const layer_norm_forward_problem &p = *problem;
    LIGER_ON_DEVICE(context, "layer_norm_forward");
    const size_t element = liger_dtype_size(p.dtype);
    const bool packable = p.cols * element % PACK_BYTES == 0 && rows_are_packable(p.x, element) &&
                          rows_are_packable(p.y, element) && pointer_is_packable(p.weight) &&
                          pointer_is_packable(p.bias);
    LIGER_FOR_FLOAT_AND_WEIGHT(p.dtype, p.weight_dtype, T, TW,
                               launch_forward<T, TW>(context, p, packable, (cudaStream_t)stream));
    return launched(context, "layer_norm_forward", stream);
}

extern "C" liger_status layer_norm_backward_cuda(liger_context *context, const layer_norm_backward_problem *problem,
                                                 liger_stream given) {
    const layer_norm_backward_problem &p = *problem;
    const cudaStream_t stream = (cudaStream_t)given;
    LIGER_ON_DEVICE(context, "layer_norm_backward");
    const size_t element = liger_dtype_size(p.dtype);
    const bool packable = p.cols * element % PACK_BYTES == 0 && rows_are_packable(p.x, element) &&
                          rows_are_packable(p.dy, element) && rows_are_packable(p.dx, element) &&
                          pointer_is_packable(p.weight);
    return row_norm::run_backward(
        context, p, {{p.dweight, p.dbias}, p.weight_dtype}, "layer_norm_backward", stream, [&](auto &q) {
            cudaError_t error = cudaSuccess;
            LIGER_FOR_FLOAT(q.dtype, T, error = launch_backward<T>(context, q, packable, stream));
            return error;
        });
}
