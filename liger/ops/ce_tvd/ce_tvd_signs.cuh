/* ce_tvd_signs.cuh - what forward leaves for backward, of which row by row `has_signs` tells.
 *
 * Of the teacher backward needs one bit for each element: is q above p? Forward leaves the bits in the memory of the gradient: a
 * byte for a vector, and those of a tile of neighbouring vectors where the first of these will stand. A tile belongs to one warp
 * of backward, which reads its bytes before it writes: TILE_VECTORS of them a lane, which are its vectors of every WARP. A row
 * that may be the teacher's own, of which no element has a sign, is left out. */
#ifndef LIGER_OPS_CE_TVD_SIGNS_CUH
#define LIGER_OPS_CE_TVD_SIGNS_CUH

#include "liger/cuda/pack.cuh"
#include "liger/cuda/reduce.cuh"

namespace ce_tvd {

enum { TILE_VECTORS = 8, TILE = WARP * TILE_VECTORS };
constexpr int64_t LEAST_SIGNED = 4 * TILE; /* vectors of a row */

/* The byte of a vector; its k-th value from the last has the k-th bit. */
template <typename T>
__device__ __forceinline__ uint8_t *signs_at(T *row, int64_t vector) {
    return (uint8_t *)row + vector / TILE * (TILE * PACK_BYTES) + vector % WARP * TILE_VECTORS +
           vector / WARP % TILE_VECTORS;
}

static inline bool has_room_for_signs(liger_rows dstudent, int64_t cols, size_t element) {
    return dstudent.data != NULL && rows_are_packable(dstudent, element) &&
           cols >= LEAST_SIGNED * (int64_t)(PACK_BYTES / element);
}
} // namespace ce_tvd

#endif
