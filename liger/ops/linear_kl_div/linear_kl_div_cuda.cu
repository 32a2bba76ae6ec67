/* linear_kl_div_cuda.cu - rows of a divergence on CUDA: formulas for the kernels of cuda/vocab_rows.cuh. Logits and a target of
 * one type are read once and the gradient is written over the logits, as long as both rows fit into the shared memory of a
 * cluster; a target of another type is read beside the logits, twice. */
#include "liger/core/kernel_table.h"
#include "liger/cuda/vocab_rows_resident.cuh"
#include "liger/cuda/vocab_rows_streamed.cuh"
#include "liger/ops/linear_kl_div/linear_kl_div_problem.h"

namespace linear_kl_div {

using problem = linear_kl_div_problem;

/* What a part of a row adds up to, with z = logit/temperature. */
struct divergence {
    softmax_state z;
    float mass, cross; /* Σ q, Σ q·(log max(q, eps) - (z - z.max)) */
};
/* `cross` relative to another maximum. */
__device__ __forceinline__ float cross_from(const divergence &d, float max) {
    return d.mass == 0.0f ? d.cross : d.cross + (max - d.z.max) * d.mass;
}
__device__ __forceinline__ divergence warp_merge(const divergence &d) {
    const softmax_state z = warp_merge(d.z);
    return {z, warp_sum(d.mass), warp_sum(cross_from(d, z.max))};
}

/* EXACT: with libm's logarithm, which takes longer than all else; beside results of 16 bits the other's error is nothing. */
template <bool EXACT>
__device__ __forceinline__ float cross_term(const problem &p, float q, float below) {
    const float least = EXACT ? p.eps : fmaxf(p.eps, FLT_MIN); /* of less the other's logarithm is -inf */
    return q == 0.0f ? 0.0f : q * (log_of<EXACT>(fmaxf(q, least)) - below);
}

/* What both formulas say of their rows. */
template <typename T>
struct divergence_row : vocab_rows::every_row {
    using type = T;
    using problem = linear_kl_div::problem;
    using slot = divergence;
    static constexpr bool EXACT = sizeof(T) == sizeof(float);
    struct batch {
        float weight, factor; /* of a row's loss and of its gradient */
    };
    static __device__ __forceinline__ batch batch_of(const problem &p) {
        const float weight = row_weight(&p.counted);
        return {weight, (p.raw_gradient ? 1.0f : weight) * p.inverse};
    }
    static LIGER_HOST_DEVICE int64_t cols(const problem &p) { return p.vocab; }
    static __device__ __forceinline__ const T *logits(const problem &p, int64_t r) {
        return (const T *)p.logits + r * p.logits_stride;
    }
    template <typename Q>
    static __device__ __forceinline__ const Q *target(const problem &p, int64_t r) {
        return (const Q *)p.target + r * p.target_stride;
    }
    static __device__ __forceinline__ T *gradient(const problem &p, int64_t r) {
        return (T *)p.dlogits + r * p.logits_stride;
    }
    static __device__ __forceinline__ slot empty() { return {softmax_empty(), 0.0f, 0.0f}; }
    /* What of all terms is relative to the maximum, as they are made: its own exponent is not quite 0. */
    static __device__ __forceinline__ float loss_of(const slot &all) {
        return all.cross + softmax_log_sum(all.z) * all.mass;
    }
};

/* ---- a target of the logits' type ----------------------------------------------------------------------------------- */

template <typename T>
struct resident_row : divergence_row<T> {
    using base = divergence_row<T>;
    using typename base::batch;
    using typename base::slot;
    using state = vocab_rows::every_row::state;
    /* Few threads with many values: what warps tell each other costs as much as what they compute. */
    static constexpr int RING = 3;
    enum { INPUTS = 2, VECTORS = 4, LEAST_THREADS = 128, MOST_THREADS = 512 };
    using part = vocab_rows::row_part<T, VECTORS>;

