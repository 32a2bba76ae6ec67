/* poly_norm_problem.h - what a backend sees of PolyNorm: flat, checked, no views. */
#ifndef LIGER_OPS_POLY_NORM_PROBLEM_H
#define LIGER_OPS_POLY_NORM_PROBLEM_H

#include "liger/core/norm_partials.h"
#include "liger/core/rows.h"

struct poly_norm_forward_problem {
    liger_dtype dtype, weight_dtype; /* weight_dtype: of weight and bias */
    int64_t rows, cols;              /* both 1 or more */
    liger_rows x, y;
    const void *weight, *bias; /* [3], [1] */
    float *rstd;               /* [rows, 3] or NULL */
    float epsilon;
};

struct poly_norm_backward_problem {
    liger_dtype dtype, weight_dtype; /* weight_dtype: of weight, dweight and dbias */
    int64_t rows, cols;              /* rows may be 0: dweight and dbias are zero then */
    liger_rows dy, x, dx;            /* dx.data may be NULL */
    const void *weight;
    const float *rstd;
    void *dweight, *dbias; /* each or NULL */
    int64_t partials;      /* norm_partials() */
    float *workspace;      /* of the four sums NORM_TOTALS_OF_A_PARTIAL for each partial; NULL without both */
};

#endif
