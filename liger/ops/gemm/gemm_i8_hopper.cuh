/* gemm_i8_hopper.cuh - c[m, n] = a[m, k] · b[n, k], i8 to i32, by the warpgroup products of capability 9.0.
 *
 * A block makes 128 x 256 elements of c: two warpgroups have 64 rows each, one more thread fetches. 128 bytes of k of both
 * factors are a stage of 48 KB, of which four are on their way. At 1024 cycles of products a stage that would be 47 bytes a
 * cycle and multiprocessor, more than the L2 gives: two blocks of a cluster share the 256 columns, each fetches half of
 * them for both, and 31 are left. 4096 x 4096 x 14336: 481 GOP, .24 ms at the full rate, and 4 us of stores after each of
 * 14 rounds of tiles.
 *
 * What lies behind an edge of a or b arrives as zeros. Sums wrap around. */
#ifndef LIGER_OPS_GEMM_I8_HOPPER_CUH
#define LIGER_OPS_GEMM_I8_HOPPER_CUH

#include <cuda.h>

#include "liger/cuda/cluster.cuh"
#include "liger/cuda/shared_memory.cuh"
#include "liger/ops/gemm/gemm_problem.h"

namespace hopper {

enum { ROWS = 128, COLS = 256, DEPTH = 128, STAGES = 4, PAIR = 2 /* blocks of a cluster */ };
enum { GROUP_THREADS = 128, GROUPS = 2, GROUP_ROWS = ROWS / GROUPS, STEP_DEPTH = 32, SUMS = COLS / 2 };
enum { FETCHER = GROUPS * GROUP_THREADS, THREADS = FETCHER + 32 };
enum { BOX_ROWS = 128, BOX_BYTES = BOX_ROWS * DEPTH, STAGE_BYTES = 3 * BOX_BYTES, ALIGNMENT = 1024 };
enum { SHARED = STAGES * STAGE_BYTES + ALIGNMENT };
static_assert((int)ROWS == (int)BOX_ROWS && (int)COLS == PAIR * BOX_ROWS, "a stage is one box of a and two of b");

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

/* The compiler must not move what is done with the sums over what follows, or precedes. */
__device__ __forceinline__ void hold(int32_t (&sum)[SUMS]) {
#pragma unroll
    for (int i = 0; i < SUMS; i++) asm volatile("" : "+r"(sum[i])::"memory");
}
__device__ __forceinline__ void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int PENDING>
__device__ __forceinline__ void wait_for_products() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

#define LIGER_FOUR(i) "+r"(sum[i]), "+r"(sum[i + 1]), "+r"(sum[i + 2]), "+r"(sum[i + 3])
#define LIGER_SIXTEEN(i) LIGER_FOUR(i), LIGER_FOUR(i + 4), LIGER_FOUR(i + 8), LIGER_FOUR(i + 12)

/* 64 x 32 of a times 32 x 256 of b. */
__device__ __forceinline__ void add_product(int32_t (&sum)[SUMS], uint64_t a, uint64_t b, int add) {
    asm volatile("{\n\t.reg .pred add;\n\tsetp.ne.b32 add, %130, 0;\n\t"
                 "wgmma.mma_async.sync.aligned.m64n256k32.s32.s8.s8 {"
                 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
                 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
                 "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
                 "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
                 "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
                 "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
                 "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
                 "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127}, "
                 "%128, %129, add;\n\t}"
                 : LIGER_SIXTEEN(0), LIGER_SIXTEEN(16), LIGER_SIXTEEN(32), LIGER_SIXTEEN(48), LIGER_SIXTEEN(64),
                   LIGER_SIXTEEN(80), LIGER_SIXTEEN(96), LIGER_SIXTEEN(112)
                 : "l"(a), "l"(b), "r"(add));
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

    __device__ __forceinline__ char *a(int stage) const { return stages + stage * STAGE_BYTES; }
    __device__ __forceinline__ char *b(int stage) const { return a(stage) + BOX_BYTES; }
};

/* A stage is fetched when both blocks have done with it: half of what comes goes to the other one. */
__device__ __forceinline__ void fetch_tile(const ring &r, const CUtensorMap &a, const CUtensorMap &b, int64_t row,
                                           int64_t col, int64_t k, int rank, turn &t) {
    for (int64_t at = 0; at < k; at += DEPTH, t.next()) {
        shared_barrier_wait(r.empty + t.stage, t.parity ^ 1);
        shared_barrier_expect(r.full + t.stage, STAGE_BYTES);
        fetch_box(r.a(t.stage), a, at, row, r.full + t.stage, (uint16_t)(1 << rank));
        fetch_box(r.b(t.stage) + rank * BOX_BYTES, b, at, col + rank * BOX_ROWS, r.full + t.stage, (1 << PAIR) - 1);
    }
}

/* One thread for each block tells that this group is done with a stage. */
__device__ __forceinline__ void release(const ring &r, int stage) {
    const int rank = threadIdx.x % GROUP_THREADS;
    if (rank < PAIR) arrive_at(r.empty + stage, rank);
}

__device__ __forceinline__ void multiply_tile(const ring &r, int group, int64_t k, turn &t, int32_t (&sum)[SUMS]) {
    int before = -1; /* the stage of the products that may still be running */
    for (int64_t at = 0; at < k; at += DEPTH, t.next()) {
        shared_barrier_wait(r.full + t.stage, t.parity);
        const uint64_t a = matrix_at(r.a(t.stage) + group * GROUP_ROWS * DEPTH), b = matrix_at(r.b(t.stage));
        hold(sum);
        begin_products();
#pragma unroll
        for (int step = 0; step < DEPTH / STEP_DEPTH; step++)
            add_product(sum, a + step * MATRIX_STEP, b + step * MATRIX_STEP, at > 0 || step > 0);
        commit_products();
        wait_for_products<1>();
        hold(sum);
        if (before >= 0) release(r, before);
        before = t.stage;
    }
    wait_for_products<0>();
    hold(sum);
    release(r, before);
}

/* A lane has two neighbours of row lane / 4, and of the row eight below, in every eight columns. */
__device__ __forceinline__ void store_tile(const gemm_problem &p, int64_t row, int64_t col, bool pairs,
                                           const int32_t (&sum)[SUMS]) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int below = 0; below < 2; below++) {
        const int64_t r = row + warp * 16 + below * 8 + lane / 4;
        if (r >= p.m) continue;
        int32_t *const to = (int32_t *)p.c + r * p.ldc;
#pragma unroll
        for (int j = 0; j < COLS / 8; j++) {
            const int64_t c = col + j * 8 + lane % 4 * 2;
            const int32_t left = sum[4 * j + 2 * below], right = sum[4 * j + 2 * below + 1];
            if (pairs && c + 1 < p.n) {
                *(int2 *)(to + c) = make_int2(left, right);
            } else {
                if (c < p.n) to[c] = left;
                if (c + 1 < p.n) to[c + 1] = right;
            }
        }
    }
}

