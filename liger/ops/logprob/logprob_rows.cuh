/* logprob_rows.cuh - the formulas of a row's statistics, for cuda/vocab_rows_summed.cuh: the plain row, of which only
 * the softmax is wanted, and the row with every statistic.
 *
 * The target's own exponential is kept out of the sums over the others: what is left of a confident row is then
 * log1p(others/own), which does not cancel. With a negative scale logits change their sign as they are loaded, so that the
 * largest one is always that of the largest z. */
#ifndef LIGER_OPS_LOGPROB_ROWS_CUH
#define LIGER_OPS_LOGPROB_ROWS_CUH

#include "liger/cuda/vocab_rows_summed.cuh"
#include "liger/ops/logprob/logprob_map.cuh"

namespace logprob {

struct rows_problem : logprob_rows_problem {
    z_map to_z; /* inner and outer are not negative */
    bool negative;
};

/* ---- results ------------------------------------------------------------------------------------------------------ */

/* All results of a row: 0 or NaN. The threads share out the selected ones. */
__device__ __forceinline__ void fill_row(const logprob_results &to, int64_t selected_count, int64_t row, float value,
                                         int thread, int threads) {
    if (to.selected)
        for (int64_t k = thread; k < selected_count; k += threads) to.selected[row * selected_count + k] = value;
    if (thread == 0) logprob_fill(&to, row, value);
}

/* ---- what is known of a row before it is read --------------------------------------------------------------------- */

enum { NO_ROW = -1, IGNORED = -2, OUT_OF_RANGE = -3 };

struct row_key {
    int64_t row;        /* of the batch */
    int64_t y;          /* the target, or what is wrong with it */
    float target, base; /* its logit, with the sign that all have here; what Σ z is taken relative to */
    uint32_t sign;      /* what turns a float's sign */
    z_map to_z;
};

__device__ __forceinline__ float turned(float x, uint32_t sign) { return __uint_as_float(__float_as_uint(x) ^ sign); }

template <typename T>
__device__ __forceinline__ void turn(pack<T, pack_size<T>> &x, uint32_t sign) {
    const uint32_t signs = sizeof(T) == 4 ? sign : sign | sign >> 16;
    uint4 &words = *(uint4 *)&x;
    words.x ^= signs, words.y ^= signs, words.z ^= signs, words.w ^= signs;
}

/* What both formulas say of their rows. */
template <typename T, bool CAPPED>
struct logits_row {
    using type = T;
    using problem = rows_problem;
    static constexpr bool ENDS_TOGETHER = true;
    static __device__ __forceinline__ int64_t cols(const problem &p) { return p.vocab; }
    static __device__ __forceinline__ const T *input(const problem &p, int, int64_t r) {
        return (const T *)p.logits + r * p.logits_stride;
    }
    static __device__ __forceinline__ row_key key(const problem &p, int64_t r) {
        row_key key = {p.row_of ? p.row_of[p.first + r] : p.first + r, NO_ROW};
        if (key.row < 0) return key;
        key.y = index_at(p.target, p.target_dtype, key.row);
        if (key.y == p.ignore_index) key.y = IGNORED;
        else if (key.y < 0 || key.y >= p.vocab) key.y = OUT_OF_RANGE;
        if (key.y < 0) return key;
        const T *logits = input(p, 0, r);
        key.sign = p.negative ? 0x80000000u : 0;
        key.to_z = p.to_z;
        key.target = turned(to_f32(logits[key.y]), key.sign);
        key.base = z_of<CAPPED>(p.to_z, turned(to_f32(logits[0]), key.sign));
        if (!isfinite(key.base)) key.base = 0.0f;
        return key;
    }
    static __device__ __forceinline__ row_key moved(row_key key, int64_t begin) {
        key.y -= begin;
        return key;
    }
    static __device__ __forceinline__ bool skip(const problem &p, int64_t, const row_key &key) {
        if (key.y >= 0) return false;
        if (key.y != NO_ROW)
            fill_row(p.results, p.selected_count, key.row, key.y == IGNORED ? 0.0f : NAN, threadIdx.x, blockDim.x);
        return true;
    }
    /* log p of the selected ids. */
    static __device__ __forceinline__ void look_up(const problem &p, int64_t r, const row_key &key, float max,
                                                   float log_sum) {
        const T *logits = input(p, 0, r);
        float *out = p.results.selected + key.row * p.selected_count;
        for (int64_t k = threadIdx.x; k < p.selected_count; k += blockDim.x) {
            const int64_t id = index_at(p.selected_ids, p.selected_dtype, k);
            const bool in_range = id >= 0 && id < p.vocab;
            out[k] = in_range ? (z_of<CAPPED>(p.to_z, turned(to_f32(logits[id]), key.sign)) - max) - log_sum : NAN;
        }
    }
};

/* ---- from the sums to the softmax ---------------------------------------------------------------------------------- */

/* Exponents are those of softmax_unit, of which the maximum's own is not quite 0. */
struct row_softmax {
    softmax_unit unit;
    float max, others, own; /* the sum over all but the target, and the target's term */
    float own_exponent, max_exponent;
    bool sure;  /* at least half of the sum is the target's */
    float rest; /* then: log(1 + others/own) */
    float log_prob, log_sum;

