/* modulated_rms_norm_cuda.cu - modulated RMSNorm on the GPU: the formula; how it is run stands in row_norm.cuh. */
#include "liger/cuda/row_norm.cuh"
#include "liger/ops/modulated_rms_norm/modulated_rms_norm_problem.h"

namespace {

/* N parameters plus a number, or ones. */
template <typename T, int N>
__device__ __forceinline__ void load_plus(const void *parameters, liger_dtype dtype, int64_t c, float plus,
                                          float (&out)[N]) {
    if (parameters) load_parameters<T>(parameters, dtype, c, out);
#pragma unroll
    for (int i = 0; i < N; i++) out[i] = parameters ? out[i] + plus : 1.0f;
}

/* USUAL: all parameters are there and of type T, so that nothing is asked between their loads. */
template <typename T, bool USUAL>
struct forward {
    using type = T;
    using problem = modulated_rms_norm_forward_problem;
    static constexpr bool ADDS = false, WIDE = !USUAL;
    static constexpr int TWO_PACKS = 256, FOUR_PACKS = 1024, FOUR_PACKS_BLOCKS = 4, EIGHT_PACKS_BLOCKS = 3;
    using shares = float;

    template <typename R>
    static __device__ __forceinline__ float measure(const problem &p, const R &row) {
        const float squares = row.sum([](float s, float x) { return fmaf(x, x, s); });
        const float rstd = 1.0f / sqrtf(squares / (float)p.cols + p.epsilon);
        return p.casting == MODULATED_NONE ? round_to<T>(rstd) : rstd;
    }
    static __device__ __forceinline__ void keep(const problem &p, int64_t r, float rstd) {
        if (p.rstd) p.rstd[r] = rstd;
    }

    template <int N>
    struct any_parameters {
        float weight[N], scale[N], shift[N];
        __device__ __forceinline__ void load(const problem &p, int64_t r, int64_t c) {
            const int64_t at = r / p.group_rows * p.cols + c;
            load_plus<T>(p.weight, p.weight_dtype, c, p.offset, weight);
            load_plus<T>(p.scale, p.scale_dtype, at, 1.0f, scale);
            if (p.shift) load_parameters<T>(p.shift, p.shift_dtype, at, shift);
        }
        __device__ __forceinline__ const any_parameters &widened(const problem &) const { return *this; }
    };
    template <int N>
    struct usual_parameters {
        pack<T, N> weight, scale, shift;
        __device__ __forceinline__ void load(const problem &p, int64_t r, int64_t c) {
            const int64_t at = r / p.group_rows * p.cols + c;
            weight = load_shared<T, N>((const T *)p.weight + c);
            scale = load_shared<T, N>((const T *)p.scale + at);
            shift = load_shared<T, N>((const T *)p.shift + at);
        }
        __device__ __forceinline__ any_parameters<N> widened(const problem &p) const {
            any_parameters<N> wide;
            unpack(weight, wide.weight);
            unpack(scale, wide.scale);
            unpack(shift, wide.shift);
#pragma unroll
            for (int i = 0; i < N; i++) wide.weight[i] += p.offset, wide.scale[i] += 1.0f;
            return wide;
        }
    };
    template <int N>
    using parameters = std::conditional_t<USUAL, usual_parameters<N>, any_parameters<N>>;
    static __device__ __forceinline__ bool has_parameters(const problem &) { return true; }
    static __device__ __forceinline__ bool has_all_parameters(const problem &) { return USUAL; }

    /* x·rstd·(weight + offset)·(1 + scale) + shift; casting NONE rounds weight + offset if the weight is of type T. */
    template <bool ALL, int N>
    static __device__ __forceinline__ void apply(const problem &p, float rstd, const parameters<N> &given,
                                                 float (&x)[N]) {
        any_parameters<N> columns = given.widened(p);
#pragma unroll
        for (int i = 0; i < N; i++) x[i] *= rstd;
        if (p.casting == MODULATED_LLAMA) round_all<T>(x);
        if (p.casting == MODULATED_NONE && p.weight_dtype != LIGER_F32) round_all<T>(columns.weight);
#pragma unroll
        for (int i = 0; i < N; i++) x[i] *= columns.weight[i];
        if (p.casting == MODULATED_GEMMA) round_all<T>(x);
#pragma unroll
        for (int i = 0; i < N; i++) {
            x[i] *= columns.scale[i];
            if (USUAL || p.shift) x[i] += columns.shift[i];
        }
    }
};

/* As RMSNorm's, of dy · (1 + scale). The two sums of a group are Σ dy·x·rstd and Σ dy: the gradients of scale and shift and,
 * times 1 + scale, the group's part in that of the weight. What GEMMA rounds in that of scale, of_rounded sums. */
template <typename T>
struct backward : row_norm::of_rstd {
    using type = T;
    using problem = modulated_rms_norm_backward_problem;
    static constexpr bool ADDS = false;
    static constexpr int PARTIALS = row_norm::GROUPED_SUMS, TOTALS = 0;

