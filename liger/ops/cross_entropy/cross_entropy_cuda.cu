/* cross_entropy_cuda.cu - cross entropy on CUDA: count, rows, reduce, and which row kernel a shape gets. */
#include "liger/core/kernel_table.h"
#include "liger/cuda/launch.cuh"
#include "liger/cuda/shared_memory.cuh"
#include "liger/ops/cross_entropy/cross_entropy_loss.cuh"
#include "liger/ops/cross_entropy/cross_entropy_resident.cuh"
#include "liger/ops/cross_entropy/cross_entropy_streamed.cuh"

namespace cross_entropy {

/* ---- count and reduce: one block, so that the order of every sum is fixed ------------------------------------------ */

enum { ONE_BLOCK = 1024 };

template <typename S>
__device__ __forceinline__ S warp_total(S x) {
    for (int offset = WARP / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffu, x, offset);
    return x;
}
template <typename S>
__device__ S block_total(S x) {
    __shared__ S slots[ONE_BLOCK / WARP];
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    x = warp_total(x);
    __syncthreads(); /* the slots' last readers are done */
    if (lane == 0) slots[warp] = x;
    __syncthreads();
    return warp_total(slots[lane]);
}

__global__ void __launch_bounds__(ONE_BLOCK) count_kernel(const cross_entropy_count_problem p) {
    int valid = 0;
    float weight_sum = 0.0f, class_total = 0.0f;
#pragma unroll 8
    for (int64_t r = threadIdx.x; r < p.rows; r += ONE_BLOCK) {
        const int64_t y =
            p.target_dtype == LIGER_I32 ? (int64_t)((const int32_t *)p.target)[r] : ((const int64_t *)p.target)[r];
        if (y == p.ignore_index) continue;
        valid++;
        if (p.weight && y >= 0 && y < p.vocab) weight_sum += p.weight[y];
    }
    if (p.weight) {
#pragma unroll 8
        for (int64_t j = threadIdx.x; j < p.vocab; j += ONE_BLOCK) class_total += p.weight[j];
    }
    const float valid_rows = (float)block_total((long long)valid);
    weight_sum = block_total(weight_sum);
    class_total = block_total(class_total);
    if (threadIdx.x == 0) *p.counts = {valid_rows, p.weight ? weight_sum : valid_rows, class_total, 0.0f};
}

__device__ __forceinline__ void store_as(void *out, liger_dtype dtype, int64_t i, float x) {
    if (dtype == LIGER_F32) ((float *)out)[i] = x;
    else if (dtype == LIGER_F16) ((f16 *)out)[i] = from_f32<f16>(x);
    else ((bf16 *)out)[i] = from_f32<bf16>(x);
}

__device__ float sum_rows(const float *values, int64_t rows) {
    float sum = 0.0f;
#pragma unroll 8
    for (int64_t r = threadIdx.x; r < rows; r += ONE_BLOCK) sum += values[r];
    return block_total(sum);
}

__global__ void __launch_bounds__(ONE_BLOCK) reduce_kernel(const cross_entropy_reduce_problem p) {
    const float loss = p.loss ? sum_rows(p.loss, p.rows) : 0.0f;
    const float z = p.z_loss ? sum_rows(p.z_loss, p.rows) : 0.0f;
    const float hits = p.accuracy ? sum_rows(p.accuracy, p.rows) : 0.0f;
    if (threadIdx.x != 0) return;
    if (p.loss && p.loss_out) store_as(p.loss_out, p.loss_dtype, 0, loss);
    if (p.z_loss && p.z_loss_out) store_as(p.z_loss_out, p.z_loss_dtype, 0, z);
    if (p.accuracy && p.accuracy_out) *p.accuracy_out = p.rows > 0 ? hits / p.counts->valid : 0.0f;
}

__global__ void round_rows_kernel(const cross_entropy_reduce_problem p) {
    const int64_t r = blockIdx.x * (int64_t)blockDim.x + threadIdx.x;
    if (r >= p.rows) return;
    if (p.loss && p.loss_out) store_as(p.loss_out, p.loss_dtype, r, p.loss[r]);
    if (p.z_loss && p.z_loss_out) store_as(p.z_loss_out, p.z_loss_dtype, r, p.z_loss[r]);
    if (p.accuracy && p.accuracy_out) p.accuracy_out[r] = p.accuracy[r];
}

/* ---- rows: which kernel, how many blocks --------------------------------------------------------------------------- */

struct shape {
    int clusters, threads; /* blocks per row and threads per block; 0 = this row does not fit */
    size_t shared;
};

constexpr size_t shared_bytes(const shape &s, bool options) {
    const size_t slot = options ? sizeof(summary) : sizeof(softmax_state);
    return (size_t)RING * VECTORS * s.threads * PACK_BYTES + TURNS * slot * s.clusters * (s.threads / WARP);
}

constexpr int64_t threads_for(int64_t vectors) { return (vectors + VECTORS - 1) / VECTORS; }

/* One block if it holds the row, else the smallest cluster of blocks of 1024 threads (512 with options, which need more
 * registers): the fewer blocks share a row, the less each row costs besides its bytes. */
constexpr shape choose_shape(size_t available, bool clusters, int64_t vectors, bool options) {
    const int64_t threads = threads_for(vectors);
    const int widest = options ? OPTIONS_THREADS : MOST_THREADS, most = clusters ? MAX_CLUSTER : 1;
    shape s = {1, threads <= 128 && !options ? 128 : threads <= 512 ? 512 : widest, 0};
    while (s.clusters < most && threads > (int64_t)s.clusters * s.threads) s.clusters++;
    s.shared = shared_bytes(s, options);
    if (threads > (int64_t)s.clusters * s.threads || s.shared > available) return {0, 0, 0};
    return s;
}

/* On every architecture, for rows around every size at which the choice may change. */
constexpr bool shapes_fit() {
    for (const architecture &a : ARCHITECTURES)
        for (int64_t threads = 128; threads <= MAX_CLUSTER * MOST_THREADS; threads += 128)
            for (int options = 0; options <= 1; options++)
                for (int64_t vectors = threads * VECTORS; vectors <= threads * VECTORS + 1; vectors++) {
                    const shape s = choose_shape(dynamic_shared(a.shared), a.number >= 90, vectors, options);
                    if (s.clusters && STATIC_SHARED + s.shared > a.shared) return false;
                    if (s.clusters && (int64_t)s.clusters * s.threads * VECTORS < vectors) return false;
                }
    return true;
}
static_assert(shapes_fit(), "a row kernel asks for more shared memory than there is");

static bool packable(const problem &p, size_t element) {
    uintptr_t bits =
        (uintptr_t)p.logits | (uintptr_t)(p.logits_stride * (int64_t)element) | (uintptr_t)(p.vocab * (int64_t)element);
    if (p.dlogits) bits |= (uintptr_t)p.dlogits | (uintptr_t)(p.dlogits_stride * (int64_t)element);
    return bits % PACK_BYTES == 0;
}

static shape shape_of(const liger_context *context, const problem &p, bool options) {
    const size_t element = liger_dtype_size(p.dtype);
    if (!packable(p, element) || p.rows > MOST_ROWS) return {0, 0, 0};
    return choose_shape(dynamic_shared_of(context), context->cuda->clusters, p.vocab / (int64_t)(PACK_BYTES / element),
                        options);
}

typedef void row_kernel(problem);

/* How many clusters (or single blocks) of a kernel run at once on the whole device; 0: it has no room for one. Asking costs
 * more host time than the launch, so that the answer is kept. A kernel's shared memory depends on its clusters alone. */
template <row_kernel *kernel>
static cudaError_t find_at_once(const liger_context *context, const cudaLaunchConfig_t &config, int clusters,
                                int *at_once) {
    enum { DEVICES = 64 };                      /* those beyond are asked each time */
    static int known[DEVICES][MAX_CLUSTER + 1]; /* one more than the answer; 0: not asked yet */
    int *const place = context->device < DEVICES ? &known[context->device][clusters] : nullptr;
    *at_once = place ? __atomic_load_n(place, __ATOMIC_RELAXED) - 1 : -1;
    if (*at_once >= 0) return cudaSuccess;
    cudaError_t error = allow_shared_memory<kernel>(context, config.dynamicSmemBytes);
    if (error != cudaSuccess) return error;
    if (clusters > 1) {
        error = cudaOccupancyMaxActiveClusters(at_once, kernel, &config);
    } else {
        error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(at_once, kernel, (int)config.blockDim.x,
                                                              config.dynamicSmemBytes);
        *at_once *= context->cuda->multiprocessors;
    }
    if (error == cudaSuccess && place) __atomic_store_n(place, *at_once + 1, __ATOMIC_RELAXED);
    return error;
}

/* *done: false if the device has no room for such a cluster; nothing was launched then. */
template <row_kernel *kernel>
static cudaError_t launch_resident(const liger_context *context, const problem &p, const shape &s, cudaStream_t stream,
                                   bool *done) {
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = s.clusters;
    attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(s.clusters);
    config.blockDim = dim3(s.threads);
    config.dynamicSmemBytes = s.shared;
    config.stream = stream;
    config.attrs = &attribute;
    config.numAttrs = s.clusters > 1;
    /* As many clusters as run at once: each takes its share of the rows and prefetches through it. */
    int at_once = 0;
    const cudaError_t error = find_at_once<kernel>(context, config, s.clusters, &at_once);
    *done = at_once >= 1;
    if (error != cudaSuccess || !*done) return error;
    config.gridDim = dim3(s.clusters * (unsigned)(p.rows < at_once ? p.rows : at_once));
    return cudaLaunchKernelEx(&config, kernel, p);
}

template <typename T>
static cudaError_t launch_shape(const liger_context *context, const problem &p, const shape &s, bool options,
                                cudaStream_t stream, bool *done) {
    if (options && s.clusters > 1)
        return launch_resident<resident_kernel<T, true, 512, true>>(context, p, s, stream, done);
    if (options) return launch_resident<resident_kernel<T, true, 512, false>>(context, p, s, stream, done);
    if (s.clusters > 1) return launch_resident<resident_kernel<T, false, 1024, true>>(context, p, s, stream, done);
    if (s.threads == 128) return launch_resident<resident_kernel<T, false, 128, false>>(context, p, s, stream, done);
    if (s.threads == 512) return launch_resident<resident_kernel<T, false, 512, false>>(context, p, s, stream, done);
    return launch_resident<resident_kernel<T, false, 1024, false>>(context, p, s, stream, done);
}

template <typename T>
static cudaError_t launch_rows(const liger_context *context, const problem &p, cudaStream_t stream) {
    const bool options = p.softcap > 0 || p.label_smoothing > 0 || p.accuracy || p.predicted;
    if (!p.dlogits && !options && packable(p, sizeof(T)) && p.rows <= INT32_MAX) {
        loss_kernel<T><<<(unsigned)p.rows, LOSS_THREADS, 0, stream>>>(p);
        return cudaSuccess;
    }
    const shape s = shape_of(context, p, options);
    bool done = false;
    const cudaError_t error = s.clusters ? launch_shape<T>(context, p, s, options, stream, &done) : cudaSuccess;
    if (error != cudaSuccess || done) return error;
    streamed_kernel<T><<<grid_size(p.rows, 1), STREAMED_THREADS, 0, stream>>>(p);
    return cudaSuccess;
}

} // namespace cross_entropy

