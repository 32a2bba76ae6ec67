/* geglu_ref.h - what GeGLU is, in double. Tests only. */
#ifndef LIGER_OPS_GEGLU_REF_H
#define LIGER_OPS_GEGLU_REF_H

#include <stdint.h>

#include "liger/core/tensor.h"

/* LIGER_DTYPE_NONE as t or activation: not rounded there. */
void geglu_forward_ref(int64_t count, liger_dtype activation, const double *gate, const double *up, double *y);
/* dgate or dup may be NULL. */
void geglu_backward_ref(int64_t count, liger_dtype t, const double *dy, const double *gate, const double *up,
                        double *dgate, double *dup);

#endif
