/* relu_squared_cuda.cu - max(x, 0)² on the GPU: the formula; how it is run stands in elementwise.cuh. */
#include "liger/cuda/elementwise.cuh"
#include "liger/ops/relu_squared/relu_squared_problem.h"

namespace {

__device__ __forceinline__ float relu(float x) { return x < 0.0f ? 0.0f : x; } /* NaN stays */

template <typename T>
struct forward {
    using problem = relu_squared_forward_problem;
    static constexpr bool FROM_THE_END = false;
    template <int N>
    static __device__ __forceinline__ void run(const problem &p, int64_t r, int64_t i) {
        pack<T, N> out = load_pack<T, N>(row_at<const T>(p.x, r) + i);
        float x[N];
        unpack(out, x);
#pragma unroll
        for (int k = 0; k < N; k++) x[k] = relu(x[k]) * relu(x[k]);
        repack(x, out);
        store_whole_pack<T, N>(row_at<T>(p.y, r) + i, out);
    }
};

/* 2 · x · dy. The factor that has room for it takes the 2: then only the product is rounded, and nothing overflows before it. */
__device__ __forceinline__ float twice_product(float x, float dy) { return x < 1.0f ? (x + x) * dy : x * (dy + dy); }

template <typename T>
struct backward {
    using problem = relu_squared_backward_problem;
    static constexpr bool FROM_THE_END = true;
    template <int N>
    static __device__ __forceinline__ void run(const problem &p, int64_t r, int64_t i) {
        pack<T, N> out = load_pack<T, N>(row_at<const T>(p.x, r) + i);
        const pack<T, N> upstream = load_pack<T, N>(row_at<const T>(p.dy, r) + i);
        float x[N], dy[N];
        unpack(out, x);
        unpack(upstream, dy);
#pragma unroll
        for (int k = 0; k < N; k++) x[k] = twice_product(relu(x[k]), dy[k]);
        repack(x, out);
        store_whole_pack<T, N>(row_at<T>(p.dx, r) + i, out);
    }
};

} // namespace

extern "C" liger_status relu_squared_forward_cuda(liger_context *context, const relu_squared_forward_problem *problem,
                                                  liger_stream stream) {
    const relu_squared_forward_problem &p = *problem;
    LIGER_ON_DEVICE(context, "relu_squared_forward");
    const size_t element = liger_dtype_size(p.dtype);
    const bool packable = rows_are_packable(p.x, element) && rows_are_packable(p.y, element);
    LIGER_FOR_FLOAT(p.dtype, T, elementwise::launch<forward<T>, T>(context, p, packable, (cudaStream_t)stream));
    return launched(context, "relu_squared_forward", stream);
}

extern "C" liger_status relu_squared_backward_cuda(liger_context *context, const relu_squared_backward_problem *problem,
                                                   liger_stream stream) {
    const relu_squared_backward_problem &p = *problem;
    LIGER_ON_DEVICE(context, "relu_squared_backward");
    const size_t element = liger_dtype_size(p.dtype);
    const bool packable =
        rows_are_packable(p.dy, element) && rows_are_packable(p.x, element) && rows_are_packable(p.dx, element);
    LIGER_FOR_FLOAT(p.dtype, T, elementwise::launch<backward<T>, T>(context, p, packable, (cudaStream_t)stream));
    return launched(context, "relu_squared_backward", stream);
}
