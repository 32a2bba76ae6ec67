/* embedding_ref.c - what embedding is: double precision, plain loops. */
#include "liger/ops/embedding/embedding_ref.h"

#ifndef REAL
#define REAL double
#endif

void embedding_forward_ref(const struct embedding_ref *p, const double *weight, double *y) {
    for (int64_t i = 0; i < p->tokens; i++)
        for (int64_t c = 0; c < p->cols; c++) {
            const int64_t row = (int64_t)p->indices[i];
            y[i * p->cols + c] = row == p->padding_index ? 0 : weight[row * p->cols + c];
        }
}

void embedding_backward_ref(const struct embedding_ref *p, const double *dy, double *dweight) {
    for (int64_t i = 0; i < p->vocab * p->cols; i++) dweight[i] = 0;
    for (int64_t i = 0; i < p->tokens; i++) {
        const int64_t row = (int64_t)p->indices[i];
        double *const to = dweight + row * p->cols;
        for (int64_t c = 0; c < p->cols && row != p->padding_index; c++)
            to[c] = (REAL)to[c] + (REAL)dy[i * p->cols + c];
    }
}
