/* rope_problem.h - what a backend sees of RoPE: flat, checked, no views.
 *
 * Forward and backward are one kernel: the backward map is the rotation by the opposite angle. */
#ifndef LIGER_OPS_ROPE_PROBLEM_H
#define LIGER_OPS_ROPE_PROBLEM_H

#include <stdbool.h>
#include <stdint.h>

#include "liger/core/tensor.h"

/* A [batch, heads, seq, dim] tensor with contiguous dim; strides in elements. */
struct rope_heads {
    void *data;
    int64_t batch_stride, head_stride, seq_stride;
};

struct rope_problem {
    liger_dtype dtype, table_dtype;
    liger_dtype operand_dtype;     /* F32: no rounding after the load */
    bool inverse;                  /* rotate by -angle */
    int64_t batch, seq, dim, half; /* 0 <= 2·half <= dim */
    int64_t q_heads, k_heads;      /* k_heads may be 0; then k and k_out are not to be looked at */
    struct rope_heads q, k, q_out, k_out;
    const void *cos, *sin;                                                      /* [planes, batch, seq, half] */
    int64_t cos_batch_stride, cos_seq_stride, sin_batch_stride, sin_seq_stride; /* batch strides may be 0 */
    /* Columns [first[n], first[n + 1]) have their angles in plane n of cos and sin: of one, or of three. */
    int planes;
    int64_t first[4]; /* 0, half, half, half where there is one */
    int64_t cos_plane_stride, sin_plane_stride;
};

struct rope_forward_problem {
    struct rope_problem rope; /* inverse == false */
};

struct rope_backward_problem {
    struct rope_problem rope; /* inverse == true */
};

#endif
