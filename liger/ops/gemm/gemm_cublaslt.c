/* gemm_cublaslt.c - opening cuBLASLt, and a matrix product with it. */
#define _GNU_SOURCE
#include "liger/ops/gemm/gemm_cublaslt.h"

#include <dlfcn.h>
#include <link.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "liger/core/fail.h"
#include "liger/cuda/cuda_state.h"
#include "liger/ops/gemm/cublaslt_api.h"
#include "liger/ops/gemm/gemm_plans.h"

/* ---- the library ------------------------------------------------------------------------------------------------ */

static struct {
    pthread_once_t once;
    lt_functions call;
    bool usable;
    char provider[384];
} library = {.once = PTHREAD_ONCE_INIT};

struct found {
    char path[320];
};

static int look_for_loaded(struct dl_phdr_info *info, size_t size, void *argument) {
    (void)size;
    struct found *found = argument;
    if (info->dlpi_name == NULL || strstr(info->dlpi_name, "libcublasLt.so") == NULL) return 0;
    snprintf(found->path, sizeof found->path, "%s", info->dlpi_name);
    return 1;
}

static void *open_library(struct found *found) {
    static const char *const names[] = {"libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"};
    if (dl_iterate_phdr(look_for_loaded, found)) return dlopen(found->path, RTLD_NOW | RTLD_NOLOAD);
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        void *handle = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
        if (handle == NULL) continue;
        snprintf(found->path, sizeof found->path, "%s", names[i]);
        return handle;
    }
    return NULL;
}

static bool find_functions(void *handle) {
    lt_functions *call = &library.call;
    const struct {
        const char *name;
        void **slot;
    } symbols[] = {
        {"cublasLtCreate", (void **)&call->create},
        {"cublasLtDestroy", (void **)&call->destroy},
        {"cublasLtGetVersion", (void **)&call->version},
        {"cublasLtMatmulDescCreate", (void **)&call->desc_create},
        {"cublasLtMatmulDescDestroy", (void **)&call->desc_destroy},
        {"cublasLtMatmulDescSetAttribute", (void **)&call->desc_set},
        {"cublasLtMatrixLayoutCreate", (void **)&call->layout_create},
        {"cublasLtMatrixLayoutDestroy", (void **)&call->layout_destroy},
        {"cublasLtMatmulPreferenceCreate", (void **)&call->preference_create},
        {"cublasLtMatmulPreferenceDestroy", (void **)&call->preference_destroy},
        {"cublasLtMatmulPreferenceSetAttribute", (void **)&call->preference_set},
        {"cublasLtMatmulAlgoGetHeuristic", (void **)&call->heuristic},
        {"cublasLtMatmul", (void **)&call->matmul},
    };
    for (size_t i = 0; i < sizeof symbols / sizeof symbols[0]; i++)
        if ((*symbols[i].slot = dlsym(handle, symbols[i].name)) == NULL) return false;
    return true;
}

static void open_once(void) {
    struct found found = {""};
    void *handle = open_library(&found);
    if (handle == NULL) {
        snprintf(
            library.provider, sizeof library.provider,
            "none: libcublasLt.so.13 and .12 were not found (it comes with PyTorch, with the pip package nvidia-cublas "
            "and with the CUDA toolkit)");
    } else if (!find_functions(handle)) {
        snprintf(library.provider, sizeof library.provider, "none: %s lacks a function that is needed", found.path);
    } else {
        library.usable = true;
        snprintf(library.provider, sizeof library.provider, "cuBLASLt %zu (%s)", library.call.version(), found.path);
    }
}

const char *cuda_gemm_provider(liger_context *context) {
    (void)context;
    pthread_once(&library.once, open_once);
    return library.provider;
}

/* ---- plans ------------------------------------------------------------------------------------------------------ */

struct plan {
    lt_desc desc;
    lt_layout a, b, c;
    lt_algo algo;
    size_t workspace_bytes;
    bool refused;
};

struct cublaslt {
    pthread_mutex_t lock;
    lt_handle handle;
    struct plan_table table;
    struct plan plan[PLANS]; /* by place */
};

static int lt_type(liger_dtype dtype) {
    switch (dtype) {
        case LIGER_F32: return LT_R_32F;
        case LIGER_F16: return LT_R_16F;
        case LIGER_I8: return LT_R_8I;
        case LIGER_I32: return LT_R_32I;
        default: return LT_R_16BF;
    }
}

/* Bytes to which every row start of a matrix is aligned, 16 at most. */
static int32_t alignment_of(const void *p, int64_t ld, liger_dtype dtype) {
    uintptr_t bits = (uintptr_t)p | (uintptr_t)(ld * (int64_t)liger_dtype_size(dtype)) | 16;
    return (int32_t)(bits & -bits);
}

