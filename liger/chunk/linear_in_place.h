/* linear_in_place.h - logits of all rows in the memory of dweight, which is written over them. Internal; on a CPU alone.
 *
 *   logits = x·Wᵀ, gradient, dx = dlogits·W: in the first rows · vocab elements of dweight, which has hidden · vocab
 *   then, slice of the vocabulary by slice from the last to the first:  dweight[slice] = dlogits[:, slice]ᵀ·x
 *
 * So W is read twice and dweight written once, where every chunk of rows reads W twice and reads and writes all of dweight; and
 * logits take no memory. For it the gradients of a slice must lie together, below where its dweight goes: what is stored
 * row by row is put in order, in its own memory, and each slice is copied out before it is written over. */
#ifndef LIGER_CHUNK_LINEAR_IN_PLACE_H
#define LIGER_CHUNK_LINEAR_IN_PLACE_H

#include "liger/chunk/linear_head.h"

/* Into how many slices of the same size the vocabulary is cut; 0: this is not for such a head. */
int64_t linear_in_place_slices(const liger_context *context, liger_dtype dtype, int64_t rows, int64_t hidden,
                               int64_t vocab);

/* Where nobody has named a budget, and logits are too many for a cache: 1024 x 1024 x 32000 in f32 took 5 to 15 % less than in
 * chunks of 27 MB; heads in bf16, where all rows are one chunk, from as long to a tenth longer, in half of the memory. */
bool linear_in_place_pays(const liger_context *context, liger_dtype dtype, int64_t rows, int64_t vocab);

/* Bytes of scratch, aligned to 256: a slice. */
size_t linear_in_place_workspace(liger_dtype dtype, int64_t rows, int64_t vocab, int64_t slices);

/* head->logits, the gradient of the logits [rows, vocab], is where dweight begins. */
liger_status linear_in_place_dweight(liger_context *context, const struct linear_head *head, int64_t rows,
                                     struct linear_result dweight, int64_t slices, void *scratch, liger_stream stream);

#endif
