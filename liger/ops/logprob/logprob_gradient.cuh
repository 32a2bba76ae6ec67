/* logprob_gradient.cuh - a slice of the logits becomes its gradient, element by element: bound by memory. A thread moves
 * a few packs of one row, so that what is the same for a row is worked out once for all of them. */
#ifndef LIGER_OPS_LOGPROB_GRADIENT_CUH
#define LIGER_OPS_LOGPROB_GRADIENT_CUH

#include "liger/cuda/launch.cuh"
#include "liger/cuda/pack.cuh"
#include "liger/cuda/vocab_rows.cuh"
#include "liger/ops/logprob/logprob_map.cuh"

namespace logprob {

struct gradient_problem : logits_gradient_problem {
    z_map to_z;
};

/* With e = 2^t, t the exponent of z relative to the row's maximum:
 *   dz = e·(by + by_exponent·t + by_term·e) + constant        by: by_target for the target, which gets `own` besides */
struct gradient_factors {
    softmax_unit unit;
    float most, by, by_target, by_exponent, by_term, constant, own; /* most: the maximum's exponent */
};

__device__ __forceinline__ gradient_factors gradient_factors_of(const logits_gradient_row &row) {
    gradient_factors f;
    f.unit = softmax_unit_of(row.max);
    const float max_exponent = f.most = softmax_exponent(row.max, f.unit);
    /* p = to_p·e and log p = ln·t + log_to_p */
    const float to_p = exp2f(-fmaf(row.log_sum, LOG2E, max_exponent));
    const float log_to_p = -fmaf(max_exponent, f.unit.ln, row.log_sum), moment = row.by_p_log_p * log_to_p;
    f.by = to_p * ((row.by_p - row.hit) + moment);
    f.by_target = to_p * (row.by_p + moment);
    f.by_exponent = to_p * row.by_p_log_p * f.unit.ln;
    f.by_term = to_p * to_p * row.by_p_squared;
    f.constant = row.constant;
    f.own = row.own;
    return f;
}

template <bool CAPPED>
__device__ __forceinline__ float dz_of(const z_map &to_z, const gradient_factors &f, float by, float logit) {
    const float again = softmax_exponent(z_of<CAPPED>(to_z, logit), f.unit); /* of logits that may be rounded up */
    const float t = again > f.most ? f.most : again, e = exp2_approx(t);
    return fmaf(e, fmaf(f.by_term, e, fmaf(f.by_exponent, bounded_exponent(t), by)), f.constant);
}

__device__ __forceinline__ bool is_zero(const logits_gradient_row &row) {
    return row.by_p == 0.0f && row.by_p_log_p == 0.0f && row.by_p_squared == 0.0f && row.constant == 0.0f &&
           row.hit == 0.0f && row.own == 0.0f;
}

/* What the selected ids that are this column get, and its class. */
__device__ __forceinline__ float of_column(const gradient_problem &p, const float *selected, float constant,
                                           int64_t column) {
    float sum = p.class_weight ? constant * p.class_weight[column] : 0.0f;
    if (selected)
        for (int32_t k = p.id_first[column]; k >= 0; k = p.id_next[k]) sum += selected[k];
    return sum;
}

/* The blocks of a row share out its whole packs, and the first one has the elements in front of them and behind them too. */
enum { GRADIENT_THREADS = 256, GRADIENT_PACKS = 4, GRADIENT_GRID_Y = 65535 };

/* A thread's packs: their distance, and how far the last one may be, in elements. */
template <typename T>
struct thread_packs {
    T *first;
    int64_t column; /* of the first one's first element */
    int step, end;

    __device__ __forceinline__ thread_packs(T *row, int64_t head, int64_t packs) {
        constexpr int N = pack_size<T>;
        const int64_t pack = (int64_t)blockIdx.x * (GRADIENT_PACKS * blockDim.x) + threadIdx.x;
        const int64_t left = (packs - pack) * N;
        step = (int)blockDim.x * N;
        end = (int)(left < GRADIENT_PACKS * step ? left : GRADIENT_PACKS * step);
        column = head + pack * N;
        first = row + column;
    }
    __device__ __forceinline__ bool has(int u) const { return u * step < end; }
};

/* Which of the elements outside of whole packs is this thread's; -1: none. */
template <typename T>
__device__ __forceinline__ int64_t edge_of(int64_t cols, int64_t head, int64_t packs) {
    const int64_t inside = packs * pack_size<T>;
    if (blockIdx.x != 0 || threadIdx.x >= cols - inside) return -1;
    return threadIdx.x < head ? threadIdx.x : inside + threadIdx.x;
}

template <typename T>
__device__ __forceinline__ void clear(const thread_packs<T> &packs) {
    pack<T, pack_size<T>> zeros;
    *(uint4 *)&zeros = make_uint4(0, 0, 0, 0);
#pragma unroll
    for (int u = 0; u < GRADIENT_PACKS; u++)
        if (packs.has(u)) store_pack(packs.first + u * packs.step, zeros);
}

template <typename T, bool CAPPED, bool BY_COLUMN>
struct gradient_row {
    const gradient_problem &p;
    const float *selected;
    float constant; /* of each class, where they have weights: then not among the factors */
    gradient_factors f;

