/* counted_loss.h - a loss on a head that is the sum of what rows that count weigh: their count, the chunks, the sum. Internal.
 *
 * Count and sum are steps of cross entropy, which counts labels and adds rows up in a fixed order. Nothing waits for the device. */
#ifndef LIGER_CHUNK_COUNTED_LOSS_H
#define LIGER_CHUNK_COUNTED_LOSS_H

#include "liger/chunk/linear_door.h"
#include "liger/chunk/linear_loss.h"
#include "liger/core/counted_rows.h"

struct counted_loss {
    struct counted_rows rows; /* labels, their dtype and ignore_index are the caller's, the rest is set here */
    int64_t count;            /* rows of the batch */
    double share;             /* what a row weighs, with `mean` divided by the number of rows that count */
    bool mean;
    float *loss;     /* the result, or NULL */
    void *workspace; /* counted_loss_workspace() bytes, aligned to 256 */
};

size_t counted_loss_workspace(int64_t rows);

/* T, the sizes and the place of the loops' scratch, once the table has filled in its part. */
void counted_loss_sized(const struct door_call *call, struct linear_sizes sizes, struct counted_loss *loss,
                        struct linear_loss *chunks);

/* The loss of the chunks, and their gradients. Before the first step *rows says which count, and *losses where the step leaves the
 * losses of all rows, already weighted: NULL where nobody asks for the loss. Of no rows everything is 0. */
liger_status counted_loss_run(liger_context *context, struct counted_loss *loss, const struct linear_loss *chunks,
                              struct counted_rows *rows, float **losses, liger_stream stream);

#endif
