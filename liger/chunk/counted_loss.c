/* counted_loss.c - see counted_loss.h. */
#include "liger/chunk/counted_loss.h"

#include "liger/core/fail.h"
#include "liger/ops/cross_entropy/cross_entropy_problem.h"

enum { COUNTS_BYTES = 256 };
_Static_assert(sizeof(struct cross_entropy_counts) <= COUNTS_BYTES, "the counts stand first in the workspace");

size_t counted_loss_workspace(int64_t rows) { return COUNTS_BYTES + ((size_t)rows * sizeof(float) + 255) / 256 * 256; }

float *counted_loss_rows(const struct counted_loss *loss) {
    return loss->loss ? (float *)((char *)loss->workspace + COUNTS_BYTES) : NULL;
}

liger_status counted_loss_begin(liger_context *context, struct counted_loss *loss, bool mean, double share,
                                liger_stream stream) {
    struct cross_entropy_counts *counts = loss->workspace;
    const bool on_device = mean && loss->rows.labels != NULL;
    loss->rows.valid = on_device ? &counts->valid : NULL;
    loss->rows.share = (float)(mean && !on_device && loss->count > 0 ? share / (double)loss->count : share);
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

liger_status counted_loss_end(liger_context *context, const struct counted_loss *loss, liger_stream stream) {
    if (loss->loss == NULL) return LIGER_OK;
    const struct cross_entropy_reduce_problem problem = {
        .rows = loss->count,
        .loss = counted_loss_rows(loss),
        .loss_out = loss->loss,
        .loss_dtype = LIGER_F32,
    };
    return context->kernels->cross_entropy_reduce(context, &problem, stream);
}