/* The stride of the only row of a matrix means nothing, and may be less than cuBLASLt takes. */
static int64_t pitch_of(int64_t ld, int64_t rows, int64_t cols) { return rows <= 1 && ld < cols ? cols : ld; }

static struct plan_key key_of(const struct gemm_problem *p) {
    struct plan_key key;
    memset(&key, 0, sizeof key);
    key.m = p->m, key.n = p->n, key.k = p->k;
    key.lda = p->transpose_a ? pitch_of(p->lda, p->k, p->m) : pitch_of(p->lda, p->m, p->k);
    key.ldb = p->transpose_b ? pitch_of(p->ldb, p->n, p->k) : pitch_of(p->ldb, p->k, p->n);
    key.ldc = pitch_of(p->ldc, p->m, p->n);
    key.dtype = p->dtype, key.c_dtype = p->c_dtype;
    key.transpose_a = p->transpose_a, key.transpose_b = p->transpose_b;
    key.accumulate = p->accumulate;
    key.alignment_a = alignment_of(p->a, key.lda, p->dtype);
    key.alignment_b = alignment_of(p->b, key.ldb, p->dtype);
    key.alignment_c = alignment_of(p->c, key.ldc, p->c_dtype);
    key.workspace = p->workspace_bytes >= GEMM_WORKSPACE_BYTES ? GEMM_WORKSPACE_BYTES : 0;
    return key;
}

static void plan_close(struct plan *plan) {
    const lt_functions *call = &library.call;
    if (plan->desc) call->desc_destroy(plan->desc);
    if (plan->a) call->layout_destroy(plan->a);
    if (plan->b) call->layout_destroy(plan->b);
    if (plan->c) call->layout_destroy(plan->c);
    memset(plan, 0, sizeof *plan);
}

/* cuBLASLt is column-major: c = op(a)·op(b) in rows is cᵀ = op(b)ᵀ·op(a)ᵀ in columns, so b goes first and sizes swap. */
static int plan_describe(struct plan *plan, const struct plan_key *key) {
    const lt_functions *call = &library.call;
    const int32_t op_first = key->transpose_b ? LT_OP_T : LT_OP_N, op_second = key->transpose_a ? LT_OP_T : LT_OP_N;
    const int type = lt_type((liger_dtype)key->dtype), c_type = lt_type((liger_dtype)key->c_dtype);
    const bool integers = key->dtype == LIGER_I8;
    int status =
        call->desc_create(&plan->desc, integers ? LT_COMPUTE_32I : LT_COMPUTE_32F, integers ? LT_R_32I : LT_R_32F);
    if (!status) status = call->desc_set(plan->desc, LT_DESC_TRANSA, &op_first, sizeof op_first);
    if (!status) status = call->desc_set(plan->desc, LT_DESC_TRANSB, &op_second, sizeof op_second);
    const uint64_t m = (uint64_t)key->m, n = (uint64_t)key->n, k = (uint64_t)key->k;
    if (!status)
        status = call->layout_create(&plan->a, type, key->transpose_a ? m : k, key->transpose_a ? k : m, key->lda);
    if (!status)
        status = call->layout_create(&plan->b, type, key->transpose_b ? k : n, key->transpose_b ? n : k, key->ldb);
    if (!status) status = call->layout_create(&plan->c, c_type, n, m, key->ldc);
    return status;
}

static int plan_choose(struct plan *plan, const struct plan_key *key, lt_handle handle) {
    const lt_functions *call = &library.call;
    lt_preference preference = NULL;
    lt_heuristic best;
    int found = 0;
    const uint64_t workspace = (uint64_t)key->workspace;
    const uint32_t first = (uint32_t)key->alignment_b, second = (uint32_t)key->alignment_a,
                   result = (uint32_t)key->alignment_c;
    const uint32_t reduction = LT_REDUCTION_COMPUTE_TYPE; /* parts of a sum over k are added in f32, not in 16 bits */
    int status = call->preference_create(&preference);
    if (!status) status = call->preference_set(preference, LT_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof workspace);
    if (!status) status = call->preference_set(preference, LT_PREF_REDUCTION_SCHEME_MASK, &reduction, sizeof reduction);
    if (!status) status = call->preference_set(preference, LT_PREF_MIN_ALIGNMENT_A_BYTES, &first, sizeof first);
    if (!status) status = call->preference_set(preference, LT_PREF_MIN_ALIGNMENT_B_BYTES, &second, sizeof second);
    if (!status) status = call->preference_set(preference, LT_PREF_MIN_ALIGNMENT_C_BYTES, &result, sizeof result);
    if (!status) status = call->preference_set(preference, LT_PREF_MIN_ALIGNMENT_D_BYTES, &result, sizeof result);
    if (!status)
        status = call->heuristic(handle, plan->desc, plan->b, plan->a, plan->c, plan->c, preference, 1, &best, &found);
    if (preference) call->preference_destroy(preference);
    if (!status && found == 0) status = LT_NOT_SUPPORTED;
    if (!status) {
        plan->algo = best.algo;
        plan->workspace_bytes = best.workspace_bytes;
    }
    return status;
}

