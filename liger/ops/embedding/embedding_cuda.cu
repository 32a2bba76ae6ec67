/* embedding_cuda.cu - embedding on the GPU.
 *
 * Forward is a gather: bits are moved, several rows on their way at once. Backward writes the table at the speed of
 * memory: 1.05 GB of the 1.18 GB that 16384 tokens of 8 KB and 128256 rows are. What goes before must be short: keys are
 * sorted by two kernels. No atomics: what is sorted has one order, and so have the sums. */
#include "liger/core/kernel_table.h"
#include "liger/cuda/launch.cuh"
#include "liger/cuda/pack.cuh"
#include "liger/cuda/reduce.cuh"
#include "liger/cuda/sort_keys.cuh"
#include "liger/ops/embedding/embedding_problem.h"

namespace {

enum { THREADS = 256, MOST_GRID_Y = 65535 };

static int64_t blocks_for(int64_t work, int64_t of_a_block) { return (work + of_a_block - 1) / of_a_block; }

/* ---- forward ---------------------------------------------------------------------------------------------------- */

enum { GATHERED = 4 }; /* rows of a thread that are on their way */

/* A block's threads: `x` share out the words of a row, of which `y` rows are at work. */
static dim3 block_for(int64_t words) {
    if (words >= THREADS) { /* all parts of a row the same */
        const int64_t parts = (words + THREADS - 1) / THREADS;
        return dim3((unsigned)round_up_to_warp((words + parts - 1) / parts), 1);
    }
    unsigned x = 1;
    while (x < words && x < WARP) x *= 2;
    if (words > WARP) x = (unsigned)round_up_to_warp(words);
    return dim3(x, THREADS / x);
}

struct gather_rows {
    const void *indices;
    liger_rows weight, y; /* strides in words */
    int64_t tokens, vocab, words, padding;
    liger_dtype index_dtype;
    uint32_t nan; /* as many of them as fill a word */
};

template <typename W>
__device__ __forceinline__ W filled(uint32_t bits) {
    if constexpr (sizeof(W) == 16) return {bits, bits, bits, bits};
    else return (W)bits;
}

template <typename W>
__global__ void __launch_bounds__(THREADS) gather(const __grid_constant__ gather_rows p) {
    const int64_t first = blockIdx.x * (int64_t)(blockDim.y * GATHERED) + threadIdx.y;
    int64_t index[GATHERED];
#pragma unroll
    for (int k = 0; k < GATHERED; k++) {
        const int64_t token = first + k * blockDim.y;
        index[k] = token < p.tokens ? index_at(p.indices, p.index_dtype, token) : -1;
    }
    for (int64_t c = threadIdx.x; c < p.words; c += blockDim.x) {
        W word[GATHERED];
#pragma unroll
        for (int k = 0; k < GATHERED; k++) {
            const bool known = index[k] >= 0 && index[k] < p.vocab;
            word[k] = filled<W>(known ? 0 : p.nan);
            if (known && index[k] != p.padding) word[k] = row_at<W>(p.weight, index[k])[c];
        }
#pragma unroll
        for (int k = 0; k < GATHERED; k++) {
            const int64_t token = first + k * blockDim.y;
            if (token < p.tokens) row_at<W>(p.y, token)[c] = word[k];
        }
    }
}

static liger_rows in_words(liger_rows rows, int64_t of_a_word) {
    rows.inner_stride /= of_a_word, rows.outer_stride /= of_a_word;
    return rows;
}

template <typename W>
void launch_gather(const embedding_forward_problem &p, cudaStream_t stream) {
    const int64_t of_a_word = (int64_t)(sizeof(W) / liger_dtype_size(p.dtype));
    const uint32_t nan = p.dtype == LIGER_F32 ? 0x7fc00000u : p.dtype == LIGER_F16 ? 0x7e007e00u : 0x7fc07fc0u;
    const gather_rows rows = {p.indices,
                              in_words(p.weight, of_a_word),
                              in_words(p.y, of_a_word),
                              p.tokens,
                              p.vocab,
                              p.cols / of_a_word,
                              p.padding_index,
                              p.index_dtype,
                              nan};
    const dim3 block = block_for(rows.words);
    gather<W><<<grid_size(p.tokens, block.y * GATHERED), block, 0, stream>>>(rows);
}

/* ---- backward: keys in order ------------------------------------------------------------------------------------ */

struct sums_problem {
    embedding_backward_problem p;
    const uint64_t *keys;
    float *parts;
    int64_t part_blocks, key_blocks; /* the blocks of each kind; the others clear rows behind `cleared` */
    int64_t cleared;                 /* the first rows of the table, while keys were sorted */
};

struct key_of_token {
    const void *indices;
    int64_t vocab, padding;
    liger_dtype index_dtype;

