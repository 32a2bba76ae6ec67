/* reduction.h - what becomes of the losses of rows or elements. */
#ifndef LIGER_CORE_REDUCTION_H
#define LIGER_CORE_REDUCTION_H

/* What the means are over a loss says: rows, or elements. */
typedef enum liger_reduction {
    LIGER_REDUCTION_NONE = 0,
    LIGER_REDUCTION_MEAN = 1,
    LIGER_REDUCTION_SUM = 2,
    LIGER_REDUCTION_BATCHMEAN = 3 /* over rows, of losses of elements */
} liger_reduction;

#endif