    template <int N>
    static __device__ __forceinline__ void scale(const problem &p, int64_t r, int64_t c, float (&scale)[N]) {
        float weight[N];
        load_plus<T>(p.weight, p.weight_dtype, c, p.offset, weight);
        load_plus<T>(p.scale, p.scale_dtype, r / p.plan.group_rows * p.cols + c, 1.0f, scale);
#pragma unroll
        for (int i = 0; i < N; i++) scale[i] *= weight[i];
    }
    template <int N>
    static __device__ __forceinline__ void gather(const problem &p, facts rstd, const float (&dy)[N],
                                                  const float (&g)[N], const float (&x)[N], float (&sums)[SUMS],
                                                  float (&partial)[PARTIALS][N]) {
        float normal[N];
        normalise(rstd, g, x, sums, normal);
        if (p.casting == MODULATED_LLAMA) round_all<T>(normal);
#pragma unroll
        for (int i = 0; i < N; i++) {
            partial[0][i] = fmaf(dy[i], normal[i], partial[0][i]);
            partial[1][i] += dy[i];
        }
    }

    template <int N>
    static __device__ __forceinline__ void finish_group(const problem &p, int64_t group, int64_t c,
                                                        const float (&sums)[PARTIALS][N], float *all, bool first) {
        const int64_t at = group * p.cols + c;
        if (p.dshift) store_parameters<T>(p.dshift, p.shift_dtype, at, sums[1]);
        if (p.dscale) {
            float weight[N];
            const float offset = p.casting == MODULATED_NONE ? round_to<T>(p.offset) : p.offset; /* as forward has it */
            load_plus<T>(p.weight, p.weight_dtype, c, offset, weight);
            if (p.casting == MODULATED_NONE && p.weight_dtype != LIGER_F32) round_all<T>(weight);
#pragma unroll
            for (int i = 0; i < N; i++) weight[i] *= sums[0][i];
            store_parameters<T>(p.dscale, p.scale_dtype, at, weight);
        }
        if (p.dweight) {
            float scale[N];
            load_plus<T>(p.scale, p.scale_dtype, at, 1.0f, scale);
            pack<float, N> out = {};
            if (!first) out = load_pack<float, N>(all);
#pragma unroll
            for (int i = 0; i < N; i++) out.value[i] = fmaf(scale[i], sums[0][i], out.value[i]);
            store_pack<float, N>(all, out);
        }
    }
};

/* GEMMA's gradient of scale, Σ dy·RMSNorm(x): a pass of its own, for a rounding stands between it and the other sums, and in
 * f32 a product that may be infinite. */
template <typename T>
struct of_rounded : backward<T> {
    using problem = modulated_rms_norm_backward_problem;
    static constexpr int PARTIALS = backward<T>::PARTIALS, SUMS = backward<T>::SUMS;

