/* approx.cuh - functions that the hardware has as one instruction, with their errors. Results below 2^-126 are 0. */
#ifndef LIGER_CUDA_APPROX_CUH
#define LIGER_CUDA_APPROX_CUH

/* 2^x: relative error 2^-22. */
__device__ __forceinline__ float exp2_approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
/* log2 x: error 2^-22 between 1/2 and 2, relative error 2^-22 elsewhere. */
__device__ __forceinline__ float log2_approx(float x) {
    float y;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
/* 1/x within 1 ulp. */
__device__ __forceinline__ float reciprocal_approx(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

#endif