    __device__ __forceinline__ uint64_t operator()(int64_t token) const {
        return embedding_key(index_at(indices, index_dtype, token), token, vocab, padding);
    }
};

/* A few multiprocessors sort. Meanwhile the others write zeros to rows of the table, most of which have no token; one that has is
 * written again. Many small blocks: it took 7 us off a table of 1 GB, and with larger ones 1. */
struct clear_rows_early {
    enum { BLOCK_PACKS = 1024, BLOCKS_OF_MULTIPROCESSOR = 32 };
    uint4 *begin;
    int64_t packs;

    __device__ __forceinline__ void operator()(int64_t block) const {
        const int64_t first = block * BLOCK_PACKS, left = packs - first;
        const int count = (int)(left < BLOCK_PACKS ? left : BLOCK_PACKS);
        for (int i = threadIdx.x; i < count; i += blockDim.x) begin[first + i] = make_uint4(0, 0, 0, 0);
    }
};

/* None where there are as many tokens as rows, of which most may have one; and where rows do not follow each other. */
static int64_t rows_cleared_early(const embedding_backward_problem &p, bool packable, int64_t most_packs) {
    if (!packable || p.dweight.inverse != 0 || p.dweight.inner_stride != p.cols || p.tokens >= p.vocab) return 0;
    const int64_t rows = most_packs / (p.cols * (int64_t)liger_dtype_size(p.dtype) / PACK_BYTES);
    return rows < p.vocab ? rows : p.vocab;
}

/* Sets keys, and how many of the first rows have been cleared. */
static cudaError_t sort_tokens(const liger_context *context, bool packable, cudaStream_t stream, sums_problem *sums) {
    const embedding_backward_problem &p = sums->p;
    uint64_t *const keys = (uint64_t *)p.workspace;
    uint64_t *const other = (uint64_t *)((char *)p.workspace + embedding_layout(p.tokens, p.cols).second);
    const key_of_token key_of = {p.indices, p.vocab, p.padding_index, p.index_dtype};
    const int64_t of_all_kernels = sorted_keys::kernels(p.tokens) * clear_rows_early::BLOCK_PACKS;
    const int64_t most_blocks = clear_rows_early::BLOCKS_OF_MULTIPROCESSOR * context->cuda->multiprocessors;
    sums->cleared = rows_cleared_early(p, packable, most_blocks * of_all_kernels);
    const int64_t packs = sums->cleared * p.cols * (int64_t)liger_dtype_size(p.dtype) / PACK_BYTES;
    const clear_rows_early zeros = {(uint4 *)p.dweight.data, packs};
    const int64_t spare = packs > 0 ? blocks_for(packs, of_all_kernels) : 0;
    return sorted_keys::sort_keys(context, key_of, p.tokens, keys, other, zeros, spare, stream, &sums->keys);
}

/* ---- backward: sums ---------------------------------------------------------------------------------------------
 *
 * One kernel has blocks of three kinds, so that what waits for memory to answer and what only writes are under way together:
 * first those that add up parts of rows of many tokens, then those that write the rows of some keys, then those that write the
 * rows without tokens, behind those that have been cleared. Rows whose tokens lie in several pieces come last, in a kernel of their own. */

enum {
    SUMMING_BLOCKS = 4, /* of a multiprocessor: 64 registers a thread */
    OF_A_LANE = 4,      /* keys, or rows, of a block: few, so that rows are written in order */
    MOST_OF_BLOCK = 512,
    TOGETHER = 4,    /* rows of one token that a thread has on their way */
    PACKS_OF_ROW = 4 /* of a thread, before more blocks share a row: memory likes whole rows */
};

/* Keys, or rows, of a block, whose threads are `y` rows of threads. */
LIGER_HOST_DEVICE static inline int most_of_block(unsigned y) {
    return OF_A_LANE * y < MOST_OF_BLOCK ? OF_A_LANE * (int)y : (int)MOST_OF_BLOCK;
}

/* Adds a pack of dy for each of the keys, in their order. */
template <typename T, int N, int AHEAD>
__device__ __forceinline__ void add_tokens(const liger_rows &rows, const uint64_t *key, const uint64_t *end, int64_t c,
                                           float (&sum)[N]) {
    for (; key < end; key += AHEAD) {
        pack<T, N> dy[AHEAD];
#pragma unroll
        for (int k = 0; k < AHEAD; k++)
            if (key + k < end) dy[k] = load_pack<T, N>(row_at<T>(rows, item_of_key(key[k])) + c);
#pragma unroll
        for (int k = 0; k < AHEAD; k++) {
            if (key + k >= end) break;
            float values[N];
            unpack(dy[k], values);
#pragma unroll
            for (int i = 0; i < N; i++) sum[i] += values[i];
        }
    }
}

template <typename T, int N>
__device__ __forceinline__ void store_sum(const sums_problem &s, int64_t row, int64_t c, const float (&sum)[N]) {
    pack<T, N> out;
    repack(sum, out);
    store_whole_pack<T, N>(row_at<T>(s.p.dweight, row) + c, out);
}

template <typename T, int N>
__device__ __forceinline__ void sum_part(const sums_problem &s, int64_t which) {
    __shared__ embedding_part part;
    const int thread = threadIdx.y * blockDim.x + threadIdx.x, threads = blockDim.x * blockDim.y;
    if (thread == 0) part = embedding_part_of(s.keys, s.p.tokens, s.p.vocab, s.p.piece_bits, which);
    __syncthreads();
    if (part.begin == part.end) return;
    const int64_t step = (int64_t)gridDim.y * threads * N;
    for (int64_t c = (blockIdx.y * (int64_t)threads + thread) * N; c < s.p.cols; c += step) {
        float sum[N] = {};
        add_tokens<T, N, 8>(s.p.dy, s.keys + part.begin, s.keys + part.end, c, sum);
        pack<float, N> out;
        repack(sum, out);
        store_whole_pack<float, N>(s.parts + which * s.p.cols + c, out);
    }
}

/* Behind the last of the keys [begin, count) that are of this row: mostly soon. */
__device__ __forceinline__ int64_t end_of_row(const uint64_t *keys, int64_t begin, int64_t count, int64_t row) {
    int64_t step = 1;
    while (begin + step < count && row_of_key(keys[begin + step]) == row) step *= 2;
    return first_key_of(keys, begin + step / 2, begin + step < count ? begin + step : count, row + 1);
}

/* Rows of which the first key is one of these. */
template <typename T, int N>
__device__ __forceinline__ void write_rows_of_keys(const sums_problem &s, int64_t block) {
    __shared__ uint64_t key[1 + MOST_OF_BLOCK + 1]; /* with the neighbours */
    __shared__ uint32_t tokens[MOST_OF_BLOCK];      /* of the row that begins here; 0: none, or not for us */
    const int thread = threadIdx.y * blockDim.x + threadIdx.x, threads = blockDim.x * blockDim.y;
    const int most = most_of_block(blockDim.y);
    const int64_t first = block * most;
    const int count = (int)(s.p.tokens - first < most ? s.p.tokens - first : most);
    for (int i = thread; i < count + 2; i += threads) {
        const int64_t at = first + i - 1;
        key[i] = at >= 0 && at < s.p.tokens ? s.keys[at] : ~(uint64_t)0;
    }
    __syncthreads();
    for (int i = thread; i < count; i += threads) {
        const int64_t row = row_of_key(key[i + 1]), begin = first + i;
        tokens[i] = 0;
        if (row >= s.p.vocab || row_of_key(key[i]) == row) continue;
        const bool alone = row_of_key(key[i + 2]) != row;
        const int64_t end = alone ? begin + 1 : end_of_row(s.keys, begin, s.p.tokens, row);
        const embedding_pieces_of_row of = embedding_pieces_of(begin, end, s.p.piece_bits);
        if (of.first == of.last) tokens[i] = (uint32_t)(end - begin);
    }
    __syncthreads();
    const int64_t step = (int64_t)gridDim.y * blockDim.x * N,
                  begin = (blockIdx.y * (int64_t)blockDim.x + threadIdx.x) * N;
    for (int i = threadIdx.y; i < count; i += TOGETHER * blockDim.y) {
        for (int64_t c = begin; c < s.p.cols; c += step) {
            pack<T, N> dy[TOGETHER];
#pragma unroll
            for (int k = 0; k < TOGETHER; k++) {
                const int at = i + k * blockDim.y;
                if (at < count && tokens[at] == 1)
                    dy[k] = load_pack<T, N>(row_at<T>(s.p.dy, item_of_key(key[at + 1])) + c);
            }
#pragma unroll
            for (int k = 0; k < TOGETHER; k++) {
                const int at = i + k * blockDim.y;
                if (at >= count || tokens[at] != 1) continue;
                float sum[N];
                unpack(dy[k], sum);
#pragma unroll
                for (int e = 0; e < N; e++) sum[e] += 0.0f; /* a sum of one: -0 becomes 0 */
                store_sum<T, N>(s, row_of_key(key[at + 1]), c, sum);
            }
        }
    }
    for (int i = threadIdx.y; i < count; i += blockDim.y) {
        if (tokens[i] <= 1) continue;
        const uint64_t *const keys = s.keys + first + i;
        for (int64_t c = begin; c < s.p.cols; c += step) {
            float sum[N] = {};
            add_tokens<T, N, 4>(s.p.dy, keys, keys + tokens[i], c, sum);
            store_sum<T, N>(s, row_of_key(key[i + 1]), c, sum);
        }
    }
}

/* All lanes of a warp look at once: a few rounds for any number of keys. */
__device__ __forceinline__ int64_t first_of(const uint64_t *keys, int64_t count, int64_t row, int lane) {
    int64_t begin = 0, end = count;
    while (begin < end) {
        const int64_t step = (end - begin + WARP - 1) / WARP, at = begin + lane * step;
        const bool before = at < end && row_of_key(keys[at]) < row;
        const int lanes = __popc(__ballot_sync(0xffffffffu, before)); /* of sorted keys these are the first lanes */
        if (lanes == 0) return begin;
        const int64_t next = begin + lanes * step;
        begin += (lanes - 1) * step + 1;
        end = next < end ? next : end;
    }
    return begin;
}

/* Those of some rows that have no token: where they begin among the keys is found out once. */
template <typename T, int N>
__device__ __forceinline__ void clear_rows(const sums_problem &s, int64_t block) {
    __shared__ uint32_t begins[MOST_OF_BLOCK + 1];
    __shared__ int64_t bound[2];
    const int thread = threadIdx.y * blockDim.x + threadIdx.x, threads = blockDim.x * blockDim.y;
    const int most = most_of_block(blockDim.y);
    const int64_t first = s.cleared + block * most;
    const int rows = (int)(s.p.vocab - first < most ? s.p.vocab - first : most);
    if (thread < 2 * WARP) { /* a warp for each bound */
        const int64_t row = thread < WARP ? first : first + rows;
        const int64_t found = first_of(s.keys, s.p.tokens, row, thread % WARP);
        if (thread % WARP == 0) bound[thread / WARP] = found;
    }
    __syncthreads();
    for (int r = thread; r <= rows; r += threads)
        begins[r] = (uint32_t)first_key_of(s.keys, bound[0], bound[1], first + r);
    __syncthreads();
    const int64_t step = (int64_t)gridDim.y * blockDim.x * N;
    const pack<T, N> zeros = {};
    for (int r = threadIdx.y; r < rows; r += blockDim.y) {
        if (begins[r] < begins[r + 1]) continue;
        T *const row = row_at<T>(s.p.dweight, first + r);
        for (int64_t c = (blockIdx.y * (int64_t)blockDim.x + threadIdx.x) * N; c < s.p.cols; c += step)
            store_whole_pack<T, N>(row + c, zeros);
    }
}

template <typename T, int N>
__global__ void __launch_bounds__(THREADS, at_most_blocks(SUMMING_BLOCKS, THREADS))
    write_rows(const __grid_constant__ sums_problem s) {
    const int64_t block = blockIdx.x;
    wait_for_previous_kernel();
    let_next_kernel_start();
    if (block < s.part_blocks) sum_part<T, N>(s, block);
    else if (block < s.part_blocks + s.key_blocks) write_rows_of_keys<T, N>(s, block - s.part_blocks);
    else clear_rows<T, N>(s, block - s.part_blocks - s.key_blocks);
}

enum { JOIN_THREADS = 64 };

/* The row that begins in a piece and goes on in the next: its parts, in their order. */
template <typename T, int N>
__global__ void __launch_bounds__(JOIN_THREADS) join_parts(const __grid_constant__ sums_problem s) {
    __shared__ int64_t begin, end;
    const int64_t first = (int64_t)blockIdx.x << s.p.piece_bits, after = first + ((int64_t)1 << s.p.piece_bits);
    wait_for_previous_kernel();
    const int64_t row = row_of_key(s.keys[after - 1]);
    if (row == s.p.vocab || row_of_key(s.keys[after]) != row) return;
    if (first > 0 && row_of_key(s.keys[first - 1]) == row) return;
    if (threadIdx.x == 0) {
        begin = first_key_of(s.keys, first, after, row);
        end = end_of_row(s.keys, after, s.p.tokens, row);
    }
    __syncthreads();
    const embedding_pieces_of_row of = embedding_pieces_of(begin, end, s.p.piece_bits);
    const int64_t step = (int64_t)gridDim.y * JOIN_THREADS * N;
    for (int64_t c = (blockIdx.y * (int64_t)JOIN_THREADS + threadIdx.x) * N; c < s.p.cols; c += step) {
        float sum[N] = {};
        for (int64_t k = of.first; k <= of.last; k++) {
            const int64_t which = 2 * k + (k == of.first ? of.odd : 0);
            const pack<float, N> part = load_pack<float, N>(s.parts + which * s.p.cols + c);
#pragma unroll
            for (int i = 0; i < N; i++) sum[i] += part.value[i];
        }
        store_sum<T, N>(s, row, c, sum);
    }
}

/* ---- backward: launches ------------------------------------------------------------------------------------------ */

static unsigned grid_y(int64_t words, int64_t threads) { return grid_size(words, threads, MOST_GRID_Y); }

template <typename T, int N>
cudaError_t launch_sums(const liger_context *context, sums_problem s, cudaStream_t stream) {
    const int64_t words = s.p.cols / N, pieces = embedding_pieces(s.p.tokens, s.p.piece_bits);
    const dim3 block = block_for(words);
    s.part_blocks = pieces > 1 ? 2 * pieces : 0;
    s.key_blocks = blocks_for(s.p.tokens, most_of_block(block.y));
    const int64_t row_blocks = blocks_for(s.p.vocab - s.cleared, most_of_block(block.y));
    const dim3 grid(grid_size(s.part_blocks + s.key_blocks + row_blocks, 1), grid_y(words, block.x * PACKS_OF_ROW));
    const cudaError_t error = launch_next(context, write_rows<T, N>, grid, block, stream, s);
    if (error != cudaSuccess || pieces <= 1) return error;
    const dim3 joining((unsigned)(pieces - 1), grid_y(words, JOIN_THREADS));
    return launch_next(context, join_parts<T, N>, joining, dim3(JOIN_THREADS), stream, s);
}

} // namespace

