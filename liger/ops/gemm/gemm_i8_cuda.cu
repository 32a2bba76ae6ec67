/* gemm_i8_cuda.cu - c[m, n] = a[m, k] · b[n, k], i8 to i32, on tensor cores: every shape and alignment of a.
 *
 * A block makes 128 x 128 elements of c, a warp 64 x 32 of them. 64 of k of both factors lie in shared memory while the next
 * 64 are on their way through registers; what is missing at an edge of a is zero there. Sums wrap around. */
#include "liger/cuda/launch.cuh"
#include "liger/cuda/matrices.cuh"
#include "liger/ops/gemm/gemm_i8.cuh"

namespace {

enum { TILE = 128, TILE_K = 64, THREADS = 256, CHUNK = 16, ROW_CHUNKS = TILE_K / CHUNK };
enum { WARP_ROWS = 64, WARP_COLS = 32, WARPS_ACROSS = TILE / WARP_COLS };
enum { STEP_K = 32, STEP_ROWS = 16, STEP_COLS = 8 }; /* of one instruction */
enum { LOADS = TILE * ROW_CHUNKS / THREADS, DOWN = WARP_ROWS / STEP_ROWS, ACROSS = WARP_COLS / STEP_COLS };

constexpr int BLOCKS = MULTIPROCESSOR_THREADS > 1024 ? 2 : 1; /* on a multiprocessor: 7.5 would spill registers */

/* Where a chunk lies in a stage: eight rows of the same chunk are in eight different groups of banks. */
__device__ __forceinline__ int place(int row, int chunk) { return row * TILE_K + (chunk ^ (row >> 1 & 3)) * CHUNK; }

/* ---- from memory --------------------------------------------------------------------------------------------------- */

/* 16 bytes of which `have` are there, from an address that is a multiple of ALIGN. */
template <int ALIGN>
__device__ __forceinline__ uint4 load_chunk(const int8_t *from, int64_t have) {
    if constexpr (ALIGN == CHUNK) {
        if (have >= CHUNK) return *(const uint4 *)from;
    } else if constexpr (ALIGN == 4) {
        const uint32_t *word = (const uint32_t *)from;
        if (have >= CHUNK) return make_uint4(word[0], word[1], word[2], word[3]);
    }
    uint32_t word[4] = {0, 0, 0, 0};
#pragma unroll
    for (int i = 0; i < CHUNK; i++)
        if (i < have) word[i / 4] |= (uint32_t)(uint8_t)from[i] << i % 4 * 8;
    return make_uint4(word[0], word[1], word[2], word[3]);
}

struct fetched {
    uint4 a[LOADS], b[LOADS];
};

/* The rows of b begin at 16 bytes and are as long as whole chunks: behind k a is zero, and b whatever lies there. */
template <int ALIGN>
__device__ __forceinline__ void fetch(const gemm_problem &p, int64_t row, int64_t col, int64_t k, fetched &next) {
#pragma unroll
    for (int i = 0; i < LOADS; i++) {
        const int item = i * THREADS + threadIdx.x;
        const int64_t r = row + item / ROW_CHUNKS, c = col + item / ROW_CHUNKS, at = k + item % ROW_CHUNKS * CHUNK;
        next.a[i] = next.b[i] = make_uint4(0, 0, 0, 0);
        if (r < p.m && at < p.k) next.a[i] = load_chunk<ALIGN>((const int8_t *)p.a + r * p.lda + at, p.k - at);
        if (c < p.n && at < p.k) next.b[i] = *(const uint4 *)((const int8_t *)p.b + c * p.ldb + at);
    }
}

__device__ __forceinline__ void put(const fetched &next, char *a, char *b) {
#pragma unroll
    for (int i = 0; i < LOADS; i++) {
        const int item = i * THREADS + threadIdx.x, at = place(item / ROW_CHUNKS, item % ROW_CHUNKS);
        *(uint4 *)(a + at) = next.a[i];
        *(uint4 *)(b + at) = next.b[i];
    }
}

/* ---- on tensor cores ----------------------------------------------------------------------------------------------- */

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
__device__ __forceinline__ void add_quarter(int32_t &left, int32_t &right, uint32_t a, uint32_t b) {
    asm volatile("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0, %1}, {%2}, {%3}, {%0, %1};"
                 : "+r"(left), "+r"(right)
                 : "r"(a), "r"(b));
}
#endif

/* 16 x 32 of a times 32 x 8 of b. */
__device__ __forceinline__ void add_product(int32_t (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#if __CUDA_ARCH__ >= 800
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+r"(sum[0]), "+r"(sum[1]), "+r"(sum[2]), "+r"(sum[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#elif defined(__CUDA_ARCH__)
    add_quarter(sum[0], sum[1], a[0], b0);
    add_quarter(sum[2], sum[3], a[1], b0);
    add_quarter(sum[0], sum[1], a[2], b1);
    add_quarter(sum[2], sum[3], a[3], b1);
#endif
}

using sums = int32_t[DOWN][ACROSS][4];

__device__ __forceinline__ void multiply_stage(const char *a, const char *b, int warp_row, int warp_col, sums &sum) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int chunk = 0; chunk < ROW_CHUNKS; chunk += STEP_K / CHUNK) {
        uint32_t left[DOWN][4], right[ACROSS / 2][4];
#pragma unroll
        for (int i = 0; i < DOWN; i++) /* rows 0-7 and 8-15, then the same of the next 16 bytes */
            load_matrices(a + place(warp_row + i * STEP_ROWS + lane % 16, chunk + lane / 16), left[i]);
#pragma unroll
        for (int j = 0; j < ACROSS / 2; j++) /* both chunks of columns 0-7, then of columns 8-15 */
            load_matrices(b + place(warp_col + j * 2 * STEP_COLS + lane / 16 * 8 + lane % 8, chunk + lane / 8 % 2),
                          right[j]);
#pragma unroll
        for (int i = 0; i < DOWN; i++)
#pragma unroll
            for (int j = 0; j < ACROSS; j++)
                add_product(sum[i][j], left[i], right[j / 2][j % 2 * 2], right[j / 2][j % 2 * 2 + 1]);
    }
}

