/* int2_hopper.cuh - the int8 x int2 product by the warpgroup products of capability 9.0, with the weights in registers.
 *
 * c is made transposed, as weights · a: the left factor of a warpgroup product may lie in registers, where weights are
 * unpacked a quarter of k at a time, and nothing but their two bits ever moves. A block makes 128 columns of c for 256 rows
 * of a: two warpgroups have 64 columns each, a thread of a third fetches. 128 of k of the 256 rows are a stage of 32 KB, of
 * which six are on their way; two blocks of a cluster share the rows, each fetches half of them for both. At 1024 cycles of
 * products a stage that is 16 bytes a cycle and multiprocessor from the L2, and 95 of 128 of shared memory.
 * 4096 x 4096 x 14336: 481 GOP, .24 ms at the full rate, and 235 MB of stores in 14 rounds of tiles, 2 us each.
 *
 * What lies behind an edge of a arrives as zeros, behind an edge of the weights they are 0. Sums wrap around. */
#ifndef LIGER_OPS_INT2_HOPPER_CUH
#define LIGER_OPS_INT2_HOPPER_CUH

#include <cuda.h>

#include "liger/cuda/cluster.cuh"
#include "liger/cuda/shared_memory.cuh"
#include "liger/ops/int2_matmul/int2_matmul_problem.h"

/* Each byte of a word has four codes, of the four quarters of k: weights + 1. */
__device__ __forceinline__ uint32_t codes_of(uint32_t word, int i) { return word >> 2 * i & 0x03030303u; }

/* Each byte less 1, without a borrow from the next. */
__device__ __forceinline__ uint32_t weights_of(uint32_t word, int i) {
    return ((codes_of(word, i) | 0x80808080u) - 0x01010101u) ^ 0x80808080u;
}

namespace hopper {

enum { COLS = 128, ROWS = 256, DEPTH = 128, STAGES = 6, PAIR = 2 /* blocks of a cluster */, QUARTERS = 4 };
enum { GROUP_THREADS = 128, GROUPS = 2, STEP_DEPTH = 32, STEPS = DEPTH / STEP_DEPTH };
enum { FETCHER = GROUPS * GROUP_THREADS, THREADS = FETCHER + GROUP_THREADS, SUMS = ROWS / 2, WORDS = 4 * STEPS };
enum { BOX_ROWS = ROWS / PAIR, BOX_BYTES = BOX_ROWS * DEPTH, STAGE_BYTES = PAIR * BOX_BYTES, ALIGNMENT = 1024 };
enum { SHARED = STAGES * STAGE_BYTES + ALIGNMENT };

/* Weights as a warp takes them: 16 columns and DEPTH packed rows are a fragment, in which step s has four words of each lane:
 * packed rows 4 · (lane % 4) and the next three of columns lane / 4 and lane / 4 + 8, then those 16 rows below. */
enum { FRAGMENT_COLS = 16, FRAGMENT_PACKS = STEPS * 32 };
__host__ __device__ inline int64_t fragments_along(int64_t packed) { return (packed + DEPTH - 1) / DEPTH; }
__host__ __device__ inline int64_t fragment_at(int64_t packed, int64_t along, int64_t across) {
    return (across * fragments_along(packed) + along) * FRAGMENT_PACKS;
}
inline int64_t fragments_bytes(const int2_matmul_problem &p) {
    return fragment_at(p.packed, 0, (p.n + FRAGMENT_COLS - 1) / FRAGMENT_COLS) * 16;
}
enum { NO_WEIGHT = 0x55555555 };

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

/* ---- copies ---------------------------------------------------------------------------------------------------------- */

/* A box of 128 rows of 128 bytes, swizzled in 128 bytes; to the same place of all blocks in `blocks`. */
__device__ __forceinline__ void fetch_box(void *to, const CUtensorMap &map, int64_t byte, int64_t row,
                                          shared_barrier *arrived, uint16_t blocks) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
                 "[%0], [%1, {%3, %4}], [%2], %5;" ::"r"(shared_address(to)),
                 "l"(&map), "r"(shared_address(arrived)), "r"((int)byte), "r"((int)row), "h"(blocks)
                 : "memory");
}

