/* dtype.h - the size of an element, for doors, which ask it of every argument more than once. Internal. */
#ifndef LIGER_CORE_DTYPE_H
#define LIGER_CORE_DTYPE_H

#include "liger/core/tensor.h"

/* As liger_dtype_size. */
static inline size_t dtype_size(int dtype) {
    switch ((liger_dtype)dtype) {
        case LIGER_F32:
        case LIGER_I32: return 4;
        case LIGER_F16:
        case LIGER_BF16: return 2;
        case LIGER_I64: return 8;
        case LIGER_U8:
        case LIGER_I8:
        case LIGER_BOOL: return 1;
        case LIGER_DTYPE_NONE: break;
    }
    return 0;
}

#endif
