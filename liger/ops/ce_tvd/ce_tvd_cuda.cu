/* ce_tvd_cuda.cu - cross entropy and total variation on CUDA: a formula for the kernels of cuda/vocab_rows.cuh with two inputs and
 * a second exchange, after which p - q is known. Two reads, and no write but of its signs, as long as both rows fit into the
 * shared memory of a cluster. */
#include "liger/core/kernel_table.h"
#include "liger/cuda/vocab_rows_resident.cuh"
#include "liger/cuda/vocab_rows_streamed.cuh"
#include "liger/ops/ce_tvd/ce_tvd_problem.h"
#include "liger/ops/ce_tvd/ce_tvd_signs.cuh"

namespace ce_tvd {

/* ---- forward ------------------------------------------------------------------------------------------------------ */

/* Σ e^(x - max), as softmax_state, but what a term is the power of is a difference first and a product then. Rows that differ
 * by a constant, or by nothing, take the same steps, and all their probabilities are equal, to the bit. */
struct row_sum {
    float max, sum;
};
__device__ __forceinline__ float term_of(float x, float max) { return exp2_approx((x - max) * LOG2E); }
__device__ __forceinline__ row_sum warp_merge(row_sum a) {
    const float max = warp_max_ordered(a.max);
    return {max, warp_sum(__fmul_rn(a.sum, term_of(a.max, max)))};
}
template <typename T, int N>
__device__ __forceinline__ void push_pack(row_sum &s, const pack<T, N> &raw) {
    float x[N], max = s.max;
    unpack(raw, x);
#pragma unroll
    for (int k = 0; k < N; k++) max = fmaxf(max, x[k]);
    s = {max, __fmul_rn(s.sum, term_of(s.max, max))};
#pragma unroll
    for (int k = 0; k < N; k++) s.sum += term_of(x[k], max);
}

struct two_sums {
    row_sum student, teacher;
};
__device__ __forceinline__ two_sums warp_merge(two_sums a) { return {warp_merge(a.student), warp_merge(a.teacher)}; }

/* Σ |p - q| and Σ p · sign(p - q), and whether all p may be q. */
struct distances {
    float apart, signs;
    int tied, unused;
};
__device__ __forceinline__ distances warp_merge(distances a) {
    return {warp_sum(a.apart), warp_sum(a.signs), __any_sync(0xffffffffu, a.tied), 0};
}

/* What a term relative to a maximum is multiplied by to be a probability of the whole row. */
__device__ __forceinline__ float share_of(float max, row_sum all) {
    return term_of(max, all.max) * reciprocal_approx(all.sum);
}

/* From terms s and t of which s · share is p and t · share_t is q: the differences p - q, relative to share_t. Of two equal rows
 * nothing is rounded, and every difference is 0. A share_t below 2^-100 is that: it adds so much to a term's distance at most. */
struct comparison {
    float share, unit, by;
    distances found;