/* A lane has two neighbours of row lane / 4, and of the row eight below. */
__device__ __forceinline__ void store_sums(const gemm_problem &p, int64_t row, int64_t col, bool pairs,
                                           const sums &sum) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < DOWN * 2; i++) {
        const int64_t r = row + i * 8 + lane / 4;
        if (r >= p.m) continue;
#pragma unroll
        for (int j = 0; j < ACROSS; j++) {
            const int64_t c = col + j * STEP_COLS + lane % 4 * 2;
            const int32_t left = sum[i / 2][j][i % 2 * 2], right = sum[i / 2][j][i % 2 * 2 + 1];
            int32_t *to = (int32_t *)p.c + r * p.ldc + c;
            if (pairs && c + 1 < p.n) {
                *(int2 *)to = make_int2(left, right);
            } else {
                if (c < p.n) to[0] = left;
                if (c + 1 < p.n) to[1] = right;
            }
        }
    }
}

template <int ALIGN>
__global__ void __launch_bounds__(THREADS, BLOCKS)
    i8_kernel(const __grid_constant__ gemm_problem p, int64_t down, int64_t tiles, bool pairs) {
    __shared__ __align__(128) char a[2][TILE * TILE_K], b[2][TILE * TILE_K];
    const int warp = threadIdx.x / 32;
    const int warp_row = warp / WARPS_ACROSS * WARP_ROWS, warp_col = warp % WARPS_ACROSS * WARP_COLS;
    for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        const int64_t row = tile % down * TILE, col = tile / down * TILE;
        sums sum = {};
        fetched next;
        fetch<ALIGN>(p, row, col, 0, next);
        put(next, a[0], b[0]);
        __syncthreads();
        int now = 0;
        for (int64_t k = 0; k < p.k; k += TILE_K, now ^= 1) {
            const bool more = k + TILE_K < p.k;
            if (more) fetch<ALIGN>(p, row, col, k + TILE_K, next);
            multiply_stage(a[now], b[now], warp_row, warp_col, sum);
            if (more) put(next, a[now ^ 1], b[now ^ 1]);
            __syncthreads();
        }
        store_sums(p, row + warp_row, col + warp_col, pairs, sum);
    }
}

template <int ALIGN>
void launch(const gemm_problem &p, cudaStream_t stream) {
    const int64_t down = (p.m + TILE - 1) / TILE, tiles = down * ((p.n + TILE - 1) / TILE);
    const bool pairs = (uintptr_t)p.c % 8 == 0 && p.ldc % 2 == 0;
    i8_kernel<ALIGN><<<grid_size(tiles, 1), THREADS, 0, stream>>>(p, down, tiles, pairs);
}

} // namespace

void multiply_i8(const gemm_problem &problem, cudaStream_t stream) {
    const uintptr_t bits = (uintptr_t)problem.a | (problem.m > 1 ? (uintptr_t)problem.lda : 0);
    if (bits % CHUNK == 0) launch<CHUNK>(problem, stream);
    else if (bits % 4 == 0) launch<4>(problem, stream);
    else launch<1>(problem, stream);
}
