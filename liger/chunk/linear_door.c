/* linear_door.c - see linear_door.h. */
#include "liger/chunk/linear_door.h"

#include <math.h>

#include "liger/chunk/linear_loss.h"
#include "liger/core/fail.h"

liger_status linear_require_weight(const struct door_call *call, const liger_tensor *weight) {
    LIGER_REQUIRE(weight->ndim != 2 || (weight->shape[0] != 0 && weight->shape[1] != 0), LIGER_ERR_SHAPE,
                  "%s: weight is %lld x %lld, but no size may be 0 (is it a shard that was not gathered?)",
                  call->door->function, (long long)weight->shape[0], (long long)weight->shape[1]);
    return LIGER_OK;
}

bool linear_logits_matter(const struct door_call *call, uint32_t present, int64_t rows) {
    return rows > 0 && (!call->query || (call->needs & present) != 0);
}

liger_status linear_require_chunk(const struct door_call *call, const char *name, const liger_tensor *buffer,
                                  uint32_t present, int64_t chunk) {
    LIGER_REQUIRE(door_has(call, present), LIGER_ERR_ARGUMENT, "%s: %s is required, but its %s", call->door->function,
                  name, call->query ? "dtype is NONE" : "data is NULL");
    LIGER_REQUIRE(chunk > 0, LIGER_ERR_SHAPE,
                  "%s: %s must be [chunk, vocab] with 1 or more rows, but has %d dimensions and %lld rows",
                  call->door->function, name, buffer->ndim, (long long)chunk);
    return LIGER_OK;
}

liger_status linear_require_temperature(const struct door_call *call, float temperature) {
    LIGER_REQUIRE(temperature != 0 && isfinite(1 / temperature), LIGER_ERR_ARGUMENT,
                  "%s: temperature is %g, but logits are divided by it", call->door->function, (double)temperature);
    return LIGER_OK;
}

liger_status linear_advise_chunk(liger_context *context, const struct door *door, const void *given, void *args,
                                 uint32_t needs, struct linear_sizes sizes, size_t *rows) {
    struct door_call call;
    LIGER_REQUIRE(context != NULL && rows != NULL, LIGER_ERR_ARGUMENT, "%s: context or the answer's address is NULL",
                  door->function);
    LIGER_TRY(door_query(&call, door, context, given, args, needs));
    *rows = (size_t)linear_loss_chunk_rows(context, call.t, call.size[sizes.rows], call.size[sizes.hidden],
                                           call.size[sizes.vocab], true);
    return LIGER_OK;
}
