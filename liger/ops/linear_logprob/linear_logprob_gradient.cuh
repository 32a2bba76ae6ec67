/* linear_logprob_gradient.cuh - a slice of the logits becomes its gradient, element by element: bound by memory. A thread moves
 * a few packs of one row, so that what is the same for a row is worked out once for all of them. */
#ifndef LIGER_OPS_LINEAR_LOGPROB_GRADIENT_CUH
#define LIGER_OPS_LINEAR_LOGPROB_GRADIENT_CUH

#include "liger/cuda/launch.cuh"
#include "liger/cuda/pack.cuh"
#include "liger/cuda/vocab_rows.cuh"
#include "liger/ops/linear_logprob/linear_logprob_map.cuh"

namespace linear_logprob {

struct gradient_problem : logits_gradient_problem {
    z_map to_z;
};

/* With e = 2^t, t the exponent of z relative to the row's maximum:
 *   dz = e·(by + by_exponent·t + by_term·e) + constant        by: by_target for the target, which gets `own` besides */
struct gradient_factors {
    softmax_unit unit;
    float by, by_target, by_exponent, by_term, constant, own;
};

__device__ __forceinline__ gradient_factors gradient_factors_of(const logits_gradient_row &row) {
    gradient_factors f;
    f.unit = softmax_unit_of(row.max);
    const float max_exponent = softmax_exponent(row.max, f.unit);
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
    const float t = softmax_exponent(z_of<CAPPED>(to_z, logit), f.unit), e = exp2_approx(t);
    return fmaf(e, fmaf(f.by_term, e, fmaf(f.by_exponent, bounded_exponent(t), by)), f.constant);
}

__device__ __forceinline__ bool is_zero(const logits_gradient_row &row) {
    return row.by_p == 0.0f && row.by_p_log_p == 0.0f && row.by_p_squared == 0.0f && row.constant == 0.0f &&
           row.hit == 0.0f && row.own == 0.0f;
}

/* What the selected ids that are this column get. */
__device__ __forceinline__ float selected_sum(const gradient_problem &p, const float *selected, int64_t column) {
    float sum = 0.0f;
    for (int32_t k = p.id_first[column]; k >= 0; k = p.id_next[k]) sum += selected[k];
    return sum;
}

/* A row of the slice as its threads see it: elements up to a boundary of 16 bytes, whole packs, and the rest. The blocks of
 * a row share out the packs; the first one has the other elements too. */
enum { GRADIENT_THREADS = 256, GRADIENT_PACKS = 4, GRADIENT_GRID_Y = 65535 };

template <typename T>
struct row_walk {
    static constexpr int N = pack_size<T>;
    int64_t head, packs, first, edge;

    __device__ __forceinline__ row_walk(const T *row, int64_t cols) {
        head = to_boundary(row, cols);
        packs = (cols - head) / N;
        first = (int64_t)blockIdx.x * (GRADIENT_PACKS * blockDim.x) + threadIdx.x;
        const bool has_edge = blockIdx.x == 0 && threadIdx.x < cols - packs * N;
        edge = has_edge ? (threadIdx.x < head ? threadIdx.x : packs * N + threadIdx.x) : -1;
    }
    __device__ __forceinline__ bool has(int u) const { return first + u * blockDim.x < packs; }
    __device__ __forceinline__ int64_t element(int u) const { return head + (first + u * blockDim.x) * N; }
};

template <typename T>
__device__ __forceinline__ void clear_row(T *row, const row_walk<T> &walk) {
    pack<T, pack_size<T>> zeros;
    *(uint4 *)&zeros = make_uint4(0, 0, 0, 0);
#pragma unroll
    for (int u = 0; u < GRADIENT_PACKS; u++)
        if (walk.has(u)) store_pack(row + walk.element(u), zeros);
    if (walk.edge >= 0) row[walk.edge] = from_f32<T>(0.0f);
}

template <typename T, bool CAPPED, bool SELECTED>
struct gradient_row {
    const gradient_problem &p;
    T *row;
    int64_t target; /* in the slice, if it is there */
    const float *selected;
    gradient_factors f;

    template <int N>
    __device__ __forceinline__ pack<T, N> of(const pack<T, N> &raw, int64_t i) const {
        float logit[N], d[N];
        unpack(raw, logit);
#pragma unroll
        for (int k = 0; k < N; k++) d[k] = dz_of<CAPPED>(p.to_z, f, f.by, logit[k]);
        if ((uint64_t)(target - i) < (uint64_t)N) {
#pragma unroll
            for (int k = 0; k < N; k++)
                if (i + k == target) d[k] = dz_of<CAPPED>(p.to_z, f, f.by_target, logit[k]) + f.own;
        }
        if constexpr (SELECTED) {
#pragma unroll
            for (int k = 0; k < N; k++) d[k] += selected_sum(p, selected, p.first + i + k);
        }
#pragma unroll
        for (int k = 0; k < N; k++) d[k] *= slope_of<CAPPED>(p.to_z, logit[k]);
        pack<T, N> out;
        repack(d, out);
        return out;
    }

    __device__ __forceinline__ void write(const row_walk<T> &walk) const {
        constexpr int N = pack_size<T>;
        pack<T, N> raw[GRADIENT_PACKS];
#pragma unroll
        for (int u = 0; u < GRADIENT_PACKS; u++)
            if (walk.has(u)) raw[u] = load_pack<T, N>(row + walk.element(u));
#pragma unroll
        for (int u = 0; u < GRADIENT_PACKS; u++)
            if (walk.has(u)) store_pack(row + walk.element(u), of(raw[u], walk.element(u)));
        if (walk.edge >= 0) store_pack(row + walk.edge, of(load_pack<T, 1>(row + walk.edge), walk.edge));
    }
};

template <typename T, bool CAPPED, bool SELECTED>
__global__ void __launch_bounds__(GRADIENT_THREADS) gradient_kernel(const __grid_constant__ gradient_problem p) {
    for (int64_t i = (int64_t)blockIdx.y * blockDim.y + threadIdx.y; i < p.rows; i += (int64_t)gridDim.y * blockDim.y) {
        const int64_t r = vocab_rows::from_the_end(p.rows, i);
        const logits_gradient_row weights = p.weights[r];
        T *row = (T *)p.logits + r * p.logits_stride;
        const row_walk<T> walk(row, p.cols);
        if (weights.target < 0 || (!SELECTED && is_zero(weights))) {
            clear_row(row, walk);
            continue;
        }
        const float *selected = SELECTED ? p.selected + (p.row_of ? p.row_of[r] : r) * p.selected_count : nullptr;
        gradient_row<T, CAPPED, SELECTED>{p, row, weights.target - p.first, selected, gradient_factors_of(weights)}
            .write(walk);
    }
}

/* Narrow slices have several rows to a block. */
template <typename T, bool CAPPED, bool SELECTED>
void launch_gradient(const gradient_problem &p, cudaStream_t stream) {
    const int64_t packs = p.cols / pack_size<T>;
    unsigned x = GRADIENT_THREADS;
    while (x > WARP && (int64_t)x / 2 * GRADIENT_PACKS >= packs) x /= 2;
    const dim3 block(x, GRADIENT_THREADS / x);
    const dim3 grid(grid_size(packs, (int64_t)x * GRADIENT_PACKS), grid_size(p.rows, block.y, GRADIENT_GRID_Y));
    gradient_kernel<T, CAPPED, SELECTED><<<grid, block, 0, stream>>>(p);
}

} // namespace linear_logprob

#endif