extern "C" liger_status embedding_forward_cuda(liger_context *context, const embedding_forward_problem *problem,
                                               liger_stream given) {
    const embedding_forward_problem &p = *problem;
    const cudaStream_t stream = (cudaStream_t)given;
    LIGER_ON_DEVICE(context, "embedding_forward");
    const size_t element = liger_dtype_size(p.dtype);
    const bool packable =
        p.cols * element % PACK_BYTES == 0 && rows_are_packable(p.weight, element) && rows_are_packable(p.y, element);
    if (packable) launch_gather<uint4>(p, stream);
    else if (element == sizeof(float)) launch_gather<uint32_t>(p, stream);
    else launch_gather<uint16_t>(p, stream);
    return launched(context, "embedding_forward", given);
}

extern "C" liger_status embedding_backward_cuda(liger_context *context, const embedding_backward_problem *problem,
                                                liger_stream given) {
    const embedding_backward_problem &p = *problem;
    const cudaStream_t stream = (cudaStream_t)given;
    LIGER_ON_DEVICE(context, "embedding_backward");
    const size_t element = liger_dtype_size(p.dtype);
    const bool packable =
        p.cols * element % PACK_BYTES == 0 && rows_are_packable(p.dy, element) && rows_are_packable(p.dweight, element);
    sums_problem sums = {p, NULL, (float *)((char *)p.workspace + embedding_layout(p.tokens, p.cols).parts), 0, 0, 0};
    cudaError_t error = sort_tokens(context, packable, stream, &sums);
    if (error == cudaSuccess)
        LIGER_FOR_FLOAT(p.dtype, T, {
            error = packable ? launch_sums<T, pack_size<T>>(context, sums, stream)
                             : launch_sums<T, 1>(context, sums, stream);
        })
    LIGER_TRY(cuda_status(error, "embedding_backward"));
    return launched(context, "embedding_backward", given);
}
