/* vocab_rows_narrow.cuh - the kernel for rows that the registers of a few warps, or of a block, hold, and its launch.
 *
 * One read, one write, and nothing in between but one exchange. A warp owns neighbouring vectors of the row, VECTORS to a
 * lane: a row has as many warps as it needs, one as a rule of attention's rows, and a block is one row, or several rows of
 * a warp each. Blocks are small and not persistent: many are on a multiprocessor, some loading while others reduce or
 * write, and there is neither a ring to fill nor a barrier object to make. What the first half has made of a row, its
 * exponentials, stays in registers for the second. The geometry belongs to the width and the type of the row alone.
 *
 * A formula that is WIDE has rows of up to four times as many vectors. Two blocks of the widest, on a multiprocessor that holds
 * so many threads, are still better than one persistent block with a ring (softmax of 8192 x 32768 bf16 on an H200: .262 ms,
 * not .292).
 *
 * The formula F:
 *   type, problem                      the type of the rows; `rows` of them
 *   VECTORS, INPUTS                    of 16 bytes: a lane's share of a row, and how many rows are read at once
 *   NARROW_THREADS                     a multiprocessor holds so many, which share its registers
 *   WIDE                               see above; an operator's formula for narrow rows names it as its wide_rows
 *   beyond(p, k)                       see one_exchange
 *   cols(p), input(p, k, r)            the k-th input's row r; all rows are aligned to 16 bytes
 *   slot, empty(), warp_merge          what is exchanged
 *   second_slot                        see one_exchange
 *   kept<V>                            what a thread keeps besides its vectors, or instead of them
 *   sum_up(x, kept)                    a thread's slot from its parts x[INPUTS] of the rows. An output may overwrite an input
 *                                      afterwards: every thread has its part in registers by then
 *   write_out(p, at, r, x, kept, all)  the second half: all is the slot of the whole row. With further exchanges:
 *                                      (..., part, again) */
#ifndef LIGER_CUDA_VOCAB_ROWS_NARROW_CUH
#define LIGER_CUDA_VOCAB_ROWS_NARROW_CUH

#include "liger/cuda/launch.cuh"
#include "liger/cuda/vocab_rows.cuh"

namespace vocab_rows {

/* Vectors of a row, at most, or where the formula is WIDE; rows of one warp in a block. */
enum { NARROW_VECTORS = 1024, WIDE_VECTORS = 4096, NARROW_WARP_ROWS = 4 };

/* Threads of a block with V vectors each, at most. */
template <typename F, int V>
constexpr int narrow_block = V == 1 ? NARROW_WARP_ROWS *WARP : (F::WIDE ? WIDE_VECTORS : NARROW_VECTORS) / V;
template <typename F, int V>
constexpr int narrow_blocks = at_most_blocks(F::NARROW_THREADS / narrow_block<F, V>, narrow_block<F, V>);

template <typename F, int V>
__global__ void __launch_bounds__(narrow_block<F, V>, narrow_blocks<F, V>)
    narrow_kernel(const __grid_constant__ typename F::problem p) {
    let_next_kernel_start();
    wait_for_previous_kernel();
    using T = typename F::type;
    constexpr int PLACES = 2 * narrow_block<F, V> / WARP;
    __shared__ typename F::slot slots[PLACES];
    const int64_t i = (int64_t)blockIdx.x * blockDim.y + threadIdx.y;
    if (i >= p.rows) return; /* of several rows in a block none meets a barrier */
    const int64_t r = from_the_end(p.rows, i);
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const place<WARP> at = {warp * WARP * V + lane, (int)(F::cols(p) / pack_size<T>)};
    row_part<T, V> x[F::INPUTS];
#pragma unroll
    for (int k = 0; k < F::INPUTS; k++)
        x[k].load(at, (const uint4 *)F::input(p, k, r) + at.first, F::template beyond<T>(p, k));
    const int warps = (int)blockDim.x / WARP;
    block_exchange<typename F::slot> exchanged = {slots, warps, 0};
    typename F::template kept<V> kept;
    const typename F::slot mine = F::sum_up(x, kept);
    if constexpr (has_more_exchanges<F>) {
        __shared__ typename F::second_slot second_slots[PLACES];
        block_exchange<typename F::second_slot> again = {second_slots, warps, 0};
        F::write_out(p, at, r, x, kept, exchanged.part(mine, F::empty()), again);
    } else {
        F::write_out(p, at, r, x, kept, exchanged.all(mine, F::empty()));
    }
}

template <typename F, int V>
void launch_narrow_of(const liger_context *context, const typename F::problem &p, int vectors, cudaStream_t stream) {
    const int warps = (vectors + V * WARP - 1) / (V * WARP);
    const dim3 block(warps * WARP, warps == 1 ? NARROW_WARP_ROWS : 1);
    launch_next(context, narrow_kernel<F, V>, grid_size(p.rows, block.y), block, stream, p);
}

/* False: these rows are not for this kernel, and nothing was launched. `packable`: all rows are aligned to 16 bytes. */
template <typename F>
bool launch_narrow(const liger_context *context, const typename F::problem &p, bool packable, cudaStream_t stream) {
    const int64_t vectors = F::cols(p) / pack_size<typename F::type>;
    if (!packable || vectors > (F::WIDE ? WIDE_VECTORS : NARROW_VECTORS) || p.rows > INT32_MAX) return false;
    if constexpr (!F::WIDE)
        if (vectors <= WARP) {
            launch_narrow_of<F, 1>(context, p, (int)vectors, stream);
            return true;
        }
    launch_narrow_of<F, F::VECTORS>(context, p, (int)vectors, stream);
    return true;
}

} // namespace vocab_rows

#endif
