/* embedding.h - rows of a table by their numbers, and the gradient of the table. */
#ifndef LIGER_OPS_EMBEDDING_H
#define LIGER_OPS_EMBEDDING_H

#include "liger/core/context.h"
#include "liger/core/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

/* liger_embedding_forward     y_i = weight[indices_i], or 0 where indices_i is padding_index
 *
 *   weight         in   [vocab, cols]    T           last dimension contiguous
 *   indices        in   [tokens]         i32 or i64  contiguous
 *   y              out  [tokens, cols]   T           last dimension contiguous
 *   padding_index  a row of the table whose tokens are zeros and have no gradient; negative: none
 *
 *   T is f32, f16 or bf16. Nothing is rounded.
 *   Edges: no tokens, no columns: succeeds and does nothing. An index outside [0, vocab) is LIGER_ERR_TARGET on the CPU,
 *   before anything is written; on CUDA, where nobody looks before the kernel, its row of y is NaN.
 *   Errors: ARGUMENT, SHAPE (2^32 - 1 tokens or rows at most), DTYPE, LAYOUT, TARGET.  Workspace: none.  Graph-capturable. */
typedef struct liger_embedding_forward_args {
    size_t size;
    liger_tensor weight;
    liger_tensor indices;
    liger_tensor y;
    int64_t padding_index;
} liger_embedding_forward_args;

#define LIGER_EMBEDDING_FORWARD_ARGS_INIT                                                                              \
    { .size = sizeof(liger_embedding_forward_args), .padding_index = -1 }

LIGER_API liger_status liger_embedding_forward(liger_context *context, const liger_embedding_forward_args *args,
                                               liger_stream stream);

/* liger_embedding_backward    dweight_v = Σ dy_i over the tokens i with indices_i = v
 *
 *   dy             in   [tokens, cols]   T
 *   indices        in   [tokens]         i32 or i64  as in forward
 *   dweight        out  [vocab, cols]    T           every row is written: those that no token has are zeros
 *   padding_index  as in forward: its row of dweight is zeros
 *
 *   Sums are f32, in the order of the tokens and cut at places that depend on nothing but the indices, and rounded once.
 *   Edges: no tokens: dweight is zeros. An index outside [0, vocab) is LIGER_ERR_TARGET on the CPU; on CUDA its dy reaches
 *   no row.
 *   Errors: ARGUMENT, SHAPE (as forward), DTYPE, LAYOUT, TARGET, WORKSPACE.
 *   Workspace: sorted tokens and partial sums of tokens that are frequent, see the query; none of it grows with vocab.
 *   Same inputs, same bits, any thread count.  Graph-capturable.  Since 0.9. */
typedef struct liger_embedding_backward_args {
    size_t size;
    liger_tensor dy;
    liger_tensor indices;
    liger_tensor dweight;
    int64_t padding_index;
    void *workspace; /* 256-byte aligned, in the device's memory */
    size_t workspace_bytes;
} liger_embedding_backward_args;

#define LIGER_EMBEDDING_BACKWARD_ARGS_INIT                                                                             \
    { .size = sizeof(liger_embedding_backward_args), .padding_index = -1 }

LIGER_API liger_status liger_embedding_backward(liger_context *context, const liger_embedding_backward_args *args,
                                                liger_stream stream);
LIGER_API liger_status liger_embedding_backward_workspace(liger_context *context,
                                                          const liger_embedding_backward_args *args, size_t *bytes);

#ifdef __cplusplus
}
#endif
#endif