/* Tells the block `rank` of the cluster. */
__device__ __forceinline__ void arrive_at(shared_barrier *barrier, int rank) {
    uint32_t there;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(shared_address(barrier)), "r"(rank));
    asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(there) : "memory");
}

/* ---- products -------------------------------------------------------------------------------------------------------- */

/* Rows of 128 bytes, eight of them a swizzled unit of 1024. A step along k is 32 bytes further. */
__device__ __forceinline__ uint64_t matrix_at(const void *shared) {
    const uint64_t swizzle_128 = 1ull << 62, unit = (uint64_t)(8 * DEPTH / 16) << 32, unused = 1ull << 16;
    return swizzle_128 | unit | unused | (shared_address(shared) & 0x3ffff) >> 4;
}
constexpr uint64_t MATRIX_STEP = STEP_DEPTH / 16;

/* The compiler must not move what is done with registers over what follows, or precedes. */
template <typename T, int N>
__device__ __forceinline__ void hold(T (&x)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+r"(x[i])::"memory");
}
__device__ __forceinline__ void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int PENDING>
__device__ __forceinline__ void wait_for_products() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

#define LIGER_FOUR(i) "+r"(sum[i]), "+r"(sum[i + 1]), "+r"(sum[i + 2]), "+r"(sum[i + 3])
#define LIGER_SIXTEEN(i) LIGER_FOUR(i), LIGER_FOUR(i + 4), LIGER_FOUR(i + 8), LIGER_FOUR(i + 12)

/* 64 columns of weights, 32 of k, times 256 rows of a. */
__device__ __forceinline__ void add_product(int32_t (&sum)[SUMS], const uint32_t *weights, uint64_t rows, int add) {
    asm volatile("{\n\t.reg .pred add;\n\tsetp.ne.b32 add, %133, 0;\n\t"
                 "wgmma.mma_async.sync.aligned.m64n256k32.s32.s8.s8 {"
                 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
                 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
                 "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
                 "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
                 "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
                 "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
                 "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
                 "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127}, "
                 "{%128, %129, %130, %131}, %132, add;\n\t}"
                 : LIGER_SIXTEEN(0), LIGER_SIXTEEN(16), LIGER_SIXTEEN(32), LIGER_SIXTEEN(48), LIGER_SIXTEEN(64),
                   LIGER_SIXTEEN(80), LIGER_SIXTEEN(96), LIGER_SIXTEEN(112)
                 : "r"(weights[0]), "r"(weights[1]), "r"(weights[2]), "r"(weights[3]), "l"(rows), "r"(add));
}

#undef LIGER_SIXTEEN
#undef LIGER_FOUR

/* ---- the kernel ------------------------------------------------------------------------------------------------------ */

/* Whose turn a stage is: they are taken in turn, and every time round the barriers' parity changes. */
struct turn {
    int stage, parity;
    __device__ __forceinline__ void next() {
        if (++stage == STAGES) stage = 0, parity ^= 1;
    }
};

struct ring {
    char *stages;
    shared_barrier *full, *empty; /* of each stage */
    __device__ __forceinline__ char *at(int stage) const { return stages + stage * STAGE_BYTES; }
};

/* A stage is fetched when both blocks have done with it: half of what comes goes to the other one. Of every DEPTH packed rows
 * one quarter of k after the other. */
__device__ __forceinline__ void fetch_tile(const ring &r, const CUtensorMap &a, int64_t packed, int64_t row, int rank,
                                           turn &t) {
    for (int64_t at = 0; at < packed; at += DEPTH)
        for (int i = 0; i < QUARTERS; i++, t.next()) {
            shared_barrier_wait(r.empty + t.stage, t.parity ^ 1);
            shared_barrier_expect(r.full + t.stage, STAGE_BYTES);
            fetch_box(r.at(t.stage) + rank * BOX_BYTES, a, i * packed + at, row + rank * BOX_ROWS, r.full + t.stage,
                      (1 << PAIR) - 1);
        }
}

