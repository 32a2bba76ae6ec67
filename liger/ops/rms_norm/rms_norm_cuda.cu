/* rms_norm_cuda.cu - RMSNorm on the GPU: the formula; how it is run stands in row_norm.cuh. */
#include "liger/cuda/row_norm.cuh"
#include "liger/ops/rms_norm/rms_norm.h"
#include "liger/ops/rms_norm/rms_norm_problem.h"

namespace {

template <typename T, typename TW, bool ADD>
struct forward {
    using type = T;
    using problem = rms_norm_forward_problem;
    static constexpr bool ADDS = ADD;
    static constexpr int TWO_PACKS = 512, FOUR_PACKS = 1024, FOUR_PACKS_BLOCKS = 4, EIGHT_PACKS_BLOCKS = 3;
    static constexpr bool WIDE = sizeof(TW) > sizeof(T);
    using shares = float;

    template <typename R>
    static __device__ __forceinline__ float measure(const problem &p, const R &row) {
        const float squares = row.sum([](float s, float x) { return fmaf(x, x, s); });
        const float rstd = 1.0f / sqrtf(squares / (float)p.cols + p.epsilon);
        return p.casting == LIGER_CAST_NONE ? round_to<T>(rstd) : rstd;
    }
    static __device__ __forceinline__ void keep(const problem &p, int64_t r, float rstd) {
        if (p.rstd) p.rstd[r] = rstd;
    }

    template <int N>
    struct parameters {
        pack<TW, N> weight;
        __device__ __forceinline__ void load(const problem &p, int64_t, int64_t c) {
            weight = load_shared<TW, N>((const TW *)p.weight + c);
        }
    };
    static __device__ __forceinline__ bool has_parameters(const problem &p) { return p.weight != NULL; }
    static __device__ __forceinline__ bool has_all_parameters(const problem &p) { return p.weight != NULL; }

    /* x·rstd·(weight + offset); casting NONE rounds the sum if the weight is of type T. */
    template <bool ALL, int N>
    static __device__ __forceinline__ void apply(const problem &p, float rstd, const parameters<N> &columns,
                                                 float (&x)[N]) {
#pragma unroll
        for (int i = 0; i < N; i++) x[i] *= rstd;
        if (!ALL && !p.weight) return;
        float scale[N];
        unpack(columns.weight, scale);
#pragma unroll
        for (int i = 0; i < N; i++) scale[i] += p.offset;
        if (p.casting == LIGER_CAST_LLAMA) round_all<T>(x);
        if (p.casting == LIGER_CAST_NONE && sizeof(T) == sizeof(TW)) round_all<T>(scale);
#pragma unroll
        for (int i = 0; i < N; i++) x[i] *= scale[i];
    }
};

template <typename T, bool ADD>
struct backward : row_norm::of_rstd {
    using type = T;
    using problem = rms_norm_backward_problem;
    static constexpr bool ADDS = ADD;
    static constexpr int PARTIALS = 1, TOTALS = 0;

    /* weight + offset, or ones. */
    template <int N>
    static __device__ __forceinline__ void scale(const problem &p, int64_t, int64_t c, float (&scale)[N]) {
        if (p.weight) load_parameters<T>(p.weight, p.weight_dtype, c, scale);
#pragma unroll
        for (int i = 0; i < N; i++) scale[i] = p.weight ? scale[i] + p.offset : 1.0f;
    }
    template <int N>
    static __device__ __forceinline__ void gather(const problem &p, facts rstd, const float (&dy)[N],
                                                  const float (&g)[N], const float (&x)[N], float (&sums)[SUMS],
                                                  float (&partial)[PARTIALS][N]) {
        float normal[N];
        normalise(rstd, g, x, sums, normal);
        if (p.casting == LIGER_CAST_LLAMA) round_all<T>(normal);
#pragma unroll
        for (int i = 0; i < N; i++) partial[0][i] = fmaf(dy[i], normal[i], partial[0][i]);
    }
    LIGER_HOST_DEVICE static bool gathers(const problem &p, int) { return p.dweight != NULL; }
};

template <typename T, typename TW>
void launch_forward(const liger_context *context, const rms_norm_forward_problem &p, bool packable,
                    cudaStream_t stream) {
    if (!row_norm::fits_registers<T>(p, packable))
        row_norm::launch_forward_loop<forward<T, TW, true>>(p, packable, stream);
    else if (p.residual.data) row_norm::launch_forward_registers<forward<T, TW, true>>(context, p, stream);
    else row_norm::launch_forward_registers<forward<T, TW, false>>(context, p, stream);
}

template <typename T>
cudaError_t launch_backward(const liger_context *context, rms_norm_backward_problem &p, bool packable,
                            cudaStream_t stream) {
    const bool adds = p.dsum.data != NULL;
    const int rung = row_norm::rung_of<T>(context, p, packable, adds);
    if (rung < 0) return row_norm::launch_backward_loop<backward<T, true>>(context, p, packable, stream);
    if (adds) return row_norm::launch_backward_registers<backward<T, true>>(context, p, rung, stream);
    return row_norm::launch_backward_registers<backward<T, false>>(context, p, rung, stream);
}

} // namespace

extern "C" liger_status rms_norm_forward_cuda(liger_context *context, const rms_norm_forward_problem *problem,
                                              liger_stream stream) {
    const rms_norm_forward_problem &p = *problem;
    LIGER_ON_DEVICE(context, p.function);
    const size_t element = liger_dtype_size(p.dtype);
    const bool packable = p.cols * element % PACK_BYTES == 0 && rows_are_packable(p.x, element) &&
                          rows_are_packable(p.y, element) && rows_are_packable(p.residual, element) &&
                          rows_are_packable(p.sum, element) && pointer_is_packable(p.weight);
    LIGER_FOR_FLOAT_AND_WEIGHT(p.dtype, p.weight_dtype, T, TW,
                               launch_forward<T, TW>(context, p, packable, (cudaStream_t)stream));
    return launched(context, p.function, stream);
}

extern "C" liger_status rms_norm_backward_cuda(liger_context *context, const rms_norm_backward_problem *problem,
                                               liger_stream given) {
    const rms_norm_backward_problem &p = *problem;
    const cudaStream_t stream = (cudaStream_t)given;
    LIGER_ON_DEVICE(context, p.function);
    const size_t element = liger_dtype_size(p.dtype);
    const bool packable = p.cols * element % PACK_BYTES == 0 && rows_are_packable(p.x, element) &&
                          rows_are_packable(p.dy, element) && rows_are_packable(p.dx, element) &&
                          rows_are_packable(p.dsum, element) && pointer_is_packable(p.weight);
    return row_norm::run_backward(context, p, {{p.dweight, NULL}, p.weight_dtype}, p.function, stream, [&](auto &q) {
        cudaError_t error = cudaSuccess;
        LIGER_FOR_FLOAT(q.dtype, T, error = launch_backward<T>(context, q, packable, stream));
        return error;
    });
}