    /* A sum of terms as if the largest one were 1. */
    __device__ __forceinline__ float relative(float terms) const {
        return terms * reciprocal_approx(exp2_approx(max_exponent));
    }
};

__device__ __forceinline__ row_softmax softmax_of(softmax_state others, float z_target) {
    row_softmax row;
    row.max = fmaxf(others.max, softmax_max(z_target));
    row.unit = softmax_unit_of(row.max);
    row.others = others.sum * softmax_rescale(others.max, row.unit);
    row.own_exponent = softmax_exponent(z_target, row.unit);
    row.own = exp2_approx(row.own_exponent);
    row.max_exponent = softmax_exponent(row.max, row.unit);
    row.sure = row.own > 0.0f && row.own >= row.others;
    row.rest = log1pf(row.others / row.own);
    const float distance = (row.own_exponent - row.max_exponent) * row.unit.ln;
    row.log_sum = row.sure ? row.rest + distance : softmax_log_sum({row.max, row.others + row.own});
    row.log_prob = row.sure ? -row.rest : distance - row.log_sum;
    return row;
}

__device__ __forceinline__ void write_softmax(const logprob_results &to, const row_softmax &row, int64_t r) {
    if (to.log_prob) to.log_prob[r] = row.log_prob;
    if (to.lse) to.lse[r] = row.max + row.log_sum;
    if (to.normalizer) to.normalizer[2 * r] = row.max, to.normalizer[2 * r + 1] = row.log_sum;
}

/* ---- the plain row -------------------------------------------------------------------------------------------------- */

/* No soft cap, a scale that is not 0, and nobody asks for more than what the softmax gives. */
template <typename T>
struct plain_row : logits_row<T, false> {
    using problem = rows_problem;
    using slot = softmax_state;
    static __device__ __forceinline__ slot empty() { return softmax_empty(); }

