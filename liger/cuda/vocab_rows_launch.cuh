/* vocab_rows_launch.cuh - rows that are read and written, by the kernel that their width and alignment ask for. */
#ifndef LIGER_CUDA_VOCAB_ROWS_LAUNCH_CUH
#define LIGER_CUDA_VOCAB_ROWS_LAUNCH_CUH

#include "liger/cuda/vocab_rows_narrow.cuh"
#include "liger/cuda/vocab_rows_resident.cuh"
#include "liger/cuda/vocab_rows_streamed.cuh"

namespace vocab_rows {

/* F is a formula for all three kernels. `packable`: all rows are aligned to 16 bytes. */
template <typename F>
liger_status launch_rows(liger_context *context, const typename F::problem &p, bool packable, const char *op,
                         liger_stream stream) {
    bool done = launch_narrow<F>(context, p, packable, (cudaStream_t)stream);
    if constexpr (has_wide_rows<F>)
        if (!done) done = launch_narrow<typename F::wide_rows>(context, p, packable, (cudaStream_t)stream);
    if (!done) LIGER_TRY(cuda_status(launch_resident<F>(context, p, packable, (cudaStream_t)stream, &done), op));
    if (!done) launch_streamed<F>(context, p, (cudaStream_t)stream);
    return launched(context, op, stream);
}

} // namespace vocab_rows

#endif