    static __device__ __forceinline__ const T *input(const problem &p, int k, int64_t r) {
        return k == 0 ? base::logits(p, r) : base::template target<T>(p, r);
    }
    static __device__ __forceinline__ int key(const problem &p, int64_t r) {
        return row_counts(&p.counted, r) ? 0 : (int)vocab_rows::SKIPPED;
    }
    template <typename P>
    static __device__ __forceinline__ void skip(const problem &p, const P &at, int64_t r) {
        if (p.loss && at.first == 0) p.loss[r] = 0.0f;
        if (p.dlogits) vocab_rows::write_part<VECTORS>(base::gradient(p, r), at, [](int) { return 0.0f; });
    }

    /* Behind the end of a row z is -inf, whatever the sign of the temperature, and the target 0. */
    template <typename, typename P>
    static __device__ __forceinline__ uint32_t beyond(const P &p, int k) {
        return k == 0 ? vocab_rows::minus_infinity_by<T>(p.inverse) : vocab_rows::ZERO;
    }
    template <typename P>
    static __device__ __forceinline__ void load(const P &at, const uint4 *stage, part &x, part &q) {
        x.load(at, stage);
        q.load(at, vocab_rows::input_stage<resident_row>(at, stage, 1));
    }

    template <typename P>
    static __device__ __forceinline__ slot first_half(const problem &p, const P &at, int64_t, const uint4 *stage,
                                                      state &) {
        part x, q;
        load(at, stage, x, q);
        float most[2] = {-FLT_MAX, -FLT_MAX}, sum[2] = {0.0f, 0.0f}, mass[2] = {0.0f, 0.0f}, cross[2] = {0.0f, 0.0f};
#pragma unroll
        for (int k = 0; k < x.COUNT; k++) most[k % 2] = fmaxf(most[k % 2], x.value(k) * p.inverse);
        const float max = fmaxf(most[0], most[1]);
        const softmax_unit unit = softmax_unit_of(max);
#pragma unroll
        for (int k = 0; k < x.COUNT; k++) {
            const float z = __fmul_rn(x.value(k), p.inverse); /* as max: not fused into their difference */
            sum[k % 2] += softmax_term(z, unit);
            mass[k % 2] += q.value(k);
            cross[k % 2] += cross_term<base::EXACT>(p, q.value(k), z - max);
        }
        return {{max, sum[0] + sum[1]}, mass[0] + mass[1], cross[0] + cross[1]};
    }

    template <typename P, typename L>
    static __device__ __forceinline__ void second_half(const problem &p, const batch &b, const P &at, int64_t r,
                                                       const uint4 *stage, const state &, const slot &all, L loaded) {
        part x, q;
        load(at, stage, x, q);
        loaded();
        if (p.loss && at.first == 0) p.loss[r] = base::loss_of(all) * b.weight;
        if (!p.dlogits) return;
        const softmax_unit unit = softmax_unit_of(all.z.max);
        const float share = all.mass / all.z.sum, factor = b.factor;
        vocab_rows::write_part<VECTORS>(base::gradient(p, r), at, [&](int k) {
            return (softmax_term(x.value(k) * p.inverse, unit) * share - q.value(k)) * factor;
        });
    }
};

/* ---- a target of any type, rows of any alignment -------------------------------------------------------------------- */

template <typename T, typename Q>
struct streamed_row : divergence_row<T> {
    using base = divergence_row<T>;
    using typename base::batch;
    using typename base::slot;
    enum { INPUTS = 1 };
    struct state {
        const Q *target;
    };
    struct facts {
        softmax_unit unit;
        float share, factor;
        const Q *target;
        T *gradient;
    };

    static __device__ __forceinline__ const T *input(const problem &p, int, int64_t r) { return base::logits(p, r); }
    static __device__ __forceinline__ int64_t key(const problem &p, int64_t r) { return row_counts(&p.counted, r); }
    static __device__ __forceinline__ bool skip(const problem &p, int64_t r, int64_t counts) {
        if (counts) return false;
        if (p.loss && threadIdx.x == 0) p.loss[r] = 0.0f;
        if (p.dlogits)
            for (int64_t j = threadIdx.x; j < p.vocab; j += blockDim.x) base::gradient(p, r)[j] = from_f32<T>(0.0f);
        return true;
    }
    static __device__ __forceinline__ state state_of(const problem &p, int64_t r, int64_t, slot &) {
        return {base::template target<Q>(p, r)};
    }
    /* Its rows may lie otherwise than the logits'. */
    template <int N>
    static __device__ __forceinline__ void load_target(const Q *from, float (&q)[N]) {
        if ((uintptr_t)from % alignof(pack<Q, N>) == 0) {
            unpack(load_pack<Q, N>(from), q);
        } else {
#pragma unroll
            for (int k = 0; k < N; k++) q[k] = to_f32(from[k]);
        }
    }

