/* cross_entropy_cuda.cu - cross entropy on CUDA: count, rows, reduce, and which row kernel a shape gets. */
#include <pthread.h>

#include "liger/core/kernel_table.h"
#include "liger/cuda/launch.cuh"
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

static size_t shared_bytes(const shape &s, bool options) {
    const size_t slot = options ? sizeof(summary) : sizeof(softmax_state);
    return (size_t)RING * VECTORS * s.threads * PACK_BYTES + TURNS * slot * s.clusters * (s.threads / WARP);
}

static bool packable(const problem &p, size_t element) {
    uintptr_t bits =
        (uintptr_t)p.logits | (uintptr_t)(p.logits_stride * (int64_t)element) | (uintptr_t)(p.vocab * (int64_t)element);
    if (p.dlogits) bits |= (uintptr_t)p.dlogits | (uintptr_t)(p.dlogits_stride * (int64_t)element);
    return bits % PACK_BYTES == 0;
}

static int64_t threads_for(int64_t vectors) { return (vectors + VECTORS - 1) / VECTORS; }

/* One block if it holds the row, else the smallest cluster of blocks of 1024 threads (512 with options, which need more
 * registers): the fewer blocks share a row, the less each row costs besides its bytes. */
static shape shape_of(const liger_context *context, const problem &p, bool options) {
    const size_t element = liger_dtype_size(p.dtype);
    const int64_t threads = threads_for(p.vocab / (int64_t)(PACK_BYTES / element));
    const int widest = options ? OPTIONS_THREADS : MOST_THREADS, most = context->cuda->clusters ? MAX_CLUSTER : 1;
    if (!packable(p, element) || p.rows > MOST_ROWS) return {};
    shape s = {1, threads <= 128 && !options ? 128 : threads <= 512 ? 512 : widest, 0};
    while (s.clusters < most && threads > (int64_t)s.clusters * s.threads) s.clusters++;
    const size_t available = (size_t)context->cuda->shared_memory_per_block - STATIC_SHARED;
    s.shared = shared_bytes(s, options);
    if (threads > (int64_t)s.clusters * s.threads || s.shared > available) return {};
    return s;
}

typedef void row_kernel(problem);

template <typename T>
static row_kernel *kernel_for(shape s, bool options) {
    if (options) return s.clusters > 1 ? resident_kernel<T, true, 512, true> : resident_kernel<T, true, 512, false>;
    if (s.clusters > 1) return resident_kernel<T, false, 1024, true>;
    if (s.threads == 128) return resident_kernel<T, false, 128, false>;
    return s.threads == 512 ? resident_kernel<T, false, 512, false> : resident_kernel<T, false, 1024, false>;
}

/* What was found out about a kernel on a device: asking costs more host time than the launch. */
struct residency {
    row_kernel *kernel;
    int device, clusters, at_once; /* clusters (or blocks) that run at once on the whole device */
};
enum { RESIDENCIES = 64 };

static cudaError_t find_residency(const liger_context *context, const cudaLaunchConfig_t &config, const shape &s,
                                  residency &found) {
    cudaError_t error = cudaFuncSetAttribute(found.kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)s.shared);
    if (error != cudaSuccess) return error;
    if (s.clusters > 1) return cudaOccupancyMaxActiveClusters(&found.at_once, found.kernel, &config);
    error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&found.at_once, found.kernel, s.threads, s.shared);
    found.at_once *= context->cuda->multiprocessors;
    return error;
}

/* The shared memory of a kernel depends on nothing but its clusters, so that these two and the device are the key. */
static cudaError_t residency_of(const liger_context *context, row_kernel *kernel, const cudaLaunchConfig_t &config,
                                const shape &s, int *at_once) {
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    static residency known[RESIDENCIES];
    static int count;
    residency wanted = {kernel, context->device, s.clusters, 0};
    cudaError_t error = cudaSuccess;
    pthread_mutex_lock(&lock);
    int i = 0;
    while (i < count &&
           (known[i].kernel != kernel || known[i].device != wanted.device || known[i].clusters != wanted.clusters))
        i++;
    if (i < count) {
        wanted = known[i];
    } else {
        error = find_residency(context, config, s, wanted);
        if (error == cudaSuccess && count < RESIDENCIES) known[count++] = wanted;
    }
    pthread_mutex_unlock(&lock);
    *at_once = wanted.at_once;
    return error;
}