#endif

__global__ void __launch_bounds__(THREADS, 1)
    i8_kernel(const __grid_constant__ CUtensorMap a, const __grid_constant__ CUtensorMap b,
              const __grid_constant__ gemm_problem p, int64_t down, int64_t tiles, bool pairs) {
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
    turn t = {0, 0};
    for (int64_t tile = blockIdx.x / PAIR; tile < tiles; tile += gridDim.x / PAIR) {
        const int64_t row = (tile % down * PAIR + rank) * ROWS, col = tile / down * COLS;
        if (threadIdx.x >= FETCHER) {
            if (threadIdx.x == FETCHER) fetch_tile(r, a, b, row, col, p.k, rank, t);
            continue;
        }
        int32_t sum[SUMS] = {};
        multiply_tile(r, threadIdx.x / GROUP_THREADS, p.k, t, sum);
        store_tile(p, row, col, pairs, sum);
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

inline bool map_rows(encode_map encode, const void *data, int64_t rows, int64_t k, int64_t pitch, CUtensorMap *map) {
    const cuuint64_t size[2] = {(cuuint64_t)k, (cuuint64_t)rows}, stride[1] = {(cuuint64_t)pitch};
    const cuuint32_t box[2] = {DEPTH, BOX_ROWS}, every[2] = {1, 1};
    return encode(map, CU_TENSOR_MAP_DATA_TYPE_UINT8, 2, (void *)data, size, stride, box, every,
                  CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                  CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

/* Is this a product for it: compiled for the very device, rows of a at 16 bytes, and tiles for every multiprocessor. */
inline bool suits(const liger_context *context, const gemm_problem &p) {
#if defined(LIGER_HAS_90A)
    const int64_t tiles = (p.m + PAIR * ROWS - 1) / (PAIR * ROWS) * ((p.n + COLS - 1) / COLS);
    return context->cuda->major == 9 && context->cuda->minor == 0 && ((uintptr_t)p.a | (uintptr_t)p.lda) % 16 == 0 &&
           p.k > 0 && p.k < INT32_MAX - DEPTH && p.m < INT32_MAX - PAIR * ROWS && p.n < INT32_MAX - COLS &&
           tiles * PAIR >= context->cuda->multiprocessors;
#else
    (void)context, (void)p;
    return false;
#endif
}

/* *done: false if nothing was launched. */
inline cudaError_t multiply_i8(const liger_context *context, const gemm_problem &p, cudaStream_t stream, bool *done) {
    static_assert(SHARED <= dynamic_shared(227 << 10), "a block's shared memory at capability 9");
    CUtensorMap a, b;
    const encode_map encode = find_encoder();
    *done = encode && map_rows(encode, p.a, p.m, p.k, p.lda, &a) && map_rows(encode, p.b, p.n, p.k, p.ldb, &b);
    if (!*done) return cudaSuccess;
    const cudaError_t error = allow_shared_memory<i8_kernel>(context, SHARED);
    if (error != cudaSuccess) return error;
    const int64_t down = (p.m + PAIR * ROWS - 1) / (PAIR * ROWS), tiles = down * ((p.n + COLS - 1) / COLS);
    const int64_t at_once = context->cuda->multiprocessors / PAIR;
    const bool pairs = (uintptr_t)p.c % 8 == 0 && p.ldc % 2 == 0;
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = PAIR, attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3((unsigned)(PAIR * (tiles < at_once ? tiles : at_once)));
    config.blockDim = dim3(THREADS);
    config.dynamicSmemBytes = SHARED;
    config.stream = stream;
    config.attrs = &attribute, config.numAttrs = 1;
    return cudaLaunchKernelEx(&config, i8_kernel, a, b, p, down, tiles, pairs);
}

} // namespace hopper

#endif