/* One thread for each block tells that this group is done with a stage. */
__device__ __forceinline__ void release(const ring &r, int stage) {
    const int rank = threadIdx.x % GROUP_THREADS;
    if (rank < PAIR) arrive_at(r.empty + stage, rank);
}

/* `from`: the lane's part of the fragments of its warp's columns. */
__device__ __forceinline__ void multiply_tile(const ring &r, const uint4 *from, int64_t packed, turn &t,
                                              int32_t (&sum)[SUMS]) {
    int before = -1; /* the stage of the products that may still be running */
    __syncwarp();    /* after stores that not every lane had */
    uint4 words[STEPS], next[STEPS];
    uint32_t weights[2][WORDS] = {}; /* of this product, and of the one before, which may still be running */
#pragma unroll
    for (int s = 0; s < STEPS; s++) next[s] = from[s * 32];
    for (int64_t at = 0; at < packed; at += DEPTH) {
        const bool more = at + DEPTH < packed;
        from += FRAGMENT_PACKS;
#pragma unroll
        for (int s = 0; s < STEPS; s++) {
            words[s] = next[s];
            if (more) next[s] = from[s * 32];
        }
#pragma unroll
        for (int i = 0; i < QUARTERS; i++, t.next()) {
#pragma unroll
            for (int s = 0; s < STEPS; s++) {
                weights[i % 2][4 * s] = weights_of(words[s].x, i);
                weights[i % 2][4 * s + 1] = weights_of(words[s].y, i);
                weights[i % 2][4 * s + 2] = weights_of(words[s].z, i);
                weights[i % 2][4 * s + 3] = weights_of(words[s].w, i);
            }
            shared_barrier_wait(r.full + t.stage, t.parity);
            const uint64_t rows = matrix_at(r.at(t.stage));
            hold(sum);
            hold(weights[i % 2]);
            begin_products();
#pragma unroll
            for (int s = 0; s < STEPS; s++)
                add_product(sum, weights[i % 2] + 4 * s, rows + s * MATRIX_STEP, at > 0 || i > 0 || s > 0);
            commit_products();
            wait_for_products<1>();
            hold(sum);
            hold(weights[(i + 1) % 2]);
            if (before >= 0) release(r, before);
            before = t.stage;
        }
    }
    wait_for_products<0>();
    hold(sum);
    release(r, before);
}

/* A lane has two neighbouring rows of column lane / 4, and of the column eight further, in every eight rows. */
__device__ __forceinline__ void store_tile(const int2_matmul_problem &p, int64_t row, int64_t col,
                                           const int32_t (&sum)[SUMS]) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int64_t c = col + warp * 16 + lane / 4;
#pragma unroll
    for (int j = 0; j < ROWS / 8; j++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const int64_t r = row + j * 8 + lane % 4 * 2 + e % 2;
            if (r < p.m && c + e / 2 * 8 < p.n) p.c[r * p.ldc + c + e / 2 * 8] = sum[4 * j + e];
        }
}

#endif

/* A cluster makes 256 columns: tiles are counted along these. */
__global__ void __launch_bounds__(THREADS, 1)
    int2_kernel(const __grid_constant__ CUtensorMap a, const __grid_constant__ int2_matmul_problem p, int64_t across,
                int64_t tiles) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    extern __shared__ char shared[];
    __shared__ shared_barrier full[STAGES], empty[STAGES];
    const uint32_t base = shared_address(shared), aligned = (base + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    const ring r = {shared + (aligned - base), full, empty};
    const int rank = cluster_rank();
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < STAGES; stage++) {
            shared_barrier_init(full + stage, 1);
            shared_barrier_init(empty + stage, GROUPS * PAIR);
        }
    }
    cluster_barrier(PAIR);
    const int64_t first = blockIdx.x / PAIR, step = gridDim.x / PAIR;
    turn t = {0, 0};
    if (threadIdx.x >= FETCHER) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        for (int64_t tile = first; tile < tiles && threadIdx.x == FETCHER; tile += step)
            fetch_tile(r, a, p.packed, tile / across * ROWS, rank, t);
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
        const int64_t last = (p.n - 1) / FRAGMENT_COLS;
        for (int64_t tile = first; tile < tiles; tile += step) {
            const int64_t col = (tile % across * PAIR + rank) * COLS, mine = col / FRAGMENT_COLS + threadIdx.x / 32;
            const uint4 *const from = (const uint4 *)p.workspace + fragment_at(p.packed, 0, mine < last ? mine : last);
            int32_t sum[SUMS] = {};
            multiply_tile(r, from + threadIdx.x % 32, p.packed, t, sum);
            store_tile(p, tile / across * ROWS, col, sum);
        }
    }
    __syncwarp();
    cluster_barrier(PAIR); /* the other block may still send here */