    template <int COUNT>
    static __device__ __forceinline__ slot push(slot s, pack<T, pack_size<T>> (&raw)[COUNT], int64_t first, int64_t end,
                                                const row_key &key) {
#pragma unroll
        for (int u = 0; u < COUNT; u++) turn<T>(raw[u], key.sign);
        return vocab_rows::push_packs<T>(s, raw, first, end, key.y,
                                         [&](float logit) { return z_of<false>(key.to_z, logit); });
    }
    static __device__ __forceinline__ slot push_one(slot s, T logit, int64_t i, const row_key &key) {
        if (i == key.y) return s;
        const float z = z_of<false>(key.to_z, turned(to_f32(logit), key.sign)), max = fmaxf(s.max, softmax_max(z));
        const softmax_unit unit = softmax_unit_of(max);
        return {max, s.sum * softmax_rescale(s.max, unit) + softmax_term(z, unit)};
    }
    static __device__ __forceinline__ void finish(const problem &p, int64_t r, const row_key &key, slot others) {
        if (threadIdx.x != 0 && !p.results.selected) return;
        const row_softmax row = softmax_of(others, z_of<false>(key.to_z, key.target));
        if (threadIdx.x == 0) write_softmax(p.results, row, key.row);
        if (p.results.selected) plain_row::look_up(p, r, key, row.max, row.log_sum);
    }
};

/* ---- the row with every statistic ----------------------------------------------------------------------------------- */

/* The target is part of the maximum and of offsets, not of the other sums. */
struct statistics {
    softmax_state softmax;
    float by_exponent, squares; /* Σ e·t and Σ e² of terms e = 2^t */
    float offsets;              /* Σ (z - base): what all z have in common does not cancel */
    int beaten;                 /* a logit that comes before the target's in the order of maxima */
};

/* The same sums relative to another maximum: every exponent is less by one number. */
__device__ __forceinline__ statistics rebased(statistics s, float max, const softmax_unit &unit) {
    const float factor = softmax_rescale(s.softmax.max, unit);
    const float step = unit.scale == 1.0f ? 0.0f : __fmul_rn(s.softmax.max, unit.scale) - unit.offset;
    s.by_exponent = factor * fmaf(bounded_exponent(step), s.softmax.sum, s.by_exponent);
    s.squares *= factor * factor;
    s.softmax = {max, s.softmax.sum * factor};
    return s;
}

__device__ __forceinline__ statistics warp_merge(statistics s) {
    const float max = warp_max_ordered(s.softmax.max);
    s = rebased(s, max, softmax_unit_of(max));
    s.softmax.sum = warp_sum(s.softmax.sum);
    s.by_exponent = warp_sum(s.by_exponent);
    s.squares = warp_sum(s.squares);
    s.offsets = warp_sum(s.offsets);
    s.beaten = __any_sync(0xffffffffu, s.beaten);
    return s;
}

template <typename T, bool CAPPED>
struct full_row : logits_row<T, CAPPED> {
    using problem = rows_problem;
    using slot = statistics;
    static __device__ __forceinline__ slot empty() { return {softmax_empty(), 0.0f, 0.0f, 0.0f, 0}; }

    /* Whether one of these logits is larger than the target's, or as large and before it. */
    template <int N>
    static __device__ __forceinline__ bool beats(const float (&logit)[N], int64_t first, const row_key &key) {
        bool beaten = false;
#pragma unroll
        for (int k = 0; k < N; k++)
            beaten = beaten || logit[k] > key.target || (logit[k] == key.target && first + k < key.y);
        return beaten;
    }

    /* Logits first, first + 1, ..., none of which is above the maximum. */
    template <int N>
    static __device__ __forceinline__ void add(slot &s, const float (&logit)[N], int64_t first, const row_key &key,
                                               const softmax_unit &unit) {
        float z[N], total = 0.0f, sum = 0.0f, by_exponent = 0.0f, squares = 0.0f;
#pragma unroll
        for (int k = 0; k < N; k++) z[k] = z_of<CAPPED>(key.to_z, logit[k]), total += z[k];
        s.offsets += fmaf(-(float)N, key.base, total);
        if ((uint64_t)(key.y - first) < (uint64_t)N) {
#pragma unroll
            for (int k = 0; k < N; k++)
                if (first + k == key.y) z[k] = -INFINITY;
        }
#pragma unroll
        for (int k = 0; k < N; k++) {
            const float t = softmax_exponent(z[k], unit), e = exp2_approx(t);
            sum += e;
            by_exponent = fmaf(e, bounded_exponent(t), by_exponent);
            squares = fmaf(e, e, squares);
        }
        s.softmax.sum += sum;
        s.by_exponent += by_exponent;
        s.squares += squares;
    }

