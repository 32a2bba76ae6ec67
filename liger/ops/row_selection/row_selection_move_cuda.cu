/* row_selection_move_cuda.cu - rows gathered and scattered on CUDA, element by element. */
#include <type_traits>

#include "liger/core/kernel_table.h"
#include "liger/cuda/elementwise.cuh"
#include "liger/ops/row_selection/row_selection_problem.h"

namespace {

/* Rows of TX as rows of TY. Of one dtype they are words of its size: no bit is looked at. */
template <typename TX, typename TY>
struct moved_rows {
    using problem = row_scatter_problem;
    static constexpr bool FROM_THE_END = false;

    template <int N>
    static __device__ __forceinline__ void run(const problem &p, int64_t r, int64_t i) {
        const int64_t place = p.place_of ? p.place_of[r] : r;
        const TX *x = (const TX *)p.x + place * p.x_stride + i;
        pack<TY, N> out;
        if constexpr (std::is_same_v<TX, TY>) {
            out = {};
            if (place >= 0) out = load_pack<TX, N>(x);
        } else {
            float values[N] = {};
            if (place >= 0) unpack(load_pack<TX, N>(x), values);
            repack(values, out);
        }
        store_pack<TY, N>((TY *)p.y + r * p.y_stride + i, out);
    }
};

template <typename TX, typename TY>
void move_rows(const liger_context *context, const row_scatter_problem &p, cudaStream_t stream) {
    const uintptr_t bits = (uintptr_t)p.x | (uintptr_t)(p.x_stride * (int64_t)sizeof(TX)) | (uintptr_t)p.y |
                           (uintptr_t)(p.y_stride * (int64_t)sizeof(TY));
    elementwise::launch<moved_rows<TX, TY>, TY>(context, p, bits % PACK_BYTES == 0, stream);
}

liger_status scatter(liger_context *context, const row_scatter_problem &p, const char *op, liger_stream stream) {
    if (p.rows == 0 || p.cols == 0) return LIGER_OK;
    LIGER_ON_DEVICE(context, op);
    const cudaStream_t on = (cudaStream_t)stream;
    if (p.x_dtype != p.y_dtype) {
        if (p.y_dtype == LIGER_F16) move_rows<float, f16>(context, p, on);
        else move_rows<float, bf16>(context, p, on);
    } else if (p.y_dtype == LIGER_F32) {
        move_rows<uint32_t, uint32_t>(context, p, on);
    } else {
        move_rows<uint16_t, uint16_t>(context, p, on);
    }
    return launched(context, op, stream);
}

} // namespace

extern "C" liger_status row_gather_cuda(liger_context *context, const struct row_gather_problem *problem,
                                        liger_stream stream) {
    return scatter(context, row_gather_as_scatter(problem), "row_gather", stream);
}

extern "C" liger_status row_scatter_cuda(liger_context *context, const struct row_scatter_problem *problem,
                                         liger_stream stream) {
    return scatter(context, *problem, "row_scatter", stream);
}
