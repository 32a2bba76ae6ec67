/* row_norm.cuh - the kernels of norms over rows: RMSNorm, LayerNorm and their like. Memory-bound: what counts is bytes in
 * flight, and few instructions beside them.
 *
 * forward    a group of threads holds a whole row in registers: one read, one write (row_norm_forward.cuh). Rows too wide
 *            for that, or not aligned to 16 bytes, take the loop kernels, which read the row again from L1 or L2.
 * backward   a persistent grid: a block walks rows, the next ones on their way to shared memory while the current one is
 *            reduced, and keeps its columns of the parameters' gradients in f32 registers (row_norm_backward.cuh). Each
 *            block writes one partial row of each; a second kernel adds the partials in order, so that there are no atomics
 *            and the bits never change.
 *
 * A norm brings a formula for each direction; T is the type of its rows, N the values of a pack.
 *
 *   Forward F: type, problem (rows, cols, x, y)
 *     ADDS                     p.residual is added on the way in, the sum goes to p.sum; loop kernels look whether it is there
 *     TWO_PACKS, FOUR_PACKS    rows of at most so many packs have two to a thread, or four; wider ones eight
 *     FOUR_PACKS_BLOCKS, EIGHT_PACKS_BLOCKS    so many blocks of 256 threads on a multiprocessor: with 6 a thread has 40
 *                              registers, with 5 48, with 4 64, with 3 80, with 2 128
 *     WIDE                     the parameters are of a wider type than the rows
 *     shares, measure(p, row)  the statistics of a row: from row.sum(f), Σ by s = f(s, x), with shares = float, from
 *                              row.sums(to, f, ...) with a float for each, or from row.centred() with shares = moments_share
 *     keep(p, r, statistics)
 *     has_parameters(p), has_all_parameters(p), parameters<N>: load(p, r, c)
 *     apply<ALL>(p, statistics, parameters, x)               x becomes y; ALL: all parameters are there
 *
 *   Backward B: type, problem (rows, cols, dy, x, dx, partials, workspace)
 *     ADDS                     p.dsum is added to dx; as above
 *     facts, facts_of(p, r)    what forward has kept of a row
 *     scale(p, r, c, w)        the weights of a pack; the same for every row but where rows come in groups
 *     terms(facts, dy, w, x, g)    g = dy·w; x becomes what the sums and dx need of it
 *     SUMS, PARTIALS, gather(p, facts, dy, g, x, sums, partial)   adds to sums over the row and over rows
 *     pull, pull_of(facts, means), dx_of(facts, pull, g, x)  what a row's sums, divided by cols, have to say to its dx
 *     gathers(p, i)            is the i-th partial row asked for?
 *     TOTALS                   how many elements are sums over everything; if any, the workspace is theirs behind the partial
 *                              rows: add_totals(facts, sums, totals) adds what a row's sums have to say to them, and
 *                              totals_of(p) says where they go
 *
 *   Where rows come in groups with parameters of their own (row_norm_grouped.cuh), problem has plan too, B adds up two sums
 *   over rows, ADDS nothing, has no gathers, and
 *     finish_group(p, group, c, sums, all, first)   a group's sums are complete: writes its gradients, and adds its part in
 *                              the sums over all rows to `all`, where `first` says that nothing is there yet
 */
#ifndef LIGER_CUDA_ROW_NORM_CUH
#define LIGER_CUDA_ROW_NORM_CUH

#include "liger/cuda/row_norm_backward.cuh"
#include "liger/cuda/row_norm_forward.cuh"
#include "liger/cuda/row_norm_grouped.cuh"

#endif
