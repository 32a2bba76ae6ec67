/* logprob_map_cpu.h - from logits to z, a vector at a time. */
#ifndef LIGER_OPS_LOGPROB_MAP_CPU_H
#define LIGER_OPS_LOGPROB_MAP_CPU_H

#include "liger/cpu/vocab_rows.h"
#include "liger/ops/logprob/logprob_row.h"

/* Nothing is left of e^x in f32 below this: a distance from the maximum stays finite, so that 0 times it is 0. */
#define FARTHEST (-200.0f)

LIGER_TEMPLATE v_f32 mapped(const struct z_map *m, v_f32 logit) {
    const v_f32 x = v_mul(logit, v_set(m->inner));
    return m->capped ? v_mul(v_set(m->outer), v_tanh(x)) : x;
}

LIGER_TEMPLATE float first_lane(v_f32 x) {
    float lanes[V_LANES];
    v_store_f32(lanes, x);
    return lanes[0];
}

LIGER_TEMPLATE float mapped_at(liger_dtype t, const struct z_map *m, const void *logits, int64_t j) {
    return first_lane(mapped(m, v_set(f32_load(t, logits, j))));
}

#endif