    /* Of N elements; the own-th is the target, if there is one. */
    template <int N>
    __device__ __forceinline__ pack<T, N> of(const pack<T, N> &raw, int own, int64_t column) const {
        float logit[N], d[N];
        unpack(raw, logit);
#pragma unroll
        for (int k = 0; k < N; k++) d[k] = dz_of<CAPPED>(p.to_z, f, f.by, logit[k]);
        if ((unsigned)own < (unsigned)N) {
#pragma unroll
            for (int k = 0; k < N; k++)
                if (k == own) d[k] = dz_of<CAPPED>(p.to_z, f, f.by_target, logit[k]) + f.own;
        }
        if constexpr (BY_COLUMN) {
#pragma unroll
            for (int k = 0; k < N; k++) d[k] += of_column(p, selected, constant, p.first + column + k);
        }
#pragma unroll
        for (int k = 0; k < N; k++) d[k] *= slope_of<CAPPED>(p.to_z, logit[k]);
        pack<T, N> out;
        repack(d, out);
        return out;
    }

    __device__ __forceinline__ void write(const thread_packs<T> &packs, int64_t target) const {
        constexpr int N = pack_size<T>;
        const int64_t from_first = target - packs.column;
        const int own = from_first >= 0 && from_first < packs.end ? (int)from_first : -1;
        pack<T, N> raw[GRADIENT_PACKS];
#pragma unroll
        for (int u = 0; u < GRADIENT_PACKS; u++)
            if (packs.has(u)) raw[u] = load_pack<T, N>(packs.first + u * packs.step);
#pragma unroll
        for (int u = 0; u < GRADIENT_PACKS; u++)
            if (packs.has(u))
                store_pack(packs.first + u * packs.step,
                           of(raw[u], own - u * packs.step, packs.column + u * packs.step));
    }
};

template <typename T, bool CAPPED, bool BY_COLUMN>
__global__ void __launch_bounds__(GRADIENT_THREADS, 3) gradient_kernel(const __grid_constant__ gradient_problem p) {
    for (int64_t i = (int64_t)blockIdx.y * blockDim.y + threadIdx.y; i < p.rows; i += (int64_t)gridDim.y * blockDim.y) {
        const int64_t r = from_the_end(p.rows, i);
        const logits_gradient_row weights = p.weights[r];
        T *row = (T *)p.logits + r * p.logits_stride;
        const int64_t head = to_boundary(row, p.cols), packs = (p.cols - head) / pack_size<T>;
        const int64_t edge = edge_of<T>(p.cols, head, packs);
        if (weights.target < 0 || (!BY_COLUMN && is_zero(weights))) {
            if (edge >= 0) row[edge] = from_f32<T>(0.0f);
            clear(thread_packs<T>(row, head, packs));
            continue;
        }
        const int64_t of_batch = p.row_of ? p.row_of[r] : r;
        const float *selected = BY_COLUMN && p.selected ? p.selected + of_batch * p.selected_count : nullptr;
        gradient_row<T, CAPPED, BY_COLUMN> gradient = {p, selected, weights.constant, gradient_factors_of(weights)};
        if (BY_COLUMN && p.class_weight) gradient.f.constant = 0.0f;
        const int64_t target = weights.target - p.first;
        if (edge >= 0) store_pack(row + edge, gradient.of(load_pack<T, 1>(row + edge), edge == target ? 0 : -1, edge));
        gradient.write(thread_packs<T>(row, head, packs), target);
    }
}

/* Narrow slices have several rows to a block. */
template <typename T, bool CAPPED, bool BY_COLUMN>
void launch_gradient(const gradient_problem &p, cudaStream_t stream) {
    const int64_t packs = p.cols / pack_size<T>;
    unsigned x = GRADIENT_THREADS;
    while (x > WARP && (int64_t)x / 2 * GRADIENT_PACKS >= packs) x /= 2;
    const dim3 block(x, GRADIENT_THREADS / x);
    const dim3 grid(grid_size(packs, (int64_t)x * GRADIENT_PACKS), grid_size(p.rows, block.y, GRADIENT_GRID_Y));
    gradient_kernel<T, CAPPED, BY_COLUMN><<<grid, block, 0, stream>>>(p);
}

} // namespace logprob

#endif
