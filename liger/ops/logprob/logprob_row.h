/* logprob_row.h - what both backends say alike of one row: from its logits to z, results that are all one number, and what its
 * gradient is made of. */
#ifndef LIGER_OPS_LOGPROB_ROW_H
#define LIGER_OPS_LOGPROB_ROW_H

#include <math.h>

#include "liger/core/rows.h"
#include "liger/ops/logprob/logprob_problem.h"

#define LOGPROB LIGER_HOST_DEVICE static inline

/* z = outer·tanh(inner·logit) if it is capped, else inner·logit; dz/dlogit = slope·(1 - tanh²). */
struct z_map {
    float inner, outer, slope;
    bool capped;
};

static inline struct z_map z_map_of(const struct logit_map *map) {
    const double scale = (double)map->scale, softcap = (double)map->softcap, temperature = (double)map->temperature;
    struct z_map to_z;
    to_z.capped = softcap > 0;
    to_z.inner = (float)(scale / (to_z.capped ? softcap : temperature));
    to_z.outer = (float)(softcap / temperature);
    to_z.slope = (float)(scale / temperature);
    return to_z;
}

/* The same in every result of a row, but for those of the selected ids. */
LOGPROB void logprob_fill(const struct logprob_results *to, int64_t r, float value) {
    if (to->log_prob) to->log_prob[r] = value;
    if (to->entropy) to->entropy[r] = value;
    if (to->lse) to->lse[r] = value;
    if (to->log_sum_sq_probs) to->log_sum_sq_probs[r] = value;
    if (to->mean_logits) to->mean_logits[r] = value;
    if (to->is_top1) to->is_top1[r] = 0;
    if (to->normalizer) to->normalizer[2 * r] = to->normalizer[2 * r + 1] = value;
}

LOGPROB float logprob_upstream(const float *upstream, int64_t r) { return upstream ? upstream[r] : 0.0f; }

/* What a row's gradient is made of. `by_p` is the upstream of lse, from which that of the selected ids may be subtracted before
 * or after. */
LOGPROB struct logits_gradient_row logprob_weigh(const struct logprob_weights_problem *p, int64_t r, int64_t target,
                                                 float by_p) {
    const struct logprob_upstreams *up = &p->upstream;
    const float entropy = logprob_upstream(up->entropy, r), squares = logprob_upstream(up->log_sum_sq_probs, r);
    struct logits_gradient_row row;
    row.max = p->normalizer[2 * r];
    row.log_sum = p->normalizer[2 * r + 1];
    row.by_p = by_p;
    row.by_p_log_p = row.by_p_squared = 0.0f;
    if (up->entropy) {
        row.by_p -= entropy * p->entropy[r];
        row.by_p_log_p = -entropy;
    }
    if (up->log_sum_sq_probs) {
        row.by_p -= 2.0f * squares;
        row.by_p_squared = 2.0f * squares * expf(-p->log_sum_sq_probs[r]);
    }
    row.constant = logprob_upstream(up->mean_logits, r) / (float)p->vocab;
    row.hit = logprob_upstream(up->log_prob, r);
    row.own = up->log_prob ? row.hit * -expm1f(p->log_prob[r]) : 0.0f;
    row.target = target;
    return row;
}

#endif
