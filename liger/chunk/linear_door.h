/* linear_door.h - what doors of functions on a linear head require of its weight and of the buffer of a chunk. Internal. */
#ifndef LIGER_CHUNK_LINEAR_DOOR_H
#define LIGER_CHUNK_LINEAR_DOOR_H

#include "liger/core/door.h"

/* A weight that some framework has not put together yet. Before the row of the weight, whose words know no shards. */
liger_status linear_require_weight(const struct door_call *call, const liger_tensor *weight);

/* Whether the buffer of a chunk, whose bit is `present`, matters to this call: it has rows, and is no question whose answer does
 * not depend on it. */
bool linear_logits_matter(const struct door_call *call, uint32_t present, int64_t rows);
/* That it is there and has 1 or more rows. */
liger_status linear_require_chunk(const struct door_call *call, const char *name, const liger_tensor *buffer,
                                  uint32_t present, int64_t chunk);

/* Logits are multiplied by its inverse. */
liger_status linear_require_temperature(const struct door_call *call, float temperature);

/* Answers a query of the rows of a chunk; the sizes are the door's numbers of them. */
struct linear_sizes {
    int rows, hidden, vocab;
};
liger_status linear_advise_chunk(liger_context *context, const struct door *door, const void *given, void *args,
                                 uint32_t needs, struct linear_sizes sizes, size_t *rows);

#endif
