/* embedding_ref.h - embedding in double precision, and its sums in f32, for its cases. Test code. */
#ifndef LIGER_OPS_EMBEDDING_REF_H
#define LIGER_OPS_EMBEDDING_REF_H

#include <stdint.h>

struct embedding_ref {
    int64_t tokens, vocab, cols, padding_index;
    const double *indices;
};

void embedding_forward_ref(const struct embedding_ref *p, const double *weight, double *y);
void embedding_backward_ref(const struct embedding_ref *p, const double *dy, double *dweight);
void embedding_forward_naive(const struct embedding_ref *p, const double *weight, double *y);
void embedding_backward_naive(const struct embedding_ref *p, const double *dy, double *dweight);

#endif
