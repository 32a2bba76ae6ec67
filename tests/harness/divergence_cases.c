/* divergence_cases.c - see divergence_cases.h. */
#include "tests/harness/divergence_cases.h"

#include <math.h>

static bool is_none(const struct op_case *c) { return (c->flags & DIVERGENCE_REDUCTION) == LIGER_REDUCTION_NONE; }

static struct tensor_spec matrix(const struct op_case *c, const char *name, enum tensor_role role,
                                 enum tensor_kind kind) {
    return (struct tensor_spec){.name = name,
                                .role = role,
                                .kind = kind,
                                .ndim = 2,
                                .shape = {c->size[DIVERGENCE_ROWS], c->size[DIVERGENCE_COLS]},
                                .gaps = true};
}

void divergence_describe(const struct op_case *c, struct tensor_spec *spec) {
    spec[DIVERGENCE_X] = matrix(c, "x", ROLE_IN, KIND_T);
    spec[DIVERGENCE_Y] = matrix(c, "y", ROLE_IN, KIND_WEIGHT);
    spec[DIVERGENCE_LABELS] = (struct tensor_spec){.name = "labels",
                                                   .kind = KIND_INDEX,
                                                   .values = VALUES_TARGET,
                                                   .spread = 10,
                                                   .offset = -100,
                                                   .ignore_every = c->flags & DIVERGENCE_IGNORED ? 1 : 3,
                                                   .absent = !(c->flags & DIVERGENCE_LABELLED),
                                                   .ndim = 1,
                                                   .shape = {c->size[DIVERGENCE_ROWS]}};
    struct tensor_spec upstream = matrix(c, "upstream", ROLE_IN, KIND_F32);
    if (!(c->flags & DIVERGENCE_BY_ELEMENT)) upstream.ndim = c->flags & DIVERGENCE_BY_ROW ? 1 : 0;
    upstream.gaps = upstream.ndim == 2;
    upstream.absent = !(c->flags & (DIVERGENCE_SCALED | DIVERGENCE_BY_ROW | DIVERGENCE_BY_ELEMENT));
    spec[DIVERGENCE_UPSTREAM] = upstream;
    /* Values: the few roundings of a formula. Their sum: chains of a thousand terms at most, whose errors grow like a random
     * walk, are added up in pairs. */
    struct tensor_spec loss = matrix(c, "loss", ROLE_OUT, is_none(c) ? KIND_F32 : KIND_WEIGHT);
    loss.ndim = is_none(c) ? 2 : 0;
    loss.gaps = is_none(c);
    loss.absent = c->flags & DIVERGENCE_NO_LOSS;
    loss.relative = 1.05, loss.absolute = is_none(c) ? 8 : 40;
    spec[DIVERGENCE_LOSS] = loss;
    spec[DIVERGENCE_DX] = matrix(c, "dx", ROLE_OUT, KIND_T);
    spec[DIVERGENCE_DX].absent = c->flags & DIVERGENCE_NO_DX;
    spec[DIVERGENCE_DX].relative = 1.05, spec[DIVERGENCE_DX].absolute = 8;
}

static bool counts(double *const *t, int64_t r) {
    return t[DIVERGENCE_LABELS] == NULL || t[DIVERGENCE_LABELS][r] != -100;
}

void divergence_prepare(const struct op_case *c, const struct op_types *types, double *const *t) {
    const int64_t cols = c->size[DIVERGENCE_COLS];
    (void)types;
    for (int64_t r = 0; c->flags & DIVERGENCE_POISON && r < c->size[DIVERGENCE_ROWS]; r++)
        for (int64_t j = 0; !counts(t, r) && j < cols; j++)
            t[DIVERGENCE_X][r * cols + j] = t[DIVERGENCE_Y][r * cols + j] = j % 2 ? NAN : INFINITY;
}

/* What every value and slope is multiplied by. */
static double share_of(const struct op_case *c, double *const *t) {
    double rows = 0;
    for (int64_t r = 0; r < c->size[DIVERGENCE_ROWS]; r++) rows += counts(t, r);
    if (rows == 0) return 0;
    switch (c->flags & DIVERGENCE_REDUCTION) {
        case LIGER_REDUCTION_MEAN: return 1 / (rows * (double)c->size[DIVERGENCE_COLS]);
        case LIGER_REDUCTION_BATCHMEAN: return 1 / rows;
        default: return 1;
    }
}

static double upstream_of(const struct op_case *c, double *const *t, int64_t r, int64_t i) {
    if (t[DIVERGENCE_UPSTREAM] == NULL) return 1;
    return t[DIVERGENCE_UPSTREAM][c->flags & DIVERGENCE_BY_ELEMENT ? i : c->flags & DIVERGENCE_BY_ROW ? r : 0];
}

void divergence_evaluate(const struct op_case *c, const struct op_types *types, double *const *t,
                         divergence_formula *formula, bool naive) {
    const int64_t cols = c->size[DIVERGENCE_COLS], count = c->size[DIVERGENCE_ROWS] * cols;
    const double share = share_of(c, t);
    double sum = 0;
    for (int64_t i = 0; i < count; i++) {
        const int64_t r = i / cols;
        struct divergence_term term = {0};
        if (counts(t, r)) term = formula(c, types, t[DIVERGENCE_X][i], t[DIVERGENCE_Y][i]);
        sum = naive ? (double)((float)sum + (float)term.value) : sum + term.value;
        if (t[DIVERGENCE_LOSS] && is_none(c)) t[DIVERGENCE_LOSS][i] = term.value;
        if (t[DIVERGENCE_DX]) t[DIVERGENCE_DX][i] = counts(t, r) ? term.slope * share * upstream_of(c, t, r, i) : 0;
    }
    if (t[DIVERGENCE_LOSS] && !is_none(c)) t[DIVERGENCE_LOSS][0] = sum * share;
}

double divergence_loss(const struct op_case *c, const struct op_types *types, double *const *t,
                       divergence_formula *formula) {
    const int64_t cols = c->size[DIVERGENCE_COLS], count = c->size[DIVERGENCE_ROWS] * cols;
    double total = 0;
    for (int64_t i = 0; i < count; i++)
        if (counts(t, i / cols))
            total += upstream_of(c, t, i / cols, i) * formula(c, types, t[DIVERGENCE_X][i], t[DIVERGENCE_Y][i]).value;
    return total * share_of(c, t);
}

void divergence_magnitudes(const struct op_case *c, const struct op_types *types, double *const *t, double *magnitude,
                           divergence_formula *formula) {
    const int64_t cols = c->size[DIVERGENCE_COLS], count = c->size[DIVERGENCE_ROWS] * cols;
    const double share = share_of(c, t);
    double sum = 0;
    for (int64_t i = 0; i < count; i++) {
        if (!counts(t, i / cols)) continue;
        const struct divergence_term term = formula(c, types, t[DIVERGENCE_X][i], t[DIVERGENCE_Y][i]);
        if (is_none(c)) op_raise(&magnitude[DIVERGENCE_LOSS], term.value_size);
        else if (isfinite(term.value_size)) sum += term.value_size;
        op_raise(&magnitude[DIVERGENCE_DX], term.slope_size * share * fabs(upstream_of(c, t, i / cols, i)));
    }
    if (!is_none(c)) magnitude[DIVERGENCE_LOSS] = sum * share;
}