/* A product that cuBLASLt does not have, now or later. Anything else, as no memory for a description, may be over the next
 * time: to take the plain kernel from then on would give a shape other bits for what once happened. */
static bool is_refusal(int status) {
    return status == LT_INVALID_VALUE || status == LT_ARCH_MISMATCH || status == LT_NOT_SUPPORTED;
}

/* The plan for a shape, made at first sight. The caller holds the lock. */
static liger_status plan_for(struct cublaslt *lt, const struct gemm_problem *p, struct plan **plan) {
    const struct plan_key key = key_of(p);
    int place = plan_find(&lt->table, &key);
    if (place != NO_PLAN) return *plan = &lt->plan[place], LIGER_OK;
    struct plan made = {.refused = false};
    int status = plan_describe(&made, &key);
    if (!status) status = plan_choose(&made, &key, lt->handle);
    made.refused = is_refusal(status);
    if (status && !made.refused) {
        plan_close(&made);
        return liger_fail(LIGER_ERR_CUDA, "gemm: cuBLASLt has no plan for m=%lld n=%lld k=%lld: status %d",
                          (long long)p->m, (long long)p->n, (long long)p->k, status);
    }
    place = plan_place(&lt->table, &key);
    *plan = &lt->plan[place];
    plan_close(*plan);
    **plan = made;
    return LIGER_OK;
}

/* ---- the product ------------------------------------------------------------------------------------------------ */

static void lt_close(struct cublaslt *lt) {
    for (int i = 0; i < lt->table.count; i++) plan_close(&lt->plan[i]);
    library.call.destroy(lt->handle);
    pthread_mutex_destroy(&lt->lock);
    free(lt);
}

bool cublaslt_is_there(void) {
    pthread_once(&library.once, open_once);
    return library.usable;
}

liger_status cuda_gemm_ready(liger_context *context) {
    (void)context;
    LIGER_REQUIRE(cublaslt_is_there(), LIGER_ERR_UNSUPPORTED, "gemm: cuBLASLt cannot be used: %s", library.provider);
    return LIGER_OK;
}

static liger_status open_handle(liger_context *context, struct cublaslt **lt) {
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    LIGER_TRY(cuda_gemm_ready(context));
    pthread_mutex_lock(&lock);
    if (context->cuda->cublaslt == NULL) {
        struct cublaslt *made = calloc(1, sizeof *made);
        if (made != NULL && library.call.create(&made->handle) == 0) {
            pthread_mutex_init(&made->lock, NULL);
            context->cuda->cublaslt = made;
            context->cuda->cublaslt_close = lt_close;
        } else {
            free(made);
        }
    }
    *lt = context->cuda->cublaslt;
    pthread_mutex_unlock(&lock);
    LIGER_REQUIRE(*lt != NULL, LIGER_ERR_CUDA, "gemm: cublasLtCreate failed on device %d", context->device);
    return LIGER_OK;
}

liger_status cublaslt_gemm(liger_context *context, const struct gemm_problem *p, liger_stream stream, bool *refused) {
    struct cublaslt *lt;
    LIGER_TRY(open_handle(context, &lt));
    const float one = 1.0f, beta = p->accumulate ? 1.0f : 0.0f;
    const int32_t whole_one = 1, whole_zero = 0;
    const bool integers = p->dtype == LIGER_I8;
    pthread_mutex_lock(&lt->lock); /* until the launch: another thread's new plan may take this one's place */
    struct plan *plan = NULL;
    liger_status status = plan_for(lt, p, &plan);
    *refused = status == LIGER_OK && plan->refused;
    if (status == LIGER_OK && !plan->refused) {
        const int error =
            library.call.matmul(lt->handle, plan->desc, integers ? (const void *)&whole_one : &one, p->b, plan->b, p->a,
                                plan->a, integers ? (const void *)&whole_zero : &beta, p->c, plan->c, p->c, plan->c,
                                &plan->algo, p->workspace, plan->workspace_bytes, stream);
        if (integers && error == LT_NOT_SUPPORTED) *refused = plan->refused = true;
        else if (error)
            status = liger_fail(LIGER_ERR_CUDA, "gemm: cublasLtMatmul failed with status %d for m=%lld n=%lld k=%lld",
                                error, (long long)p->m, (long long)p->n, (long long)p->k);
    }
    pthread_mutex_unlock(&lt->lock);
    return status;
}
