/* int2_matmul_cuda.cu - the int8 x int2 product on CUDA.
 *
 * Many rows of a: on Hopper, the weights are laid out as a warp takes them, still packed, and multiplied by int2_hopper.cuh.
 * Else they are unpacked to bytes in the workspace, along k as tensor cores take them, and multiplied by the slot for matrix
 * products. At 4096 x 4096 x 14336 unpacking is 73 MB of traffic, a twentieth of the product's time.
 * Few rows: time is that of reading b, which a kernel of its own multiplies as it is. */
#include "liger/core/kernel_table.h"
#include "liger/cuda/launch.cuh"
#include "liger/ops/gemm/gemm_problem.h"
#include "liger/ops/int2_matmul/int2_hopper.cuh"
#include "liger/ops/int2_matmul/int2_matmul_problem.h"

namespace {

/* ---- four packed rows of four columns ------------------------------------------------------------------------------ */

/* word[j] gets the bytes of packed rows `row` to row + 3 of column col + j; zeros where there are none. */
__device__ __forceinline__ void gather_words(const int2_matmul_problem &p, int64_t row, int64_t col,
                                             uint32_t (&word)[4]) {
#pragma unroll
    for (int j = 0; j < 4; j++) {
        word[j] = 0;
#pragma unroll
        for (int q = 0; q < 4; q++)
            if (row + q < p.packed && col + j < p.n)
                word[j] |= (uint32_t)p.b.data[(row + q) * p.b.row_stride + (col + j) * p.b.col_stride] << 8 * q;
    }
}

/* The same where four columns are a word in memory, and the number of columns is a multiple of four. */
__device__ __forceinline__ void read_words(const int2_matmul_problem &p, int64_t row, int64_t col,
                                           uint32_t (&word)[4]) {
    uint32_t x[4];
#pragma unroll
    for (int q = 0; q < 4; q++)
        x[q] = row + q < p.packed && col < p.n ? *(const uint32_t *)(p.b.data + (row + q) * p.b.row_stride + col) : 0;
    const uint32_t low01 = __byte_perm(x[0], x[1], 0x5140), high01 = __byte_perm(x[0], x[1], 0x7362);
    const uint32_t low23 = __byte_perm(x[2], x[3], 0x5140), high23 = __byte_perm(x[2], x[3], 0x7362);
    word[0] = __byte_perm(low01, low23, 0x5410);
    word[1] = __byte_perm(low01, low23, 0x7632);
    word[2] = __byte_perm(high01, high23, 0x5410);
    word[3] = __byte_perm(high01, high23, 0x7632);
}

template <bool WIDE>
__device__ __forceinline__ void load_words(const int2_matmul_problem &p, int64_t row, int64_t col,
                                           uint32_t (&word)[4]) {
    if constexpr (WIDE) read_words(p, row, col, word);
    else gather_words(p, row, col, word);
}

static bool is_wide(const int2_matmul_problem &p) {
    return p.b.col_stride == 1 && p.b.row_stride % 4 == 0 && (uintptr_t)p.b.data % 4 == 0 && p.n % 4 == 0;
}

/* ---- weights as bytes ---------------------------------------------------------------------------------------------- */

enum { ROWS = 128, COLS = 64, THREADS = 256, GROUP = 4, CHUNK = 16 };
enum { SLOTS = THREADS / (COLS / GROUP), WORDS = ROWS / GROUP, PITCH = WORDS + 4, CHUNKS = ROWS / CHUNK };

/* 16 weights of one column, from packed row `row` on, in each quarter of its k. */
__device__ __forceinline__ void store_weights(const int2_matmul_problem &p, int64_t pitch, int64_t row, int64_t col,
                                              uint4 word) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const uint4 x =
            make_uint4(weights_of(word.x, i), weights_of(word.y, i), weights_of(word.z, i), weights_of(word.w, i));
        const uint32_t part[4] = {x.x, x.y, x.z, x.w};
        char *to = (char *)p.workspace + col * pitch + i * p.packed + row;
        if (p.packed % CHUNK == 0) {
            *(uint4 *)to = x;
        } else if (p.packed % 4 == 0) {
#pragma unroll
            for (int q = 0; q < 4; q++)
                if (row + 4 * q < p.packed) ((uint32_t *)to)[q] = part[q];
        } else {
#pragma unroll
            for (int q = 0; q < CHUNK; q++)
                if (row + q < p.packed) to[q] = (char)(part[q / 4] >> q % 4 * 8);
        }
    }
}