    __device__ __forceinline__ comparison(float share, float share_t)
        : share(share), unit(fmaxf(share_t, 0x1p-100f)),
          by(share == share_t ? 1.0f : share * reciprocal_approx(unit)), found{0.0f, 0.0f, 0, 0} {}
    /* Two rows of which one is the other, perhaps but for a constant, have the same share, in whatever a thread has of them. Of
     * others a difference that happens to be 0 has the sign that it is given. */
    __device__ __forceinline__ bool may_tie() const { return by == 1.0f && share > 0.0f; }
    template <bool MAY_TIE = true>
    __device__ __forceinline__ float add(float s, float t) {
        const float above = fmaf(s, by, -t);
        found.apart += fabsf(above);
        if (!MAY_TIE || above != 0.0f) found.signs += copysignf(s, above);
        return above;
    }
    __device__ __forceinline__ distances distance() const {
        return {found.apart * unit, found.signs * share, found.tied, 0};
    }
};

/* NaN where the target is none of the vocabulary. */
template <typename T>
__device__ __forceinline__ float target_logit(const ce_tvd_forward_problem &p, int64_t r) {
    const int64_t y = index_at(p.target, p.target_dtype, r);
    return y >= 0 && y < p.cols ? to_f32(row_at<const T>(p.student, r)[y]) : NAN;
}

/* What does not depend on the distance. */
__device__ __forceinline__ void write_sums(const ce_tvd_forward_problem &p, int64_t r, float target,
                                           const two_sums &all) {
    const float log_sum = logf(all.student.sum);
    p.ce[r] = (all.student.max - target) + log_sum;
    p.student_max[r] = all.student.max, p.student_log_sum[r] = log_sum;
    p.teacher_max[r] = all.teacher.max, p.teacher_log_sum[r] = logf(all.teacher.sum);
}
__device__ __forceinline__ void write_distance(const ce_tvd_forward_problem &p, int64_t r, distances found) {
    p.tvd[r] = 0.5f * found.apart;
    p.sigma[r] = isnan(found.apart) ? NAN : found.signs;
    if (p.has_signs) p.has_signs[r] = p.dstudent.data != NULL && !found.tied;
}
__device__ __forceinline__ void ignore_row(const ce_tvd_forward_problem &p, int64_t r) {
    p.ce[r] = p.tvd[r] = p.sigma[r] = 0.0f;
    if (p.has_signs) p.has_signs[r] = 0;
    p.student_max[r] = p.student_log_sum[r] = p.teacher_max[r] = p.teacher_log_sum[r] = 0.0f;
}

/* A target that is none of the vocabulary, for a key. */
enum { NO_TARGET = -2 };

/* The exponentials of a row are needed twice, which takes the special-function unit longer than memory takes to bring the
 * row: where they are KEPT, those of the student stay in registers over the next row's first half, and those of the teacher in
 * shared memory, where rows take no more room then than while they come. */
template <typename T, int V, bool KEPT, int LEAST>
struct forward_row : vocab_rows::one_exchange {
    enum { INPUTS = 2, VECTORS = V, LEAST_THREADS = LEAST, MOST_THREADS = 512 };
    enum { COUNT = V * pack_size<T>, FLOATS = PACK_BYTES / sizeof(float) };
    static constexpr int RING = KEPT ? 1 : 2, KEPT_VECTORS = KEPT ? COUNT / FLOATS : 0;
    static constexpr bool LATE = true;
    static constexpr int TOGETHER = WARP; /* a warp of signs is a warp here */
    using type = T;
    using problem = ce_tvd_forward_problem;
    using slot = two_sums;
    using second_slot = distances;
    using part = vocab_rows::row_part<T, V>;

    static LIGER_HOST_DEVICE int64_t cols(const problem &p) { return p.cols; }
    static __device__ __forceinline__ const T *input(const problem &p, int k, int64_t r) {
        return row_at<const T>(k == 0 ? p.student : p.teacher, r);
    }
    static __device__ __forceinline__ slot empty() { return {{-FLT_MAX, 0.0f}, {-FLT_MAX, 0.0f}}; }
    static __device__ __forceinline__ distances nothing() { return {0.0f, 0.0f, 0, 0}; }
    struct batch {};
    static __device__ __forceinline__ batch batch_of(const problem &) { return {}; }
    static __device__ __forceinline__ int key(const problem &p, int64_t r) {
        const int64_t y = index_at(p.target, p.target_dtype, r);
        if (y == p.ignore_index) return (int)vocab_rows::SKIPPED;
        return y >= 0 && y < p.cols && y <= INT32_MAX ? (int)y : (int)NO_TARGET;
    }

