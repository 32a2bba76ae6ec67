/* softmax_cuda.cu - softmax on CUDA: two formulas for the kernels of cuda/vocab_rows.cuh. Forward reads one row and writes
 * one, backward reads two: at the speed of memory as long as a row fits into registers or the shared memory of a cluster. */
#include "liger/core/kernel_table.h"
#include "liger/cuda/vocab_rows_launch.cuh"
#include "liger/ops/softmax/softmax_problem.h"

namespace {

/* ---- forward ------------------------------------------------------------------------------------------------------ */

template <typename T>
struct wide_forward_row;

template <typename T>
struct forward_row : vocab_rows::every_row {
    using type = T;
    using wide_rows = wide_forward_row<T>;
    using problem = softmax_forward_problem;
    using slot = softmax_state;
    static constexpr bool BLOCKS = false; /* wide_rows are as many as a block could hold */
    enum { INPUTS = 1, VECTORS = 4, LEAST_THREADS = 1024, MOST_THREADS = 1024, NARROW_THREADS = 1024 };
    using part = vocab_rows::row_part<T, VECTORS>;

    static LIGER_HOST_DEVICE int64_t cols(const problem &p) { return p.cols; }
    static __device__ __forceinline__ const T *input(const problem &p, int, int64_t r) {
        return row_at<const T>(p.x, r);
    }
    static __device__ __forceinline__ slot empty() { return softmax_empty(); }

    template <typename P>
    static __device__ __forceinline__ slot first_half(const problem &, const P &at, int64_t, const uint4 *stage,
                                                      state &) {
        part x;
        x.load(at, stage);
        const float max = softmax_max(x.max());
        return {max, x.sum(softmax_unit_of(max))};
    }
    template <typename P, typename L>
    static __device__ __forceinline__ void second_half(const problem &p, const batch &, const P &at, int64_t r,
                                                       const uint4 *stage, const state &, const slot &all, L loaded) {
        part x;
        x.load(at, stage);
        loaded();
        const softmax_unit unit = softmax_unit_of(all.max);
        const float share = 1.0f / all.sum;
        vocab_rows::write_part<VECTORS>(row_at<T>(p.y, r), at,
                                        [&](int k) { return softmax_term(x.value(k), unit) * share; });
    }

    /* In registers there is room for the terms: one exponential per element. They are relative to the thread's maximum, and
     * one factor makes them shares of the row. */
    template <int V>
    struct kept {
        float max, term[V * pack_size<T>];
    };
    template <int V>
    static __device__ __forceinline__ slot sum_up(const vocab_rows::row_part<T, V> (&x)[1], kept<V> &own) {
        own.max = softmax_max(x[0].max());
        const softmax_unit unit = softmax_unit_of(own.max);
        float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
        for (int k = 0; k < x[0].COUNT; k++) sum[k % 4] += own.term[k] = softmax_term(x[0].value(k), unit);
        return {own.max, (sum[0] + sum[1]) + (sum[2] + sum[3])};
    }
    template <int V, typename P>
    static __device__ __forceinline__ void write_out(const problem &p, const P &at, int64_t r,
                                                     const vocab_rows::row_part<T, V> (&)[1], const kept<V> &own,
                                                     const slot &all) {
        const float share = softmax_rescale(own.max, softmax_unit_of(all.max)) / all.sum;
        vocab_rows::write_part<V>(row_at<T>(p.y, r), at, [&](int k) { return own.term[k] * share; });
    }

    struct facts {
        softmax_unit unit;
        float share;
        T *y;
    };
    template <int N>
    static __device__ __forceinline__ void push(const problem &, const state &, slot &s,
                                                const vocab_rows::packs<T, N, 1> &raw, int64_t) {
        vocab_rows::push_pack(s, raw.of[0]);
    }
    static __device__ __forceinline__ facts facts_of(const problem &p, const batch &, int64_t r, const state &,
                                                     const slot &s) {
        return {softmax_unit_of(s.max), 1.0f / s.sum, row_at<T>(p.y, r)};
    }
    template <int N>
    static __device__ __forceinline__ void write(const problem &, const facts &f, const vocab_rows::packs<T, N, 1> &raw,
                                                 int64_t i) {
        float x[N];
        unpack(raw.of[0], x);
#pragma unroll
        for (int k = 0; k < N; k++) x[k] = softmax_term(x[k], f.unit) * f.share;
        pack<T, N> out;
        repack(x, out);
        store_anywhere(f.y + i, out);
    }
};

/* Blocks of the widest rows are to share a multiprocessor: a thread has no registers for terms, and takes the exponentials
 * again. */
template <typename T>
struct wide_forward_row : forward_row<T> {
    using problem = softmax_forward_problem;
    static constexpr bool WIDE = true;
    enum { NARROW_THREADS = 2048 };

    template <int V>
    struct kept {};
    template <int V>
    static __device__ __forceinline__ softmax_state sum_up(vocab_rows::row_part<T, V> (&x)[1], kept<V> &) {
        const float max = softmax_max(x[0].max());
        const softmax_state own = {max, x[0].sum(softmax_unit_of(max))};
        x[0].forget();
        return own;
    }
    template <int V, typename P>
    static __device__ __forceinline__ void write_out(const problem &p, const P &at, int64_t r,
                                                     const vocab_rows::row_part<T, V> (&x)[1], const kept<V> &,
                                                     const softmax_state &all) {
        const softmax_unit unit = softmax_unit_of(all.max);
        const float share = 1.0f / all.sum;
        vocab_rows::write_part<V>(row_at<T>(p.y, r), at,
                                  [&](int k) { return softmax_term(x[0].value(k), unit) * share; });
    }
};

/* ---- backward ----------------------------------------------------------------------------------------------------- */

/* Σ y · dy. */
struct dot {
    float sum, unused;
};
__device__ __forceinline__ dot warp_merge(dot a) { return {warp_sum(a.sum), 0.0f}; }

/* Half the threads of forward: two rows share registers and shared memory. */
template <typename T>
struct backward_row : vocab_rows::every_row {
    using type = T;
    using problem = softmax_backward_problem;
    using slot = dot;
    enum { INPUTS = 2, VECTORS = 4, LEAST_THREADS = 512, MOST_THREADS = 512, NARROW_THREADS = 768 };
    template <int V>
    using part = vocab_rows::row_part<T, V>;

