/* multi_token_attention_ref.c - what multi-token attention is: double precision, plain loops, never optimised. */
#include "liger/ops/multi_token_attention/multi_token_attention_ref.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tests/harness/op_cases.h"

#ifndef REAL
#define REAL double
#endif

static REAL sum_of_terms(const double *x, int64_t count, REAL max) {
    REAL sum = 0;
    for (int64_t j = 0; j < count; j++) sum += (REAL)exp((REAL)x[j] - max);
    return sum;
}

/* tau - max, by leaving out what lies below the tau of the rest until nothing does. */
static REAL threshold_below(const double *x, int64_t count, REAL max) {
    REAL rest = -1;
    for (int64_t before = INT64_MAX, members = count + 1; members < before;) {
        REAL sum = -1;
        before = members, members = 0;
        for (int64_t j = 0; j < count; j++)
            if ((REAL)x[j] - max > rest) sum += (REAL)x[j] - max, members++;
        rest = sum / (REAL)members;
    }
    return rest;
}

void mta_ref_statistics(const struct mta_ref *p, double *statistics) {
    for (int64_t r = 0; r < p->batch * p->in * p->size; r++, statistics += 2) {
        const double *x = p->scores + r * p->size;
        const int64_t count = r % p->size + 1;
        REAL max = -FLT_MAX;
        bool defined = true, some = false;
        for (int64_t j = 0; j < count; j++) {
            defined = defined && x[j] < INFINITY;
            some = some || x[j] > -INFINITY;
            if ((REAL)x[j] > max) max = (REAL)x[j];
        }
        if (!p->sparse) {
            const REAL sum = defined ? sum_of_terms(x, count, max) : (REAL)NAN;
            statistics[0] = max, statistics[1] = sum == 0 ? 0 : 1 / sum;
        } else if (!defined || !some) {
            statistics[0] = defined ? INFINITY : NAN, statistics[1] = defined ? 0 : NAN;
        } else {
            const double rest = threshold_below(x, count, max);
            const float near = (float)(max + rest);
            const float above = (double)near - (double)max > rest ? nextafterf(near, -INFINITY) : near;
            statistics[0] = above;
            statistics[1] = fabs((double)max) >= 0x1p23 ? rest : ((double)max - (double)above) + rest;
        }
    }
}

double mta_ref_probability(const struct mta_ref *p, const double *statistics, int64_t plane, int64_t row, int64_t col) {
    if (row < 0 || row >= p->size || col < 0 || col > row) return 0;
    const REAL x = (REAL)p->scores[(plane * p->size + row) * p->size + col];
    const REAL first = (REAL)statistics[2 * (plane * p->size + row)];
    const REAL second = (REAL)statistics[2 * (plane * p->size + row) + 1];
    if (!p->sparse) return (REAL)exp(x - first) * second;
    return x <= first ? 0 : second < 0 ? -second : (x - first) - second;
}

/* Calls the statement for every tap of every output up to the diagonal: `at` is the output's index, `tap` the weight's, the
 * input's place is (plane, row, col). */
#define FOR_EACH_TAP(p, ...)                                                                                           \
    for (int64_t at = 0; at < (p)->batch * (p)->out * (p)->size * (p)->size; at++) {                                   \
        const int64_t j = at % (p)->size, i = at / (p)->size % (p)->size, o = at / (p)->size / (p)->size % (p)->out;   \
        const int64_t b = at / (p)->size / (p)->size / (p)->out, of_group = (p)->in / (p)->groups;                     \
        const int64_t taps = of_group * (p)->kernel[0] * (p)->kernel[1];                                               \
        for (int64_t k = 0; j <= i && k < taps; k++) {                                                                 \
            const int64_t v = k % (p)->kernel[1], u = k / (p)->kernel[1] % (p)->kernel[0], tap = o * taps + k;         \
            const int64_t c = o / ((p)->out / (p)->groups) * of_group + k / (p)->kernel[0] / (p)->kernel[1];           \
            const int64_t plane = b * (p)->in + c;                                                                     \
            const int64_t row = i * (p)->stride[0] + u * (p)->dilation[0] - (p)->padding[0];                           \
            const int64_t col = j * (p)->stride[1] + v * (p)->dilation[1] - (p)->padding[1];                           \
            __VA_ARGS__;                                                                                               \
        }                                                                                                              \
    }