    /* Resident: shared memory. Terms are relative to the thread's own maximum. Only a block's first thread knows the target's
     * logit, as it is in memory: nobody waits for it where it is read. */
    struct state {
        int key;
        T target;
        float student_max, teacher_max;
        float term[KEPT ? COUNT : 1];
    };
    static __device__ __forceinline__ state state_of(const problem &p, int i, int key) {
        state row; /* its terms are written before they are read */
        row.key = key;
        row.target = from_f32<T>(NAN);
        if (threadIdx.x == 0 && key >= 0) row.target = row_at<const T>(p.student, from_the_end(p.rows, i))[key];
        row.student_max = row.teacher_max = 0.0f;
        return row;
    }
    /* Calls use(k, term) for each. */
    template <typename U>
    static __device__ __forceinline__ row_sum sum_up(const part &x, U use) {
        const float max = x.max();
        float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
        for (int k = 0; k < COUNT; k++) {
            const float term = term_of(x.value(k), max);
            sum[k % 4] += term;
            use(k, term);
        }
        return {max, (sum[0] + sum[1]) + (sum[2] + sum[3])};
    }
    template <typename P>
    static __device__ __forceinline__ slot first_half(const problem &, const P &at, int64_t, const uint4 *stage,
                                                      state &row) {
        part x, t;
        x.load(at, stage);
        const row_sum student = sum_up(x, [](int, float) {});
        t.load(at, vocab_rows::input_stage<forward_row>(at, stage, 1));
        const row_sum teacher = sum_up(t, [](int, float) {});
        row.student_max = student.max, row.teacher_max = teacher.max;
        return {student, teacher};
    }
    template <typename P, typename L>
    static __device__ __forceinline__ slot first_half(const problem &, const P &at, int64_t, const uint4 *stage,
                                                      uint4 *kept, state &row, L loaded) {
        part x, t;
        x.load(at, stage);
        const row_sum student = sum_up(x, [&](int k, float term) { row.term[k] = term; });
        t.load(at, vocab_rows::input_stage<forward_row>(at, stage, 1));
        loaded();
        pack<float, FLOATS> some;
        const row_sum teacher = sum_up(t, [&](int k, float term) {
            some.value[k % FLOATS] = term;
            if (k % FLOATS == FLOATS - 1) store_pack<float, FLOATS>((float *)(kept + k / FLOATS * P::step), some);
        });
        row.student_max = student.max, row.teacher_max = teacher.max;
        return {student, teacher};
    }
    template <typename P, typename L>
    static __device__ __forceinline__ distances second_half(const problem &p, const batch &, const P &at, int64_t r,
                                                            const uint4 *from, const state &row, const slot &of_lane,
                                                            L loaded) {
        part x, t;
        if constexpr (!KEPT) {
            x.load(at, from);
            t.load(at, vocab_rows::input_stage<forward_row>(at, from, 1));
            loaded();
        }
        const two_sums all = warp_merge(of_lane);
        comparison compared(share_of(row.student_max, all.student), share_of(row.teacher_max, all.teacher));
        if (at.first == 0) write_sums(p, r, to_f32(row.target), all);
        /* use(k, s, t) for each of the thread's elements */
        const auto for_each = [&](auto use) {
            [[maybe_unused]] pack<float, FLOATS> some;
#pragma unroll
            for (int k = 0; k < COUNT; k++) {
                if constexpr (KEPT) {
                    if (k % FLOATS == 0) some = load_pack<float, FLOATS>((const float *)(from + k / FLOATS * P::step));
                    use(k, row.term[k], some.value[k % FLOATS]);
                } else {
                    use(k, term_of(x.value(k), row.student_max), term_of(t.value(k), row.teacher_max));
                }
            }
        };
        if (compared.may_tie()) {
            for_each([&](int, float s, float t) { compared.add(s, t); });
            compared.found.tied = 1;
            return compared.distance();
        }
        constexpr int N = pack_size<T>;
        constexpr bool LEAVES = P::step % TILE == 0; /* the next vector's signs stand as far behind as the vector */
        static_assert(LEAVES || LEAST_SIGNED > V * P::step, "rows with signs are not for such small blocks");
        uint8_t *const signs = LEAVES && p.dstudent.data ? signs_at(row_at<T>(p.dstudent, r), at.first) : NULL;
        unsigned bits = 0;
        for_each([&](int k, float s, float t) {
            bits = __funnelshift_l(__float_as_uint(compared.template add<false>(s, t)), bits, 1);
            if (k % N < N - 1) return;
            asm volatile("" : "+r"(bits)); /* here, and not in a branch for which all differences are kept */
            if (signs && at.has(k / N)) signs[k / N * P::step * PACK_BYTES] = (uint8_t)bits;
        });
        return compared.distance();
    }
    static __device__ __forceinline__ void finish(const problem &p, int64_t r, const distances &found) {
        write_distance(p, r, found);
    }
    template <typename P>
    static __device__ __forceinline__ void skip(const problem &p, const P &at, int64_t r) {
        if (at.first == 0) ignore_row(p, r);
    }