static cudaError_t launch_resident(const liger_context *context, row_kernel *kernel, const problem &p, shape s,
                                   liger_stream stream) {
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = s.clusters;
    attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(s.clusters);
    config.blockDim = dim3(s.threads);
    config.dynamicSmemBytes = s.shared;
    config.stream = (cudaStream_t)stream;
    config.attrs = &attribute;
    config.numAttrs = s.clusters > 1;
    /* As many clusters as run at once: each takes its share of the rows and prefetches through it. */
    int at_once = 0;
    const cudaError_t error = residency_of(context, kernel, config, s, &at_once);
    if (error != cudaSuccess) return error;
    if (at_once < 1) return cudaErrorLaunchOutOfResources;
    config.gridDim = dim3(s.clusters * (unsigned)(p.rows < at_once ? p.rows : at_once));
    return cudaLaunchKernelEx(&config, kernel, p);
}

template <typename T>
static cudaError_t launch_rows(const liger_context *context, const problem &p, liger_stream stream) {
    const bool options = p.softcap > 0 || p.label_smoothing > 0 || p.accuracy || p.predicted;
    if (!p.dlogits && !options && packable(p, sizeof(T)) && p.rows <= INT32_MAX) {
        loss_kernel<T><<<(unsigned)p.rows, LOSS_THREADS, 0, (cudaStream_t)stream>>>(p);
        return cudaSuccess;
    }
    const shape s = shape_of(context, p, options);
    if (s.clusters) {
        const cudaError_t error = launch_resident(context, kernel_for<T>(s, options), p, s, stream);
        if (error == cudaSuccess) return error;
        cudaGetLastError(); /* a device that has no room for such a cluster */
    }
    streamed_kernel<T><<<grid_size(p.rows, 1), STREAMED_THREADS, 0, (cudaStream_t)stream>>>(p);
    return cudaSuccess;
}

} // namespace cross_entropy

extern "C" liger_status cross_entropy_count_cuda(liger_context *context,
                                                 const struct cross_entropy_count_problem *problem,
                                                 liger_stream stream) {
    const device_scope device(context);
    cross_entropy::count_kernel<<<1, cross_entropy::ONE_BLOCK, 0, (cudaStream_t)stream>>>(*problem);
    return launched(context, "cross_entropy_count", stream);
}

extern "C" liger_status cross_entropy_rows_cuda(liger_context *context,
                                                const struct cross_entropy_rows_problem *problem, liger_stream stream) {
    if (problem->rows == 0) return LIGER_OK;
    const device_scope device(context);
    cudaError_t error = cudaSuccess;
    LIGER_FOR_FLOAT(problem->dtype, T, error = cross_entropy::launch_rows<T>(context, *problem, stream))
    LIGER_TRY(cuda_status(error, "cross_entropy_rows"));
    return launched(context, "cross_entropy_rows", stream);
}

extern "C" liger_status cross_entropy_reduce_cuda(liger_context *context,
                                                  const struct cross_entropy_reduce_problem *problem,
                                                  liger_stream stream) {
    const device_scope device(context);
    if (problem->unreduced) {
        if (problem->rows == 0) return LIGER_OK;
        cross_entropy::round_rows_kernel<<<grid_size(problem->rows, 256), 256, 0, (cudaStream_t)stream>>>(*problem);
    } else {
        cross_entropy::reduce_kernel<<<1, cross_entropy::ONE_BLOCK, 0, (cudaStream_t)stream>>>(*problem);
    }
    return launched(context, "cross_entropy_reduce", stream);
}
