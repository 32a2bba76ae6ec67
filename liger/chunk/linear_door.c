/* linear_door.c - see linear_door.h. */
#include "liger/chunk/linear_door.h"

#include <math.h>
#include <string.h>

#include "liger/chunk/linear_in_place.h"
#include "liger/core/fail.h"

enum { X, WEIGHT };

liger_status linear_check_weight(struct door_call *call) {
    const liger_tensor *weight = door_tensor(call->args, WEIGHT);
    LIGER_REQUIRE(weight->ndim != 2 || (weight->shape[0] != 0 && weight->shape[1] != 0), LIGER_ERR_SHAPE,
                  "%s: weight is %lld x %lld, but no size may be 0 (is it a shard that was not gathered?)",
                  call->door->function, (long long)weight->shape[0], (long long)weight->shape[1]);
    return LIGER_OK;
}

/* The row of x, of the weight, of the buffer. */
static const struct door_rule *rule_at(const struct door_call *call, int at) {
    const struct door_rule *rule = call->door->rules;
    while (rule->kind != DOOR_TENSOR || rule->at != at) rule++;
    return rule;
}
static const struct door_rule *chunk_rule(const struct door_call *call) {
    const struct door_rule *rule = call->door->rules;
    while (rule->kind != DOOR_TENSOR || rule->role != DOOR_SCRATCH) rule++;
    return rule;
}

static bool has_buffer(const struct door_call *call) {
    const struct door_rule *rule = chunk_rule(call);
    return door_has(call, 1u << rule->at) && door_tensor(call->args, rule->at)->shape[0] > 0;
}

/* Its rule may stand behind that of the buffer. */
static bool has_dweight(const struct door_call *call) {
    const struct door_rule *rule = call->door->rules;
    while (rule->kind != DOOR_TENSOR || strcmp(door_name(rule), "dweight") != 0) rule++;
    const liger_tensor *dweight = door_tensor(call->args, rule->at);
    return call->query ? dweight->dtype != LIGER_DTYPE_NONE : dweight->data != NULL;
}

/* 0: without dweight, or not for this head. */
static int64_t slices_in_place(const struct door_call *call) {
    const struct door_rule *x = rule_at(call, X), *weight = rule_at(call, WEIGHT);
    return has_dweight(call)
               ? linear_in_place_slices(call->context, call->t, door_size(call, x->shape.size[0]),
                                        door_size(call, x->shape.size[1]), door_size(call, weight->shape.size[0]))
               : 0;
}

bool linear_chunk_matters(const struct door_call *call) {
    const bool asked = !call->query || call->needs >> chunk_rule(call)->at & 1;
    return asked && door_size(call, rule_at(call, X)->shape.size[0]) > 0;
}

liger_status linear_check_chunk(struct door_call *call) {
    const struct door_rule *rule = chunk_rule(call);
    const liger_tensor *buffer = door_tensor(call->args, rule->at);
    if (!linear_chunk_matters(call)) return LIGER_OK;
    LIGER_REQUIRE(door_has(call, 1u << rule->at), LIGER_ERR_ARGUMENT, "%s: %s is required, but its %s",
                  call->door->function, door_name(rule), call->query ? "dtype is NONE" : "data is NULL");
    const int64_t chunk = door_size(call, rule->shape.size[0]);
    LIGER_REQUIRE(chunk > 0, LIGER_ERR_SHAPE,
                  "%s: %s must be [chunk, vocab] with 1 or more rows, but has %d dimensions and %lld rows",
                  call->door->function, door_name(rule), buffer->ndim, (long long)chunk);
    return LIGER_OK;
}

liger_status linear_check_chunk_or_dweight(struct door_call *call) {
    const struct door_rule *rule = chunk_rule(call);
    if (!linear_chunk_matters(call) || has_buffer(call) || !slices_in_place(call)) return linear_check_chunk(call);
    call->size[rule->shape.size[0]] = door_size(call, rule_at(call, X)->shape.size[0]);
    call->size[rule->shape.size[1]] = door_size(call, rule_at(call, WEIGHT)->shape.size[0]);
    return LIGER_OK;
}

liger_status linear_check_temperature(struct door_call *call) {
    const struct door_rule *rule = call->door->rules;
    float temperature;
    while (rule->kind != DOOR_FLOAT || strcmp(door_name(rule), "temperature") != 0) rule++;
    memcpy(&temperature, (const char *)call->args + rule->offset, sizeof temperature);
    LIGER_REQUIRE(temperature != 0 && isfinite(1 / temperature), LIGER_ERR_ARGUMENT,
                  "%s: temperature is %g, but logits are divided by it", call->door->function, (double)temperature);
    return LIGER_OK;
}

liger_status linear_ask(struct door_call *call, liger_context *context, const struct door *door, const void *given,
                        void *args, uint32_t needs, const size_t *answer) {
    LIGER_REQUIRE(context != NULL && answer != NULL, LIGER_ERR_ARGUMENT, "%s: context or the answer's address is NULL",
                  door->function);
    return door_query(call, door, context, given, args, needs);
}

liger_status linear_advise_chunk(liger_context *context, const struct door *door, const void *given, void *args,
                                 uint32_t needs, uint32_t dweight, bool may_be_none, struct linear_sizes sizes,
                                 size_t *rows) {
    struct door_call call;
    LIGER_TRY(linear_ask(&call, context, door, given, args, needs, rows));
    const int64_t all = call.size[sizes.rows], hidden = call.size[sizes.hidden], vocab = call.size[sizes.vocab];
    const bool none = may_be_none && linear_in_place_pays(context, call.t, all, vocab) && slices_in_place(&call);
    *rows = none ? 0 : (size_t)linear_loss_chunk_rows(context, call.t, all, hidden, vocab, door_has(&call, dweight));
    return LIGER_OK;
}

void linear_loss_sized(const struct door_call *call, struct linear_sizes sizes, struct linear_loss *loss) {
    loss->head.dtype = call->t;
    loss->head.hidden = call->size[sizes.hidden];
    loss->head.vocab = call->size[sizes.vocab];
    loss->rows = call->size[sizes.rows];
    loss->chunk_rows = call->size[sizes.chunk];
    loss->slices = loss->rows > 0 && !has_buffer(call) ? slices_in_place(call) : 0;
    if (loss->slices) loss->head.logits = loss->dweight, loss->head.logits_stride = loss->head.vocab;
}
