/* swiglu_ref.h - the double-precision reference of SwiGLU, for its cases. Test code. */
#ifndef LIGER_OPS_SWIGLU_REF_H
#define LIGER_OPS_SWIGLU_REF_H

#include <stdint.h>

#include "liger/core/tensor.h"

/* LIGER_DTYPE_NONE as t or activation: not rounded there. */
void swiglu_forward_ref(int64_t count, liger_dtype t, liger_dtype activation, double gate_multiplier,
                        double down_multiplier, const double *gate, const double *up, double *y);
/* dgate or dup may be NULL. */
void swiglu_backward_ref(int64_t count, double gate_multiplier, double down_multiplier, const double *dy,
                         const double *gate, const double *up, double *dgate, double *dup);

#endif