#endif
}

/* ---- the launch ------------------------------------------------------------------------------------------------------ */

using encode_map = decltype(&cuTensorMapEncodeTiled);

/* Of the driver, which is there where a context is. */
inline encode_map find_encoder() {
    static void *known; /* the same whoever finds it */
    void *found = __atomic_load_n(&known, __ATOMIC_RELAXED);
    if (found) return (encode_map)found;
    cudaDriverEntryPointQueryResult result;
#if CUDART_VERSION >= 12050
    cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result);
#else
    cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &found, cudaEnableDefault, &result);
#endif
    __atomic_store_n(&known, found, __ATOMIC_RELAXED);
    return (encode_map)found;
}

inline bool map_rows(encode_map encode, const int2_matmul_problem &p, CUtensorMap *map) {
    const cuuint64_t size[2] = {(cuuint64_t)(QUARTERS * p.packed), (cuuint64_t)p.m}, stride[1] = {(cuuint64_t)p.lda};
    const cuuint32_t box[2] = {DEPTH, BOX_ROWS}, every[2] = {1, 1};
    return encode(map, CU_TENSOR_MAP_DATA_TYPE_UINT8, 2, (void *)p.a, size, stride, box, every,
                  CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                  CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

/* Compiled for the very device, rows and quarters of a at 16 bytes, which boxes begin at, tiles for every multiprocessor, and
 * room for the fragments. */
inline bool suits(const liger_context *context, const int2_matmul_problem &p) {
#if defined(LIGER_HAS_90A)
    const int64_t tiles = (p.m + ROWS - 1) / ROWS * ((p.n + COLS - 1) / COLS);
    return context->cuda->major == 9 && context->cuda->minor == 0 && ((uintptr_t)p.a | (uintptr_t)p.lda) % 16 == 0 &&
           p.packed > 0 && p.packed % 16 == 0 && QUARTERS * p.packed < INT32_MAX - DEPTH && p.m < INT32_MAX - ROWS &&
           fragments_bytes(p) <= p.n * int2_pitch(p.packed) && tiles >= context->cuda->multiprocessors;
#else
    (void)context, (void)p;
    return false;
#endif
}

/* After the fragments stand in the workspace. *done: false if nothing was launched. */
inline cudaError_t multiply(const liger_context *context, const int2_matmul_problem &p, cudaStream_t stream,
                            bool *done) {
    static_assert(SHARED <= dynamic_shared(227 << 10), "a block's shared memory at capability 9");
    CUtensorMap a;
    const encode_map encode = find_encoder();
    *done = encode && map_rows(encode, p, &a);
    if (!*done) return cudaSuccess;
    const cudaError_t error = allow_shared_memory<int2_kernel>(context, SHARED);
    if (error != cudaSuccess) return error;
    const int64_t across = (p.n + PAIR * COLS - 1) / (PAIR * COLS), tiles = across * ((p.m + ROWS - 1) / ROWS);
    const int64_t at_once = context->cuda->multiprocessors / PAIR;
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = PAIR, attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3((unsigned)(PAIR * (tiles < at_once ? tiles : at_once)));
    config.blockDim = dim3(THREADS);
    config.dynamicSmemBytes = SHARED;
    config.stream = stream;
    config.attrs = &attribute, config.numAttrs = 1;
    return cudaLaunchKernelEx(&config, int2_kernel, a, p, across, tiles);
}

} // namespace hopper

#endif
