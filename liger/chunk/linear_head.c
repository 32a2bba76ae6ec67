/* linear_head.c - the products of a linear head, for the loops that take its logits piece by piece. */
#include "liger/chunk/linear_head.h"

#include "liger/ops/column_sum/column_sum_problem.h"
#include "liger/ops/gemm/gemm_problem.h"

static struct gemm_problem product(const struct linear_head *head) {
    return (struct gemm_problem){
        .dtype = head->dtype,
        .c_dtype = head->dtype,
        .workspace = head->product_bytes ? head->workspace : NULL,
        .workspace_bytes = head->product_bytes,
    };
}

/* Element [row, col] of a matrix. */
static void *at(const void *data, liger_dtype dtype, int64_t row, int64_t stride, int64_t col) {
    return (char *)(uintptr_t)data + (row * stride + col) * (int64_t)liger_dtype_size(dtype);
}

liger_status linear_head_logits(liger_context *context, const struct linear_head *head, const struct linear_part *part,
                                liger_stream stream) {
    struct gemm_problem gemm = product(head);
    gemm.transpose_b = true;
    gemm.m = part->rows, gemm.n = part->cols, gemm.k = head->hidden;
    gemm.a = at(head->x, head->dtype, part->first_row, head->x_stride, 0), gemm.lda = head->x_stride;
    gemm.b = at(head->weight, head->dtype, part->first_col, head->hidden, 0), gemm.ldb = head->hidden;
    gemm.c = head->logits, gemm.ldc = head->logits_stride;
    if (head->logits_dtype != LIGER_DTYPE_NONE) gemm.c_dtype = head->logits_dtype;
    gemm.bias = head->bias ? at(head->bias, head->dtype, 0, 0, part->first_col) : NULL;
    return context->kernels->gemm(context, &gemm, stream);
}

liger_status linear_head_dx(liger_context *context, const struct linear_head *head, const struct linear_part *part,
                            struct linear_result dx, liger_stream stream) {
    struct gemm_problem gemm = product(head);
    gemm.accumulate = dx.accumulate;
    gemm.m = part->rows, gemm.n = head->hidden, gemm.k = part->cols;
    gemm.a = head->logits, gemm.lda = head->logits_stride;
    gemm.b = at(head->weight, head->dtype, part->first_col, head->hidden, 0), gemm.ldb = head->hidden;
    gemm.c = at(dx.data, dx.dtype, part->first_row, dx.stride, 0), gemm.ldc = dx.stride;
    gemm.c_dtype = dx.dtype;
    return context->kernels->gemm(context, &gemm, stream);
}

liger_status linear_head_dweight(liger_context *context, const struct linear_head *head, const struct linear_part *part,
                                 struct linear_result dweight, liger_stream stream) {
    struct gemm_problem gemm = product(head);
    gemm.transpose_a = true;
    gemm.accumulate = dweight.accumulate;
    gemm.m = part->cols, gemm.n = head->hidden, gemm.k = part->rows;
    gemm.a = head->logits, gemm.lda = head->logits_stride;
    gemm.b = at(head->x, head->dtype, part->first_row, head->x_stride, 0), gemm.ldb = head->x_stride;
    gemm.c = at(dweight.data, dweight.dtype, part->first_col, dweight.stride, 0), gemm.ldc = dweight.stride;
    gemm.c_dtype = dweight.dtype;
    return context->kernels->gemm(context, &gemm, stream);
}

liger_status linear_head_dbias(liger_context *context, const struct linear_head *head, const struct linear_part *part,
                               float *dbias, bool accumulate, liger_stream stream) {
    const struct column_sum_problem sum = {
        .dtype = head->dtype,
        .x = head->logits,
        .rows = part->rows,
        .cols = part->cols,
        .stride = head->logits_stride,
        .sum = dbias + part->first_col,
        .accumulate = accumulate,
        .workspace = (float *)((char *)head->workspace + head->product_bytes),
        .workspace_bytes = head->sum_bytes,
    };
    return context->kernels->column_sum(context, &sum, stream);
}

int64_t linear_budget(const liger_context *context) {
    const int64_t usual = context->device == LIGER_DEVICE_CPU ? 0 : 1 << 30;
    return context->loss_workspace_bytes ? context->loss_workspace_bytes : usual;
}

liger_status linear_zero(liger_context *context, void *data, liger_dtype dtype, int64_t count, liger_stream stream) {
    const struct gemm_problem nothing = {
        .dtype = dtype,
        .c_dtype = dtype,
        .m = 1,
        .n = count,
        .k = 0,
        .lda = 1,
        .ldb = 1,
        .ldc = count,
        .c = data,
    };
    return data ? context->kernels->gemm(context, &nothing, stream) : LIGER_OK;
}
