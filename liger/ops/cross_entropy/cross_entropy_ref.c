/* cross_entropy_ref.c - what cross entropy is: double precision, plain loops.
 *
 * REAL: cross_entropy_naive_ref.c compiles the same loops in f32. */
#include "liger/ops/cross_entropy/cross_entropy_ref.h"

#include <math.h>
#include <stddef.h>

#include "liger/ops/cross_entropy/cross_entropy.h"

#ifndef REAL
#define REAL double
#endif

static REAL capped(const struct cross_entropy_ref *p, REAL x) {
    return p->softcap > 0 ? p->softcap * tanh(x / p->softcap) : x;
}
static REAL weight_of(const struct cross_entropy_ref *p, int64_t j) { return p->weight ? p->weight[j] : 1; }

struct sums {
    REAL valid, weights, total; /* rows not ignored, their class weights, all class weights */
};

static struct sums sums_of(const struct cross_entropy_ref *p) {
    struct sums s = {0, 0, 0};
    for (int64_t r = 0; r < p->rows; r++) {
        if (p->target[r] == p->ignore_index) continue;
        s.valid += 1;
        s.weights += weight_of(p, (int64_t)p->target[r]);
    }
    for (int64_t j = 0; j < p->vocab; j++) s.total += weight_of(p, j);
    return s;
}

struct row {
    REAL loss, z, accuracy, predicted;
};

static struct row one_row(const struct cross_entropy_ref *p, const struct sums *s, int64_t r) {
    const double *logits = p->logits + r * p->vocab;
    const int64_t y = (int64_t)p->target[r];
    const bool mean = p->reduction == LIGER_REDUCTION_MEAN;
    const REAL by_weight = mean ? 1 / s->weights : 1, by_count = mean ? 1 / s->valid : 1;
    const REAL a = p->label_smoothing, e = a / (REAL)p->vocab, w = weight_of(p, y);
    REAL max = -INFINITY, sum = 0, smooth = 0;
    int64_t best = 0;
    for (int64_t j = 0; j < p->vocab; j++) {
        if (capped(p, logits[j]) > max) {
            max = capped(p, logits[j]);
            best = j;
        }
    }
    for (int64_t j = 0; j < p->vocab; j++) sum += exp(capped(p, logits[j]) - max);
    const REAL lse = max + log(sum), token = p->token_scaling ? exp(capped(p, logits[y]) - max) / sum : 1;
    if (a > 0)
        for (int64_t j = 0; j < p->vocab; j++) smooth += e * weight_of(p, j) * (lse - capped(p, logits[j]));
    const REAL z = p->lse_square_scale * lse * lse * by_count;
    const REAL loss = ((1 - a) * w * (lse - capped(p, logits[y])) + smooth) * by_weight + z;
    const REAL upstream = p->upstream ? p->upstream[p->upstream_by_row ? r : 0] : 1;
    for (int64_t j = 0; p->dlogits && j < p->vocab; j++) {
        const REAL x = capped(p, logits[j]), probability = exp(x - max) / sum, hit = j == y ? 1 : 0;
        REAL d = (w * (1 - a) * (probability - hit) + e * (probability * s->total - weight_of(p, j))) * by_weight +
                 2 * p->lse_square_scale * lse * probability * by_count;
        if (p->softcap > 0) d *= 1 - (x / p->softcap) * (x / p->softcap);
        p->dlogits[r * p->vocab + j] = d * token * upstream;
    }
    return (struct row){loss * token, z * token, best == y ? 1 : 0, (double)best};
}

static void put(double *out, bool none, int64_t r, REAL value) {
    if (out == NULL) return;
    if (none) out[r] = value;
    else out[0] = (REAL)out[0] + value;
}

void cross_entropy_reference(const struct cross_entropy_ref *p) {
    const struct sums s = sums_of(p);
    const bool none = p->reduction == LIGER_REDUCTION_NONE;
    double *const results[] = {p->loss, p->z_loss, p->accuracy};
    for (int i = 0; i < 3; i++)
        if (results[i] && !none) results[i][0] = 0;
    for (int64_t r = 0; r < p->rows; r++) {
        struct row row = {0, 0, 0, -1};
        if (p->target[r] != p->ignore_index) row = one_row(p, &s, r);
        else
            for (int64_t j = 0; p->dlogits && j < p->vocab; j++) p->dlogits[r * p->vocab + j] = 0;
        put(p->loss, none, r, row.loss);
        put(p->z_loss, none, r, row.z);
        put(p->accuracy, none, r, row.accuracy);
        if (p->predicted) p->predicted[r] = row.predicted;
    }
    if (p->accuracy && !none && p->rows > 0) p->accuracy[0] /= s.valid;
}