    static LIGER_HOST_DEVICE int64_t cols(const problem &p) { return p.cols; }
    static __device__ __forceinline__ const T *input(const problem &p, int k, int64_t r) {
        return row_at<const T>(k == 0 ? p.dy : p.y, r);
    }
    static __device__ __forceinline__ slot empty() { return {0.0f, 0.0f}; }

    template <int V>
    struct kept {};
    template <typename, typename P>
    static __device__ __forceinline__ uint32_t beyond(const P &, int) {
        return vocab_rows::ZERO;
    }
    template <int V>
    static __device__ __forceinline__ slot sum_up(const part<V> (&of)[2], kept<V> &) {
        float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
        for (int k = 0; k < of[0].COUNT; k++) sum[k % 4] += of[1].value(k) * of[0].value(k);
        return {(sum[0] + sum[1]) + (sum[2] + sum[3]), 0.0f};
    }
    template <int V, typename P>
    static __device__ __forceinline__ void write_out(const problem &p, const P &at, int64_t r, const part<V> (&of)[2],
                                                     const kept<V> &, const slot &all) {
        vocab_rows::write_part<V>(row_at<T>(p.dx, r), at,
                                  [&](int k) { return of[1].value(k) * (of[0].value(k) - all.sum); });
    }

    template <typename P>
    static __device__ __forceinline__ void load(const P &at, const uint4 *stage, part<VECTORS> (&of)[2]) {
        of[0].load(at, stage);
        of[1].load(at, vocab_rows::input_stage<backward_row>(at, stage, 1));
    }
    template <typename P>
    static __device__ __forceinline__ slot first_half(const problem &, const P &at, int64_t, const uint4 *stage,
                                                      state &) {
        part<VECTORS> of[2];
        kept<VECTORS> nothing;
        load(at, stage, of);
        return sum_up(of, nothing);
    }
    template <typename P, typename L>
    static __device__ __forceinline__ void second_half(const problem &p, const batch &, const P &at, int64_t r,
                                                       const uint4 *stage, const state &, const slot &all, L loaded) {
        part<VECTORS> of[2];
        load(at, stage, of);
        loaded();
        write_out(p, at, r, of, kept<VECTORS>{}, all);
    }

    struct facts {
        float sum;
        T *dx;
    };
    template <int N>
    static __device__ __forceinline__ void push(const problem &, const state &, slot &s,
                                                const vocab_rows::packs<T, N, 2> &raw, int64_t) {
        float dy[N], y[N], part = 0.0f;
        unpack(raw.of[0], dy);
        unpack(raw.of[1], y);
#pragma unroll
        for (int k = 0; k < N; k++) part += y[k] * dy[k];
        s.sum += part;
    }
    static __device__ __forceinline__ facts facts_of(const problem &p, const batch &, int64_t r, const state &,
                                                     const slot &s) {
        return {s.sum, row_at<T>(p.dx, r)};
    }
    template <int N>
    static __device__ __forceinline__ void write(const problem &, const facts &f, const vocab_rows::packs<T, N, 2> &raw,
                                                 int64_t i) {
        float dy[N], y[N];
        unpack(raw.of[0], dy);
        unpack(raw.of[1], y);
#pragma unroll
        for (int k = 0; k < N; k++) y[k] *= dy[k] - f.sum;
        pack<T, N> out;
        repack(y, out);
        store_anywhere(f.dx + i, out);
    }
};

} // namespace

extern "C" liger_status softmax_forward_cuda(liger_context *context, const softmax_forward_problem *problem,
                                             liger_stream stream) {
    const softmax_forward_problem &p = *problem;
    LIGER_ON_DEVICE(context, "softmax_forward");
    const size_t element = liger_dtype_size(p.dtype);
    const bool packable =
        p.cols * element % PACK_BYTES == 0 && rows_are_packable(p.x, element) && rows_are_packable(p.y, element);
    liger_status status = LIGER_OK;
    LIGER_FOR_FLOAT(p.dtype, T,
                    status = vocab_rows::launch_rows<forward_row<T>>(context, p, packable, "softmax_forward", stream))
    return status;
}

extern "C" liger_status softmax_backward_cuda(liger_context *context, const softmax_backward_problem *problem,
                                              liger_stream stream) {
    const softmax_backward_problem &p = *problem;
    LIGER_ON_DEVICE(context, "softmax_backward");
    const size_t element = liger_dtype_size(p.dtype);
    const bool packable = p.cols * element % PACK_BYTES == 0 && rows_are_packable(p.dy, element) &&
                          rows_are_packable(p.y, element) && rows_are_packable(p.dx, element);
    liger_status status = LIGER_OK;
    LIGER_FOR_FLOAT(p.dtype, T,
                    status = vocab_rows::launch_rows<backward_row<T>>(context, p, packable, "softmax_backward", stream))
    return status;
}
