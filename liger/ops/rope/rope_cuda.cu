/* rope_cuda.cu - RoPE on the GPU: one read and one write of q and k, whatever their strides.
 *
 * A thread rotates one pack of the first half of a head and its partner in the second half, or copies one pack behind the
 * rotated ones, and is done: many short threads come closest to the speed of a copy. (Two heads a thread, which share the
 * angles, need twice the registers and took 5 % longer; walking tokens with the next one's loads on the way took more.)
 * Threads count through the packs of a head, its heads and the tokens of a batch, first of q and then of k.
 *
 * A pack has its angles in one plane: where a section is not of whole packs, a thread takes single elements.
 *
 * Forward and backward differ in the sign of sin. Products and sum are separate instructions, as on the CPU: the same bits. */
#include "liger/cuda/divide.cuh"
#include "liger/cuda/launch.cuh"
#include "liger/cuda/pack.cuh"
#include "liger/ops/rope/rope_problem.h"

namespace {

enum { THREADS = 128, BLOCKS = 10, MAX_GRID_Y = 65535 }; /* BLOCKS on a multiprocessor: 40 registers are enough */

/* q or k, and how threads find their places in it. */
struct side {
    rope_heads in, out;
    divisor heads;
    unsigned blocks;
};

struct geometry {
    side q, k;
    divisor items; /* of a head: one for each of the `pairs` of packs, and one for each pack that is only copied */
    unsigned pairs;
};

/* What a kernel is compiled for: forward, backward, either with operands rounded to a narrower dtype first, and any of these
 * with a plane of angles for each section of a head. */
enum variant { FORWARD, INVERSE, ROUNDED, SECTIONS };

/* As loaded: they are widened after the head's loads have been issued, so that one latency covers both. */
template <typename TT, int N>
struct angles {
    pack<TT, N> cos, sin;
};

template <typename TT, int N, variant V>
__device__ __forceinline__ angles<TT, N> load_angles(const rope_problem &p, int64_t batch, int64_t s, int64_t i) {
    const TT *cos = (const TT *)p.cos + batch * p.cos_batch_stride + s * p.cos_seq_stride + i;
    const TT *sin = (const TT *)p.sin + batch * p.sin_batch_stride + s * p.sin_seq_stride + i;
    if (V == SECTIONS) {
        const int64_t plane = (i >= p.first[1]) + (i >= p.first[2]);
        cos += plane * p.cos_plane_stride, sin += plane * p.sin_plane_stride;
    }
    return {load_shared<TT, N>(cos), load_shared<TT, N>(sin)};
}

__device__ __forceinline__ void round_operands(const rope_problem &p, float &a, float &b) {
    a = round_to_dtype(p.operand_dtype, a);
    b = round_to_dtype(p.operand_dtype, b);
}

/* The two packs become their rotation. */
template <typename T, typename TT, int N, variant V>
__device__ __forceinline__ void rotate(const rope_problem &p, const angles<TT, N> &by, pack<T, N> &low,
                                       pack<T, N> &high) {
    float cos[N], sin[N], a[N], b[N];
    unpack(by.cos, cos);
    unpack(by.sin, sin);
    unpack(low, a);
    unpack(high, b);
    if (V == SECTIONS && p.operand_dtype != LIGER_F32) { /* seldom: one branch around all of it */
#pragma unroll
        for (int k = 0; k < N; k++) round_operands(p, a[k], b[k]);
    }
#pragma unroll
    for (int k = 0; k < N; k++) {
        if (V == ROUNDED) round_operands(p, a[k], b[k]);
        const float s = V == INVERSE || (V >= ROUNDED && p.inverse) ? -sin[k] : sin[k], first = a[k];
        a[k] = __fsub_rn(__fmul_rn(first, cos[k]), __fmul_rn(b[k], s));
        b[k] = __fadd_rn(__fmul_rn(b[k], cos[k]), __fmul_rn(first, s));
    }
    repack(a, low);
    repack(b, high);
}

template <typename T>
__device__ __forceinline__ T *head_of(const rope_heads &x, int64_t s, unsigned head) {
    return (T *)x.data + blockIdx.y * x.batch_stride + s * x.seq_stride + head * x.head_stride;
}

template <typename T, typename TT, int N, variant V>
__device__ __forceinline__ void rotate_side(const rope_problem &p, const geometry &g, const side &x, unsigned thread) {
    const unsigned row = quotient(thread, g.items), item = thread - row * g.items.value;
    const unsigned s = quotient(row, x.heads), head = row - s * x.heads.value;
    if (s >= p.seq) return;
    const T *in = head_of<const T>(x.in, s, head);
    T *out = head_of<T>(x.out, s, head);
    if (item < g.pairs) {
        in += item * N, out += item * N;
        pack<T, N> low = load_pack<T, N>(in), high = load_pack<T, N>(in + p.half);
        rotate<T, TT, N, V>(p, load_angles<TT, N, V>(p, blockIdx.y, s, item * N), low, high);
        store_pack<T, N>(out, low);
        store_pack<T, N>(out + p.half, high);
    } else if (in != out) {
        const int64_t i = 2 * p.half + (item - g.pairs) * N;
        store_pack<T, N>(out + i, load_pack<T, N>(in + i));
    }
}

template <typename T, typename TT, int N, variant V>
__global__ void __launch_bounds__(THREADS, at_most_blocks(BLOCKS, THREADS))
    rope_kernel(const __grid_constant__ rope_problem p, const __grid_constant__ geometry g) {
    let_next_kernel_start();
    wait_for_previous_kernel();
    if (blockIdx.x < g.q.blocks) rotate_side<T, TT, N, V>(p, g, g.q, blockIdx.x * THREADS + threadIdx.x);
    else rotate_side<T, TT, N, V>(p, g, g.k, (blockIdx.x - g.q.blocks) * THREADS + threadIdx.x);
}

bool heads_are_packable(const rope_heads &x, size_t element) {
    const int64_t strides = x.batch_stride | x.head_stride | x.seq_stride;
    return ((uintptr_t)x.data | (uintptr_t)(strides * (int64_t)element)) % PACK_BYTES == 0;
}

bool is_packable(const rope_problem &p) {
    const size_t element = liger_dtype_size(p.dtype), angle = liger_dtype_size(p.table_dtype);
    const int64_t tables = p.cos_plane_stride | p.cos_batch_stride | p.cos_seq_stride | p.sin_plane_stride |
                           p.sin_batch_stride | p.sin_seq_stride;
    const int64_t sections = p.first[1] | p.first[2];
    return (sections * element) % PACK_BYTES == 0 && (p.half * element) % PACK_BYTES == 0 &&
           (p.dim * element) % PACK_BYTES == 0 && heads_are_packable(p.q, element) &&
           heads_are_packable(p.k, element) && heads_are_packable(p.q_out, element) &&
           heads_are_packable(p.k_out, element) && pointer_is_packable(p.cos) && pointer_is_packable(p.sin) &&
           (uintptr_t)(tables * (int64_t)angle) % PACK_BYTES == 0;
}

int64_t at_most(int64_t n, int64_t most) { return n < most ? n : most; }

side side_of(const rope_heads &in, const rope_heads &out, int64_t seq, int64_t heads, int64_t items) {
    return {in, out, divide_by((unsigned)heads), heads ? grid_size(seq * heads * items, THREADS) : 0};
}

/* Part of the problem: batches from `batch`, tokens from `token` and heads from `head`, at most so many, or what there is. */
struct part {
    int64_t batch, batches, token, tokens, head, heads;
};

rope_problem part_of(rope_problem p, const part &of) {
    const int64_t element = (int64_t)liger_dtype_size(p.dtype), angle = (int64_t)liger_dtype_size(p.table_dtype);
    for (rope_heads *x : {&p.q, &p.k, &p.q_out, &p.k_out})
        if (x->data)
            x->data = (char *)x->data +
                      (of.batch * x->batch_stride + of.token * x->seq_stride + of.head * x->head_stride) * element;
    p.cos = (const char *)p.cos + (of.batch * p.cos_batch_stride + of.token * p.cos_seq_stride) * angle;
    p.sin = (const char *)p.sin + (of.batch * p.sin_batch_stride + of.token * p.sin_seq_stride) * angle;
    p.batch = at_most(p.batch - of.batch, of.batches), p.seq = at_most(p.seq - of.token, of.tokens);
    for (int64_t *heads : {&p.q_heads, &p.k_heads}) *heads = *heads > of.head ? at_most(*heads - of.head, of.heads) : 0;
    return p;
}

template <typename T, typename TT, int N>
void launch_part(const liger_context *context, const rope_problem &p, int64_t pairs, int64_t items,
                 cudaStream_t stream) {
    const geometry g = {side_of(p.q, p.q_out, p.seq, p.q_heads, items), side_of(p.k, p.k_out, p.seq, p.k_heads, items),
                        divide_by((unsigned)items), (unsigned)pairs};
    const dim3 grid(g.q.blocks + g.k.blocks, (unsigned)p.batch);
    const auto kernel = p.planes > 1                   ? rope_kernel<T, TT, N, SECTIONS>
                        : p.operand_dtype != LIGER_F32 ? rope_kernel<T, TT, N, ROUNDED>
                        : p.inverse                    ? rope_kernel<T, TT, N, INVERSE>
                                                       : rope_kernel<T, TT, N, FORWARD>;
    launch_next(context, kernel, grid, THREADS, stream, p, g);
}

/* A launch counts through the heads and tokens of a batch in 31 bits and through batches in grid.y: one launch is enough for
 * whatever fits into a GPU today, unless there are 65536 batches or 2^30 heads. */
template <typename T, typename TT, int N>
liger_status launch(const liger_context *context, const rope_problem &p, const char *op, cudaStream_t stream) {
    const int64_t pairs = p.half / N, items = pairs + (p.dim - 2 * p.half) / N;
    const int64_t most = MOST_DIVIDENDS / 2, all = p.q_heads > p.k_heads ? p.q_heads : p.k_heads;
    if (all * items == 0) return LIGER_OK;
    LIGER_REQUIRE(p.dim <= most, LIGER_ERR_UNSUPPORTED,
                  "%s: q.shape[3] is %lld, but a head may have %lld elements at most", op, (long long)p.dim,
                  (long long)most);
    const int64_t heads = at_most(all, most / items), tokens = most / (heads * items);
    for (int64_t batch = 0; batch < p.batch; batch += MAX_GRID_Y)
        for (int64_t token = 0; token < p.seq; token += tokens)
            for (int64_t head = 0; head < all; head += heads)
                launch_part<T, TT, N>(context, part_of(p, {batch, MAX_GRID_Y, token, tokens, head, heads}), pairs,
                                      items, stream);
    return LIGER_OK;
}

liger_status run(const liger_context *context, const rope_problem &p, const char *op, liger_stream stream) {
    LIGER_ON_DEVICE(context, op);
    const bool packable = is_packable(p);
    LIGER_FOR_FLOAT_AND_WEIGHT(p.dtype, p.table_dtype, T, TT,
                               if (packable)
                                   LIGER_TRY((launch<T, TT, pack_size<T>>(context, p, op, (cudaStream_t)stream)));
                               else LIGER_TRY((launch<T, TT, 1>(context, p, op, (cudaStream_t)stream))));
    return launched(context, op, stream);
}

} // namespace

extern "C" liger_status rope_forward_cuda(liger_context *context, const rope_forward_problem *problem,
                                          liger_stream stream) {
    return run(context, problem->rope, "rope_forward", stream);
}

extern "C" liger_status rope_backward_cuda(liger_context *context, const rope_backward_problem *problem,
                                           liger_stream stream) {
    return run(context, problem->rope, "rope_backward", stream);
}
