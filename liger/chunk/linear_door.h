/* linear_door.h - what doors of functions on a linear head require of its weight and of the buffer of a chunk, and what they tell
 * the loop over chunks. Internal.
 *
 * The checks know a table's rows by what they are: x and weight are its first tensors, its scratch tensor is the buffer of a chunk,
 * of [chunk, vocab], and the temperature is called so. */
#ifndef LIGER_CHUNK_LINEAR_DOOR_H
#define LIGER_CHUNK_LINEAR_DOOR_H

#include "liger/chunk/linear_loss.h"
#include "liger/core/door.h"

/* A weight that some framework has not put together yet. Before the row of the weight, whose words know no shards. */
liger_status linear_check_weight(struct door_call *call);

/* Whether the buffer of a chunk matters to this call: there are rows, and it is no question whose answer does not depend on it. */
bool linear_chunk_matters(const struct door_call *call);
/* Where it does: that it is there and has 1 or more rows. Behind its row. */
liger_status linear_check_chunk(struct door_call *call);
/* Or that dweight can take its place (linear_in_place.h): its sizes are then those of all rows and the vocabulary. */
liger_status linear_check_chunk_or_dweight(struct door_call *call);

/* Logits are multiplied by its inverse. */
liger_status linear_check_temperature(struct door_call *call);

/* The door's numbers of the sizes. */
struct linear_sizes {
    int rows, hidden, vocab, chunk;
};

/* Reads a query of how large a buffer should be; and answers that of the rows of a chunk, which may be more where there is a
 * dweight, or none. */
liger_status linear_ask(struct door_call *call, liger_context *context, const struct door *door, const void *given,
                        void *args, uint32_t needs, const size_t *answer);
liger_status linear_advise_chunk(liger_context *context, const struct door *door, const void *given, void *args,
                                 uint32_t needs, uint32_t dweight, bool may_be_none, struct linear_sizes sizes,
                                 size_t *rows);

/* T and the sizes of the loop over chunks. */
void linear_loss_sized(const struct door_call *call, struct linear_sizes sizes, struct linear_loss *loss);

#endif