    /* Streamed: a walk for each exchange. */
    static __device__ __forceinline__ bool skip(const problem &p, int64_t r, int64_t key) {
        if (key == vocab_rows::SKIPPED && threadIdx.x == 0) ignore_row(p, r);
        return key == vocab_rows::SKIPPED;
    }
    static __device__ __forceinline__ state state_of(const problem &, int64_t, int64_t, const slot &) {
        return state();
    }
    template <int N>
    static __device__ __forceinline__ void push(const problem &, const state &, slot &s,
                                                const vocab_rows::packs<T, N, 2> &raw, int64_t) {
        push_pack(s.student, raw.of[0]);
        push_pack(s.teacher, raw.of[1]);
    }
    template <typename X>
    static __device__ __forceinline__ void settle(const problem &p, int64_t r, const slot &of_lane, X &again) {
        const two_sums all = warp_merge(of_lane);
        comparison compared(reciprocal_approx(all.student.sum), reciprocal_approx(all.teacher.sum));
        vocab_rows::walk<forward_row>(p, r, [&](const auto &raw, int64_t) {
#pragma unroll
            for (int k = 0; k < (int)(sizeof raw.of[0].value / sizeof(T)); k++)
                compared.add(term_of(value_of(raw.of[0], k), all.student.max),
                             term_of(value_of(raw.of[1], k), all.teacher.max));
        });
        const distances found = again.all(compared.distance(), nothing());
        if (threadIdx.x != 0) return;
        write_sums(p, r, target_logit<T>(p, r), all);
        write_distance(p, r, found);
    }
};

/* Rows of more than 131072 values of 16 bits fit into a cluster with six vectors to a thread, for whose exponentials there
 * is no room; beyond 196608 they are streamed. */
template <typename T>
liger_status launch_forward(const liger_context *context, const ce_tvd_forward_problem &p, cudaStream_t stream) {
    using usual = forward_row<T, 4, true, 128>;
    using wide = forward_row<T, 6, false, 512>;
    const bool packable = p.cols % pack_size<T> == 0 && rows_are_packable(p.student, sizeof(T)) &&
                          rows_are_packable(p.teacher, sizeof(T));
    bool done;
    LIGER_TRY(cuda_status(vocab_rows::launch_resident<usual>(context, p, packable, stream, &done), "ce_tvd_forward"));
    if (!done)
        LIGER_TRY(
            cuda_status(vocab_rows::launch_resident<wide>(context, p, packable, stream, &done), "ce_tvd_forward"));
    if (done) return LIGER_OK;
    ce_tvd_forward_problem unsigned_rows = p;
    unsigned_rows.dstudent.data = NULL;
    vocab_rows::launch_streamed<usual>(context, unsigned_rows, stream);
    return LIGER_OK;
}

} // namespace ce_tvd

extern "C" liger_status ce_tvd_forward_cuda(liger_context *context, const ce_tvd_forward_problem *problem,
                                            liger_stream stream) {
    const ce_tvd_forward_problem &p = *problem;
    LIGER_ON_DEVICE(context, "ce_tvd_forward");
    liger_status status = LIGER_OK;
    ce_tvd_forward_problem usual = p;
    if (!ce_tvd::has_room_for_signs(p.dstudent, p.cols, liger_dtype_size(p.dtype))) usual.dstudent.data = NULL;
    LIGER_FOR_FLOAT(p.dtype, T, status = ce_tvd::launch_forward<T>(context, usual, (cudaStream_t)stream))
    return status == LIGER_OK ? launched(context, "ce_tvd_forward", stream) : status;
}