/* Words of four rows go through shared memory, where the 32 of a column are neighbours. `along`: so are they in memory. */
using tile_words = uint32_t[COLS][PITCH];
template <bool WIDE>
__device__ __forceinline__ void stage_words(const int2_matmul_problem &p, int64_t row, int64_t col, bool along,
                                            tile_words &words) {
    const int x = threadIdx.x % SLOTS, y = threadIdx.x / SLOTS;
    const int group = GROUP * (along ? y : x), slot = along ? x : y;
#pragma unroll
    for (int w = 0; w < WORDS; w += SLOTS) {
        uint32_t word[4];
        load_words<WIDE>(p, row + (w + slot) * GROUP, col + group, word);
#pragma unroll
        for (int j = 0; j < 4; j++) words[group + j][w + slot] = word[j];
    }
    __syncthreads();
}

template <bool WIDE>
__global__ void __launch_bounds__(THREADS) unpack_kernel(const __grid_constant__ int2_matmul_problem p, int64_t pitch,
                                                         int64_t down, int64_t tiles, bool along) {
    __shared__ __align__(16) tile_words words;
    for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        const int64_t row = tile % down * ROWS, col = tile / down * COLS;
        stage_words<WIDE>(p, row, col, along, words);
        const int chunk = threadIdx.x % CHUNKS;
#pragma unroll
        for (int c = threadIdx.x / CHUNKS; c < COLS; c += THREADS / CHUNKS)
            if (row + chunk * CHUNK < p.packed && col + c < p.n)
                store_weights(p, pitch, row + chunk * CHUNK, col + c, *(const uint4 *)&words[c][chunk * CHUNK / GROUP]);
        __syncthreads();
    }
}

/* Packed as they are, in the order of int2_hopper.cuh's fragments: a tile is one along, and some across. */
template <bool WIDE>
__global__ void __launch_bounds__(THREADS)
    fragment_kernel(const __grid_constant__ int2_matmul_problem p, int64_t, int64_t down, int64_t tiles, bool along) {
    using namespace hopper;
    static_assert((int)::ROWS == (int)DEPTH && ::COLS % FRAGMENT_COLS == 0, "whole fragments");
    __shared__ __align__(16) tile_words words;
    for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        const int64_t row = tile % down * ::ROWS, col = tile / down * ::COLS;
        stage_words<WIDE>(p, row, col, along, words);
#pragma unroll
        for (int item = threadIdx.x; item < ::COLS / FRAGMENT_COLS * FRAGMENT_PACKS; item += ::THREADS) {
            const int part = item / FRAGMENT_PACKS, step = item / 32 % STEPS, lane = item % 32;
            const int c = part * FRAGMENT_COLS + lane / 4, w = step * (STEP_DEPTH / 4) + lane % 4;
            const auto word = [&](int right, int below) {
                const bool there = row + 4 * (w + below) < p.packed && col + c + right < p.n;
                return there ? words[c + right][w + below] : (uint32_t)NO_WEIGHT;
            };
            if (col + part * FRAGMENT_COLS >= p.n) continue;
            uint4 *const to = (uint4 *)p.workspace + fragment_at(p.packed, row / DEPTH, col / FRAGMENT_COLS + part);
            to[step * 32 + lane] = make_uint4(word(0, 0), word(8, 0), word(0, 4), word(8, 4));
        }
        __syncthreads();
    }
}
static_assert(COLS / GROUP == SLOTS, "threads are a square of groups of columns and slots of rows");

template <bool FRAGMENTS>
void lay_out(const int2_matmul_problem &p, cudaStream_t stream) {
    const int64_t down = (p.packed + ROWS - 1) / ROWS, tiles = down * ((p.n + COLS - 1) / COLS);
    const auto kernel = is_wide(p)  ? FRAGMENTS ? fragment_kernel<true> : unpack_kernel<true>
                         : FRAGMENTS ? fragment_kernel<false>
                                    : unpack_kernel<false>;
    kernel<<<grid_size(tiles, 1), THREADS, 0, stream>>>(p, int2_pitch(p.packed), down, tiles,
                                                        !is_wide(p) && p.b.row_stride == 1);
}

/* ---- few rows of a ------------------------------------------------------------------------------------------------- */

/* Four of k of a row of a, zeros behind the end of the quarter. */
__device__ __forceinline__ int four_of_a(const int2_matmul_problem &p, bool aligned, const int8_t *at, int64_t have) {
    if (aligned) return *(const int *)at;
    uint32_t word = 0;
#pragma unroll
    for (int q = 0; q < 4; q++)
        if (q < have) word |= (uint32_t)(uint8_t)at[q] << 8 * q;
    return (int)word;
}