static REAL rounded(const struct mta_ref *p, const double *statistics, int64_t plane, int64_t row, int64_t col) {
    return (REAL)op_round(p->t, mta_ref_probability(p, statistics, plane, row, col));
}

/* `sums` has one accumulator for each result. */
static REAL *sums_of(int64_t count) {
    REAL *const sums = calloc((size_t)count + 1, sizeof *sums);
    if (sums == NULL) abort();
    return sums;
}

void mta_ref_forward(const struct mta_ref *p, const double *statistics, const double *bias, double *y) {
    const int64_t count = p->batch * p->out * p->size * p->size;
    REAL *const sum = sums_of(count);
    FOR_EACH_TAP(p, sum[at] += (REAL)p->weight[tap] * rounded(p, statistics, plane, row, col))
    for (int64_t at = 0; at < count; at++) {
        const bool causal = at % p->size <= at / p->size % p->size;
        y[at] = causal ? sum[at] + (bias ? (REAL)bias[at / p->size / p->size % p->out] : 0) : 0;
    }
    free(sum);
}

void mta_ref_transposed(const struct mta_ref *p, const double *dy, double *dprobability) {
    const int64_t count = p->batch * p->in * p->size * p->size;
    REAL *const sum = sums_of(count);
    FOR_EACH_TAP(p, if (row >= 0 && row < p->size && col >= 0 && col <= row)
                        sum[(plane * p->size + row) * p->size + col] += (REAL)p->weight[tap] * (REAL)dy[at])
    for (int64_t at = 0; at < count; at++) dprobability[at] = sum[at];
    free(sum);
}

static void scores_backward(const struct mta_ref *p, const double *statistics, double *dscores) {
    for (int64_t r = 0; r < p->batch * p->in * p->size; r++, dscores += p->size) {
        const int64_t row = r % p->size, plane = r / p->size;
        REAL dot = 0;
        int64_t members = 0;
        for (int64_t j = 0; j <= row; j++) {
            const REAL x = (REAL)mta_ref_probability(p, statistics, plane, row, j);
            const bool member = !(p->scores[r * p->size + j] <= statistics[2 * r]);
            dscores[j] = op_round(p->t, dscores[j]);
            if (p->sparse) dot += member ? (REAL)dscores[j] : 0, members += member;
            else dot += x * (REAL)dscores[j];
        }
        if (p->sparse) dot /= (REAL)members;
        for (int64_t j = 0; j < p->size; j++) {
            const REAL x = (REAL)mta_ref_probability(p, statistics, plane, row, j);
            const bool member = j <= row && !(p->scores[r * p->size + j] <= statistics[2 * r]);
            const REAL apart = (REAL)dscores[j] - dot;
            if (p->sparse) dscores[j] = member ? apart : 0;
            else dscores[j] = j > row || statistics[2 * r + 1] == 0 ? 0 : x * apart;
        }
    }
}

void mta_ref_backward(const struct mta_ref *p, const double *statistics, const double *dy, double *dscores,
                      double *dweight, double *dbias) {
    const int64_t weights = p->out * p->in / p->groups * p->kernel[0] * p->kernel[1];
    REAL *const sum = sums_of(weights), *const plain = sums_of(p->out);
    if (dscores) {
        mta_ref_transposed(p, dy, dscores);
        scores_backward(p, statistics, dscores);
    }
    if (dweight) {
        FOR_EACH_TAP(p, sum[tap] += (REAL)dy[at] * rounded(p, statistics, plane, row, col))
        for (int64_t k = 0; k < weights; k++) dweight[k] = sum[k];
    }
    for (int64_t at = 0; dbias && at < p->batch * p->out * p->size * p->size; at++)
        if (at % p->size <= at / p->size % p->size) plain[at / p->size / p->size % p->out] += (REAL)dy[at];
    for (int64_t o = 0; dbias && o < p->out; o++) dbias[o] = plain[o];
    free(sum);
    free(plain);
}
