/* gated.cuh - the kernels of gated activations, y = f(gate) · up: element-wise and memory-bound, so that nothing matters but
 * many loads on their way; elementwise.cuh runs them. Inputs are read before outputs are written and never through the
 * read-only cache, because an output may be an input.
 *
 * An operator brings its formula F, over the N values of a pack:
 *   F::forward_problem     rows, cols, dtype, activation_dtype, gate, up, y
 *   F::backward_problem    rows, cols, dtype, dy, gate, up, dgate, dup
 *   F::activation<A>(p, gate)                     f of one value, which is rounded to A; float: to a type that p names
 *   F::finish<T>(p, y)                            what comes after the product, usually nothing
 *   F::gradients<T>(p, dy, gate, up)              gate and up become their gradients */
#ifndef LIGER_CUDA_GATED_CUH
#define LIGER_CUDA_GATED_CUH

#include <type_traits>

#include "liger/cuda/approx.cuh"
#include "liger/cuda/elementwise.cuh"

namespace gated {

/* N neighbouring elements of one row: a pack or one element. ROUNDS_TO_T: the activation is rounded to T, which then is
 * known when compiling. */
template <typename F, typename T, bool ROUNDS_TO_T>
struct forward_body {
    using problem = typename F::forward_problem;
    static constexpr bool FROM_THE_END = false;
    using rounded = std::conditional_t<ROUNDS_TO_T, T, float>;

    template <int N>
    static __device__ __forceinline__ void run(const problem &p, int64_t r, int64_t i) {
        pack<T, N> out = load_pack<T, N>(row_at<const T>(p.gate, r) + i);
        const pack<T, N> factor = load_pack<T, N>(row_at<const T>(p.up, r) + i);
        float y[N], up[N];
        unpack(out, y);
        unpack(factor, up);
#pragma unroll
        for (int k = 0; k < N; k++) y[k] = F::template activation<rounded>(p, y[k]);
        if constexpr (ROUNDS_TO_T) round_all<T>(y);
#pragma unroll
        for (int k = 0; k < N; k++) y[k] = (ROUNDS_TO_T ? y[k] : round_to_dtype(p.activation_dtype, y[k])) * up[k];
        F::template finish<T>(p, y);
        repack(y, out);
        store_whole_pack<T, N>(row_at<T>(p.y, r) + i, out);
    }
};

template <typename F, typename T>
struct backward_body {
    using problem = typename F::backward_problem;
    static constexpr bool FROM_THE_END = true;

    static __device__ __forceinline__ T *row_if_there(liger_rows rows, int64_t r) {
        return rows.data ? row_at<T>(rows, r) : nullptr;
    }
    template <int N>
    static __device__ __forceinline__ void run(const problem &p, int64_t r, int64_t i) {
        pack<T, N> dgate = load_pack<T, N>(row_at<const T>(p.gate, r) + i);
        pack<T, N> dup = load_pack<T, N>(row_at<const T>(p.up, r) + i);
        const pack<T, N> upstream = load_pack<T, N>(row_at<const T>(p.dy, r) + i);
        float gate[N], up[N], dy[N];
        unpack(dgate, gate);
        unpack(dup, up);
        unpack(upstream, dy);
        F::template gradients<T>(p, dy, gate, up);
        repack(gate, dgate);
        repack(up, dup);
        T *const dgate_row = row_if_there(p.dgate, r), *const dup_row = row_if_there(p.dup, r);
        if (dup_row) store_whole_pack<T, N>(dup_row + i, dup);
        if (dgate_row) store_whole_pack<T, N>(dgate_row + i, dgate);
    }
};

template <typename F>
liger_status run_forward(const liger_context *context, const typename F::forward_problem &p, const char *op,
                         liger_stream stream) {
    LIGER_ON_DEVICE(context, op);
    const size_t element = liger_dtype_size(p.dtype);
    const bool packable =
        rows_are_packable(p.gate, element) && rows_are_packable(p.up, element) && rows_are_packable(p.y, element);
    LIGER_FOR_FLOAT(p.dtype, T,
                    if (p.activation_dtype == p.dtype)
                        elementwise::launch<forward_body<F, T, true>, T>(context, p, packable, (cudaStream_t)stream);
                    else elementwise::launch<forward_body<F, T, false>, T>(context, p, packable, (cudaStream_t)stream));
    return launched(context, op, stream);
}

template <typename F>
liger_status run_backward(const liger_context *context, const typename F::backward_problem &p, const char *op,
                          liger_stream stream) {
    LIGER_ON_DEVICE(context, op);
    const size_t element = liger_dtype_size(p.dtype);
    const bool packable = rows_are_packable(p.dy, element) && rows_are_packable(p.gate, element) &&
                          rows_are_packable(p.up, element) && rows_are_packable(p.dgate, element) &&
                          rows_are_packable(p.dup, element);
    LIGER_FOR_FLOAT(p.dtype, T,
                    elementwise::launch<backward_body<F, T>, T>(context, p, packable, (cudaStream_t)stream));
    return launched(context, op, stream);
}

} // namespace gated

#endif