    template <int N>
    static __device__ __forceinline__ void scale(const problem &p, int64_t, int64_t c, float (&weight)[N]) {
        load_plus<T>(p.weight, p.weight_dtype, c, p.offset, weight);
    }
    template <int N>
    static __device__ __forceinline__ void terms(float, const float (&)[N], const float (&weight)[N], float (&)[N],
                                                 float (&g)[N]) {
#pragma unroll
        for (int i = 0; i < N; i++) g[i] = weight[i];
    }
    template <int N>
    static __device__ __forceinline__ void gather(const problem &, float rstd, const float (&dy)[N],
                                                  const float (&weight)[N], const float (&x)[N], float (&)[SUMS],
                                                  float (&partial)[PARTIALS][N]) {
        float normal[N];
#pragma unroll
        for (int i = 0; i < N; i++) normal[i] = x[i] * rstd * weight[i];
        round_all<T>(normal);
#pragma unroll
        for (int i = 0; i < N; i++) partial[0][i] = fmaf(dy[i], normal[i], partial[0][i]);
    }
    template <int N>
    static __device__ __forceinline__ void finish_group(const problem &p, int64_t group, int64_t c,
                                                        const float (&sums)[PARTIALS][N], float *, bool) {
        store_parameters<T>(p.dscale, p.scale_dtype, group * p.cols + c, sums[0]);
    }
};

/* All of backward of 1 row or more. What GEMMA needs apart comes first: dx may take the place of dy. */
template <typename T>
cudaError_t run_backward(const modulated_rms_norm_backward_problem &p, bool packable, cudaStream_t stream) {
    const bool apart = p.casting == MODULATED_GEMMA && p.dscale;
    modulated_rms_norm_backward_problem most = p, rest = p;
    if (apart) most.dscale = NULL, rest.dx.data = NULL;
    if (apart) row_norm::launch_grouped<of_rounded<T>>(rest, packable, stream);
    return row_norm::run_grouped<backward<T>>(most, p.dweight, p.weight_dtype, packable, stream);
}

template <typename T>
void launch_forward(const liger_context *context, const modulated_rms_norm_forward_problem &p, bool packable,
                    cudaStream_t stream) {
    const bool usual =
        p.weight && p.shift && p.weight_dtype == p.dtype && p.scale_dtype == p.dtype && p.shift_dtype == p.dtype;
    if (!row_norm::fits_registers<T>(p, packable))
        row_norm::launch_forward_loop<forward<T, false>>(p, packable, stream);
    else if (usual) row_norm::launch_forward_registers<forward<T, true>>(context, p, stream);
    else row_norm::launch_forward_registers<forward<T, false>>(context, p, stream);
}

/* Without rows the gradients of parameters are zeros, and there is nothing else. */
cudaError_t clear(const modulated_rms_norm_backward_problem &p, cudaStream_t stream) {
    const cudaError_t error = row_norm::clear({{p.dweight, NULL}, p.weight_dtype}, p.cols, stream);
    if (error != cudaSuccess) return error;
    const int64_t elements = p.plan.groups * p.cols;
    const cudaError_t of_scale = row_norm::clear({{p.dscale, NULL}, p.scale_dtype}, elements, stream);
    return of_scale != cudaSuccess ? of_scale : row_norm::clear({{p.dshift, NULL}, p.shift_dtype}, elements, stream);
}

} // namespace

extern "C" liger_status modulated_rms_norm_forward_cuda(liger_context *context,
                                                        const modulated_rms_norm_forward_problem *problem,
                                                        liger_stream stream) {
    const modulated_rms_norm_forward_problem &p = *problem;
    LIGER_ON_DEVICE(context, "modulated_rms_norm_forward");
    const size_t element = liger_dtype_size(p.dtype);
    const bool packable = p.cols * element % PACK_BYTES == 0 && rows_are_packable(p.x, element) &&
                          rows_are_packable(p.y, element) && pointer_is_packable(p.weight) &&
                          pointer_is_packable(p.scale) && pointer_is_packable(p.shift);
    LIGER_FOR_FLOAT(p.dtype, T, launch_forward<T>(context, p, packable, (cudaStream_t)stream));
    return launched(context, "modulated_rms_norm_forward", stream);
}

extern "C" liger_status modulated_rms_norm_backward_cuda(liger_context *context,
                                                         const modulated_rms_norm_backward_problem *problem,
                                                         liger_stream given) {
    const modulated_rms_norm_backward_problem &p = *problem;
    const cudaStream_t stream = (cudaStream_t)given;
    LIGER_ON_DEVICE(context, "modulated_rms_norm_backward");
    const size_t element = liger_dtype_size(p.dtype);
    const bool packable = p.cols * element % PACK_BYTES == 0 && rows_are_packable(p.x, element) &&
                          rows_are_packable(p.dy, element) && rows_are_packable(p.dx, element) &&
                          pointer_is_packable(p.weight) && pointer_is_packable(p.scale) &&
                          pointer_is_packable(p.dscale) && pointer_is_packable(p.dshift);
    cudaError_t error = cudaSuccess;
    if (p.rows == 0) error = clear(p, stream);
    else LIGER_FOR_FLOAT(p.dtype, T, error = run_backward<T>(p, packable, stream));
    LIGER_TRY(cuda_status(error, "modulated_rms_norm_backward"));
    return launched(context, "modulated_rms_norm_backward", given);
}