extern "C" liger_status cross_entropy_count_cuda(liger_context *context,
                                                 const struct cross_entropy_count_problem *problem,
                                                 liger_stream stream) {
    LIGER_ON_DEVICE(context, "cross_entropy_count");
    cross_entropy::count_kernel<<<1, cross_entropy::ONE_BLOCK, 0, (cudaStream_t)stream>>>(*problem);
    return launched(context, "cross_entropy_count", stream);
}

extern "C" liger_status cross_entropy_rows_cuda(liger_context *context,
                                                const struct cross_entropy_rows_problem *problem, liger_stream stream) {
    if (problem->rows == 0) return LIGER_OK;
    LIGER_ON_DEVICE(context, "cross_entropy_rows");
    cudaError_t error = cudaSuccess;
    LIGER_FOR_FLOAT(problem->dtype, T, error = cross_entropy::launch_rows<T>(context, *problem, (cudaStream_t)stream))
    LIGER_TRY(cuda_status(error, "cross_entropy_rows"));
    return launched(context, "cross_entropy_rows", stream);
}

extern "C" liger_status cross_entropy_reduce_cuda(liger_context *context,
                                                  const struct cross_entropy_reduce_problem *problem,
                                                  liger_stream stream) {
    LIGER_ON_DEVICE(context, "cross_entropy_reduce");
    if (problem->unreduced) {
        if (problem->rows == 0) return LIGER_OK;
        cross_entropy::round_rows_kernel<<<grid_size(problem->rows, 256), 256, 0, (cudaStream_t)stream>>>(*problem);
    } else {
        cross_entropy::reduce_kernel<<<1, cross_entropy::ONE_BLOCK, 0, (cudaStream_t)stream>>>(*problem);
    }
    return launched(context, "cross_entropy_reduce", stream);
}