/* A block makes all rows of 64 columns. A thread has four of them and every 16th group of four packed rows; what 16 threads
 * have found is added up at the end. The codes are multiplied as they are: what is too much is the sum of a. */
template <int M, bool WIDE>
__global__ void __launch_bounds__(THREADS, 2) few_kernel(const __grid_constant__ int2_matmul_problem p, bool aligned) {
    __shared__ uint32_t part[SLOTS][M][COLS];
    const int group = GROUP * (threadIdx.x % SLOTS), slot = threadIdx.x / SLOTS;
    for (int64_t col = (int64_t)blockIdx.x * COLS; col < p.n; col += (int64_t)gridDim.x * COLS) {
        int sum[M][4] = {}, all[M] = {};
#pragma unroll(M > 4 ? 1 : 2)
        for (int64_t row = slot * GROUP; row < p.packed; row += SLOTS * GROUP) {
            uint32_t word[4];
            load_words<WIDE>(p, row, col + group, word);
#pragma unroll
            for (int m = 0; m < M; m++) {
                const int8_t *a = p.a + (m < p.m ? m : 0) * p.lda + row;
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const int four = four_of_a(p, aligned, a + i * p.packed, p.packed - row);
                    all[m] = __dp4a(four, 0x01010101, all[m]);
#pragma unroll
                    for (int j = 0; j < 4; j++) sum[m][j] = __dp4a(four, (int)codes_of(word[j], i), sum[m][j]);
                }
            }
        }
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int j = 0; j < 4; j++) part[slot][m][group + j] = (uint32_t)sum[m][j] - (uint32_t)all[m];
        __syncthreads();
        for (int item = threadIdx.x; item < M * COLS; item += THREADS) {
            const int m = item / COLS, c = item % COLS;
            uint32_t total = 0;
#pragma unroll
            for (int s = 0; s < SLOTS; s++) total += part[s][m][c];
            if (m < p.m && col + c < p.n) p.c[m * p.ldc + col + c] = (int32_t)total;
        }
        __syncthreads();
    }
}

template <int M>
void multiply_few(const int2_matmul_problem &p, cudaStream_t stream) {
    const bool aligned = (uintptr_t)p.a % 4 == 0 && (p.m == 1 || p.lda % 4 == 0) && p.packed % 4 == 0;
    const unsigned grid = grid_size(p.n, COLS);
    if (is_wide(p)) few_kernel<M, true><<<grid, THREADS, 0, stream>>>(p, aligned);
    else few_kernel<M, false><<<grid, THREADS, 0, stream>>>(p, aligned);
}

/* ---- unpacked -------------------------------------------------------------------------------------------------------- */

liger_status multiply_unpacked(liger_context *context, const int2_matmul_problem &p, liger_stream stream) {
    if (p.packed > 0) lay_out<false>(p, (cudaStream_t)stream);
    gemm_problem product = {};
    product.dtype = LIGER_I8, product.c_dtype = LIGER_I32, product.transpose_b = true;
    product.m = p.m, product.n = p.n, product.k = 4 * p.packed;
    product.a = p.a, product.lda = p.lda;
    product.b = p.workspace, product.ldb = int2_pitch(p.packed);
    product.c = p.c, product.ldc = p.ldc;
    return context->kernels->gemm(context, &product, stream);
}

} // namespace

extern "C" liger_status int2_matmul_cuda(liger_context *context, const int2_matmul_problem *problem,
                                         liger_stream stream) {
    const int2_matmul_problem &p = *problem;
    const cudaStream_t on = (cudaStream_t)stream;
    LIGER_ON_DEVICE(context, "int2_matmul");
    if (p.m == 1) {
        multiply_few<1>(p, on);
    } else if (p.m <= INT2_FEW_ROWS / 2) {
        multiply_few<INT2_FEW_ROWS / 2>(p, on);
    } else if (p.m <= INT2_FEW_ROWS) {
        multiply_few<INT2_FEW_ROWS>(p, on);
    } else if (hopper::suits(context, p)) {
        bool done = false;
        lay_out<true>(p, on);
        LIGER_TRY(cuda_status(hopper::multiply(context, p, on, &done), "int2_matmul"));
        if (!done) LIGER_TRY(multiply_unpacked(context, p, stream));
    } else {
        LIGER_TRY(multiply_unpacked(context, p, stream));
    }
    return launched(context, "int2_matmul", stream);
}
