/* cross_entropy_loss.cuh - the formula of a loss without gradient, for cuda/vocab_rows_summed.cuh. */
#ifndef LIGER_OPS_CROSS_ENTROPY_LOSS_CUH
#define LIGER_OPS_CROSS_ENTROPY_LOSS_CUH

#include "liger/cuda/vocab_rows_summed.cuh"
#include "liger/ops/cross_entropy/cross_entropy_row.cuh"

namespace cross_entropy {

/* No label smoothing, no soft cap, nobody asks for the prediction. */
template <typename T>
struct loss_row : logits_row<T> {
    using slot = softmax_state;
    static __device__ __forceinline__ slot empty() { return softmax_empty(); }

    static __device__ __forceinline__ int64_t key(const problem &p, int64_t r) { return loss_row::target(p, r); }
    static __device__ __forceinline__ bool skip(const problem &p, int64_t r, int64_t y) {
        if (y == p.ignore_index) {
            if (threadIdx.x == 0) ignore_row(p, r);
            return true;
        }
        if (y < 0 || y >= p.vocab) {
            if (threadIdx.x == 0) spoil_row(p, r, 0);
            return true;
        }
        return false;
    }
    template <int COUNT>
    static __device__ __forceinline__ slot push(slot s, pack<T, pack_size<T>> (&raw)[COUNT], int64_t first, int64_t end,
                                                int64_t y) {
        return vocab_rows::push_packs<T>(s, raw, first, end, y);
    }
    static __device__ __forceinline__ void finish(const problem &p, int64_t r, int64_t y, slot others) {
        const float target = to_f32(loss_row::input(p, 0, r)[y]), max = fmaxf(others.max, softmax_max(target));
        const softmax_state all = {max, others.sum * softmax_rescale(others.max, softmax_unit_of(max))};
        const batch b = batch_of(p);
        finish_row(p, b, r, y, factors_of(p, b, r, y, target, all), {target, all, 0.0f, 0.0f, 0});
    }
};

} // namespace cross_entropy

#endif