    template <int COUNT>
    static __device__ __forceinline__ slot push(slot s, pack<T, pack_size<T>> (&raw)[COUNT], int64_t v, int64_t packs,
                                                const row_key &key) {
        constexpr int N = pack_size<T>;
        float most = -INFINITY;
#pragma unroll
        for (int u = 0; u < COUNT; u++) {
            if (v + u * vocab_rows::SUMMED_THREADS >= packs) continue;
            turn<T>(raw[u], key.sign);
            const float here = vocab_rows::largest(raw[u]);
            if (!s.beaten && here >= key.target) {
                float logit[N];
                unpack(raw[u], logit);
                s.beaten = beats(logit, (v + u * vocab_rows::SUMMED_THREADS) * N, key);
            }
            most = fmaxf(most, here);
        }
        const float max = fmaxf(s.softmax.max, softmax_max(z_of<CAPPED>(key.to_z, most)));
        const softmax_unit unit = softmax_unit_of(max);
        s = rebased(s, max, unit);
#pragma unroll
        for (int u = 0; u < COUNT; u++) {
            if (v + u * vocab_rows::SUMMED_THREADS >= packs) continue;
            float logit[N];
            unpack(raw[u], logit);
            add(s, logit, (v + u * vocab_rows::SUMMED_THREADS) * N, key, unit);
        }
        return s;
    }
    static __device__ __forceinline__ slot push_one(slot s, T value, int64_t i, const row_key &key) {
        const float logit[1] = {turned(to_f32(value), key.sign)};
        const float max = fmaxf(s.softmax.max, softmax_max(z_of<CAPPED>(key.to_z, logit[0])));
        const softmax_unit unit = softmax_unit_of(max);
        s = rebased(s, max, unit);
        s.beaten = s.beaten || beats(logit, i, key);
        add(s, logit, i, key, unit);
        return s;
    }

    static __device__ __forceinline__ void write(const problem &p, const row_key &key, slot s, const row_softmax &row) {
        const logprob_results &to = p.results;
        s = rebased(s, row.max, row.unit); /* the soft cap's tanh may step back by one rounding */
        const float own_squared = row.own * row.own, sum = row.others + row.own;
        /* Σ e·t of all, of exponents relative to the maximum's */
        const float by_exponent = fmaf(-row.max_exponent, row.others, s.by_exponent) +
                                  row.own * bounded_exponent(row.own_exponent - row.max_exponent);
        write_softmax(to, row, key.row);
        if (to.entropy) to.entropy[key.row] = row.log_sum - by_exponent * row.unit.ln / sum;
        if (to.log_sum_sq_probs)
            to.log_sum_sq_probs[key.row] =
                row.sure ? log1pf(s.squares / own_squared) - 2.0f * row.rest
                         : logf(row.relative(row.relative(s.squares + own_squared))) - 2.0f * row.log_sum;
        if (to.mean_logits) to.mean_logits[key.row] = key.base + s.offsets / (float)p.vocab;
        const bool first = p.to_z.inner == 0.0f ? key.y == 0 : !s.beaten; /* a scale of 0 makes all z equal */
        if (to.is_top1) to.is_top1[key.row] = first && !isnan(row.log_sum);
    }
    static __device__ __forceinline__ void finish(const problem &p, int64_t r, const row_key &key, const slot &s) {
        if (threadIdx.x != 0 && !p.results.selected) return;
        const row_softmax row = softmax_of(s.softmax, z_of<CAPPED>(key.to_z, key.target));
        if (threadIdx.x == 0) write(p, key, s, row);
        if (p.results.selected) full_row::look_up(p, r, key, row.max, row.log_sum);
    }
};

} // namespace logprob

#endif
