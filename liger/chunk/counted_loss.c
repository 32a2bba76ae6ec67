/* counted_loss.c - see counted_loss.h. */
#include "liger/chunk/counted_loss.h"

#include "liger/core/fail.h"
#include "liger/ops/cross_entropy/cross_entropy_problem.h"
#include "liger/ops/gemm/gemm_problem.h"

enum { COUNTS_BYTES = 256 };
_Static_assert(sizeof(struct cross_entropy_counts) <= COUNTS_BYTES, "the counts stand first in the workspace");

size_t counted_loss_workspace(int64_t rows) { return COUNTS_BYTES + door_padded((size_t)rows * sizeof(float)); }

void counted_loss_sized(const struct door_call *call, struct linear_sizes sizes, struct counted_loss *loss,
                        struct linear_loss *chunks) {
    linear_loss_sized(call, sizes, chunks);
    loss->count = chunks->rows;
    chunks->head.workspace = (char *)loss->workspace + counted_loss_workspace(chunks->rows);
}

static float *losses_of_rows(const struct counted_loss *loss) {
    return loss->loss ? (float *)((char *)loss->workspace + COUNTS_BYTES) : NULL;
}

static liger_status count(liger_context *context, struct counted_loss *loss, liger_stream stream) {
    struct cross_entropy_counts *counts = loss->workspace;
    const bool on_device = loss->mean && loss->rows.labels != NULL;
    loss->rows.valid = on_device ? &counts->valid : NULL;
    loss->rows.share = (float)(loss->mean && !on_device ? loss->share / (double)loss->count : loss->share);
    if (!on_device) return LIGER_OK;
    const struct cross_entropy_count_problem problem = {
        .target = loss->rows.labels,
        .target_dtype = loss->rows.label_dtype,
        .rows = loss->count,
        .ignore_index = loss->rows.ignore_index,
        .any_label = true,
        .counts = counts,
    };
    return context->kernels->cross_entropy_count(context, &problem, stream);
}

static liger_status add_up(liger_context *context, const struct counted_loss *loss, liger_stream stream) {
    if (loss->loss == NULL) return LIGER_OK;
    const struct cross_entropy_reduce_problem problem = {
        .rows = loss->count,
        .loss = losses_of_rows(loss),
        .loss_out = loss->loss,
        .loss_dtype = LIGER_F32,
    };
    return context->kernels->cross_entropy_reduce(context, &problem, stream);
}

liger_status counted_loss_run(liger_context *context, struct counted_loss *loss, const struct linear_loss *chunks,
                              struct counted_rows *rows, float **losses, liger_stream stream) {
    const struct linear_head *head = &chunks->head;
    if (chunks->rows == 0) {
        LIGER_TRY(linear_zero(context, chunks->dweight, chunks->dweight_dtype, head->vocab * head->hidden, stream));
        LIGER_TRY(linear_zero(context, chunks->dbias, LIGER_F32, head->vocab, stream));
        return add_up(context, loss, stream);
    }
    LIGER_TRY(liger_gemm_ready(context)); /* before anything is written */
    LIGER_TRY(count(context, loss, stream));
    *rows = loss->rows;
    *losses = losses_of_rows(loss);
    LIGER_TRY(linear_loss_run(context, chunks, stream));
    return add_up(context, loss, stream);
}