    template <int N>
    static __device__ __forceinline__ void push(const problem &p, const state &row, slot &s,
                                                const vocab_rows::packs<T, N, 1> &raw, int64_t i) {
        float z[N], q[N], most = -FLT_MAX;
        unpack(raw.of[0], z);
        load_target(row.target + i, q);
#pragma unroll
        for (int k = 0; k < N; k++) most = fmaxf(most, z[k] = __fmul_rn(z[k], p.inverse));
        const float max = fmaxf(s.z.max, most);
        const softmax_unit unit = softmax_unit_of(max);
        s.cross = cross_from(s, max);
        s.z = {max, s.z.sum * softmax_rescale(s.z.max, unit)};
#pragma unroll
        for (int k = 0; k < N; k++) {
            s.z.sum += softmax_term(z[k], unit);
            s.mass += q[k];
            s.cross += cross_term<base::EXACT>(p, q[k], z[k] - max);
        }
    }
    static __device__ __forceinline__ facts facts_of(const problem &p, const batch &b, int64_t r, const state &row,
                                                     const slot &s) {
        return {softmax_unit_of(s.z.max), s.mass / s.z.sum, b.factor, row.target, base::gradient(p, r)};
    }
    static __device__ __forceinline__ bool writes(const problem &p) { return p.dlogits; }
    template <int N>
    static __device__ __forceinline__ void write(const problem &p, const facts &f,
                                                 const vocab_rows::packs<T, N, 1> &raw, int64_t i) {
        float x[N], q[N];
        unpack(raw.of[0], x);
        load_target(f.target + i, q);
#pragma unroll
        for (int k = 0; k < N; k++) x[k] = (softmax_term(x[k] * p.inverse, f.unit) * f.share - q[k]) * f.factor;
        pack<T, N> out;
        repack(x, out);
        store_anywhere(f.gradient + i, out);
    }
    static __device__ __forceinline__ void finish(const problem &p, const batch &b, int64_t r, const state &,
                                                  const slot &s, const facts &) {
        if (p.loss) p.loss[r] = base::loss_of(s) * b.weight;
    }
};

/* ---- which kernel ---------------------------------------------------------------------------------------------------- */

template <typename T>
static cudaError_t launch(const liger_context *context, const problem &p, cudaStream_t stream) {
    bool done = false;
    const bool packs = p.target_dtype == p.dtype && matrix_is_packable(p.logits, p.logits_stride, p.vocab, sizeof(T)) &&
                       matrix_is_packable(p.target, p.target_stride, p.vocab, sizeof(T)) &&
                       pointer_is_packable(p.dlogits);
    const cudaError_t error = vocab_rows::launch_resident<resident_row<T>>(context, p, packs, stream, &done);
    if (error != cudaSuccess || done) return error;
    LIGER_FOR_FLOAT(p.target_dtype, Q, (vocab_rows::launch_streamed<streamed_row<T, Q>>(context, p, stream)))
    return cudaSuccess;
}

} // namespace linear_kl_div

extern "C" liger_status linear_kl_div_cuda(liger_context *context, const struct linear_kl_div_problem *problem,
                                           liger_stream stream) {
    LIGER_ON_DEVICE(context, "linear_kl_div");
    cudaError_t error = cudaSuccess;
    LIGER_FOR_FLOAT(problem->dtype, T, error = linear_kl_div::launch<T>(context, *problem, (cudaStream_t)stream))
    LIGER_TRY(cuda_status(error, "linear_kl_div"));
    return launched(context, "linear_kl_div", stream);
}
