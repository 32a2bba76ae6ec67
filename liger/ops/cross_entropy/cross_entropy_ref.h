/* cross_entropy_ref.h - cross entropy in double precision, for tests: contiguous arrays, NULL = absent. */
#ifndef LIGER_OPS_CROSS_ENTROPY_REF_H
#define LIGER_OPS_CROSS_ENTROPY_REF_H

#include <stdbool.h>
#include <stdint.h>

struct cross_entropy_ref {
    int64_t rows, vocab;
    double ignore_index, label_smoothing, lse_square_scale, softcap;
    int reduction;        /* liger_reduction */
    bool token_scaling;   /* loss, z and gradient of a row times softmax[target] */
    bool upstream_by_row; /* upstream is [rows], else one value */
    const double *logits, *target, *weight, *upstream;
    double *loss, *z_loss, *accuracy; /* [rows] with reduction NONE, else one value */
    double *predicted;                /* [rows] */
    double *dlogits;                  /* [rows, vocab] */
};

void cross_entropy_reference(const struct cross_entropy_ref *p);
/* The same loops with f32 variables: one accumulator, a rounding after each operation. */
void cross_entropy_naive(const struct cross_entropy_ref *p);

#endif
