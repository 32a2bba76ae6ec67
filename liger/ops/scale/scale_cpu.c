/* scale_cpu.c - y = x · scale on the CPU, compiled once per instruction set. One pass at the speed of memory. */
#include <math.h>

#include "liger/core/fail.h"
#include "liger/core/kernel_table.h"
#include "liger/cpu/parallel.h"
#include "liger/cpu/simd.h"
#include "liger/ops/scale/scale_problem.h"

enum { ELEMENTS_PER_CHUNK = 16 << 10 };

LIGER_TEMPLATE void scale_range(liger_dtype tx, liger_dtype ty, const struct scale_problem *p, int64_t begin,
                                int64_t end) {
    const v_f32 factor = v_set(p->scale ? *p->scale : 1.0f);
    const char *x = (const char *)p->x + begin * (int64_t)liger_dtype_size(tx);
    char *y = (char *)p->y + begin * (int64_t)liger_dtype_size(ty);
    V_FOR_EACH(i, n, end - begin, v_store_n(ty, y, i, n, v_mul(v_load_n(tx, x, i, n), factor)));
}

/* A scale that is no number: zeros of ignored rows stay. */
static void scale_rows(const struct scale_problem *p, int64_t begin, int64_t end) {
    const int64_t cols = p->count / p->rows;
    for (int64_t i = begin; i < end; i++) {
        const float x = f32_load(p->x_dtype, p->x, i);
        const bool ignored = index_load(p->target_dtype, p->target, i / cols) == p->ignore_index;
        f32_store(p->y_dtype, p->y, i, ignored && x == 0.0f ? x : x * *p->scale);
    }
}

static void from_f32(const struct scale_problem *p, int64_t begin, int64_t end) {
    LIGER_FOR_FLOAT(p->y_dtype, scale_range(LIGER_F32, LIGER_T, p, begin, end))
}
static void from_f16(const struct scale_problem *p, int64_t begin, int64_t end) {
    LIGER_FOR_FLOAT(p->y_dtype, scale_range(LIGER_F16, LIGER_T, p, begin, end))
}
static void from_bf16(const struct scale_problem *p, int64_t begin, int64_t end) {
    LIGER_FOR_FLOAT(p->y_dtype, scale_range(LIGER_BF16, LIGER_T, p, begin, end))
}

static void scale_chunk(void *argument, int64_t begin, int64_t end) {
    const struct scale_problem *p = argument;
    if (p->target && p->scale && !isfinite(*p->scale)) scale_rows(p, begin, end);
    else if (p->x_dtype == LIGER_F32) from_f32(p, begin, end);
    else if (p->x_dtype == LIGER_F16) from_f16(p, begin, end);
    else from_bf16(p, begin, end);
}

liger_status LIGER_CPU(scale)(liger_context *context, const struct scale_problem *problem, liger_stream stream) {
    (void)stream;
    struct scale_problem p = *problem;
    if (p.x == p.y && (p.scale == NULL || *p.scale == 1.0f)) return LIGER_OK;
    liger_parallel_for(context, p.count, ELEMENTS_PER_CHUNK, scale_chunk, &p);
    return LIGER_OK;
}
