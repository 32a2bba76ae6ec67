/* context.c - making, asking and ending a context. What a backend needs for itself it adds in its own init. */
#include "liger/core/context.h"

#include <stdlib.h>
#include <string.h>

#include "liger/core/context_state.h"
#include "liger/core/door_rules.h"

static bool environment_flag(const char *name) {
    const char *value = getenv(name);
    return value != NULL && strcmp(value, "1") == 0;
}

static int64_t loss_workspace_bytes(void) {
    const char *text = getenv("LIGER_LOSS_WORKSPACE_MB");
    const long long megabytes = text ? strtoll(text, NULL, 10) : 0;
    return (megabytes >= 1 && megabytes <= 1 << 20 ? megabytes : 0) << 20;
}

#define OPTION(kind_, field)                                                                                           \
    {                                                                                                                  \
        .kind = kind_, .what = "context_create: " #field, .name = sizeof "context_create: " - 1,                       \
        .offset = offsetof(liger_context_options, field), .bytes = sizeof(((liger_context_options *)0)->field)         \
    }
static const struct door_rule option_rules[] = {
    OPTION(DOOR_INT32, device),         OPTION(DOOR_INT32, isa),
    OPTION(DOOR_INT32, threads),        OPTION(DOOR_RESERVED, reserved),
    OPTION(DOOR_ADDRESS, parallel_for), OPTION(DOOR_ADDRESS, thread_count),
    OPTION(DOOR_ADDRESS, user),
};
static const struct door options_door = {"context_create", sizeof(liger_context_options), option_rules,
                                         sizeof option_rules / sizeof option_rules[0]};

static liger_status check_options(const liger_context_options *options) {
    LIGER_REQUIRE(options->device >= LIGER_DEVICE_CPU, LIGER_ERR_DEVICE,
                  "context_create: device is %d, but must be %d (CPU) or a CUDA device number from 0", options->device,
                  LIGER_DEVICE_CPU);
    LIGER_REQUIRE(options->threads >= 0 && options->threads <= 4096, LIGER_ERR_ARGUMENT,
                  "context_create: threads is %d, but must be in [0, 4096]", options->threads);
    LIGER_REQUIRE((options->parallel_for == NULL) == (options->thread_count == NULL), LIGER_ERR_ARGUMENT,
                  "context_create: parallel_for and thread_count must be given together, but only %s is",
                  options->parallel_for ? "parallel_for" : "thread_count");
    return LIGER_OK;
}

static liger_status backend_init(liger_context *context, const liger_context_options *options) {
    if (options->device == LIGER_DEVICE_CPU) return cpu_context_init(context, options);
#ifdef LIGER_HAS_CUDA
    return cuda_context_init(context, options);
#else
    return liger_fail(LIGER_ERR_DEVICE,
                      "context_create: CUDA device %d was asked for, but this build has no CUDA backend",
                      options->device);
#endif
}

liger_status liger_context_create(const liger_context_options *options, liger_context **context) {
    static const liger_context_options defaults = LIGER_CONTEXT_OPTIONS_INIT;
    LIGER_REQUIRE(context != NULL, LIGER_ERR_ARGUMENT, "context_create: context is NULL");
    *context = NULL;
    liger_context_options known;
    struct door_call call;
    LIGER_TRY(door_query(&call, &options_door, NULL, options ? options : &defaults, &known, 0));
    LIGER_TRY(check_options(&known));
    liger_context *made = calloc(1, sizeof *made);
    LIGER_REQUIRE(made != NULL, LIGER_ERR_OOM, "context_create: no memory for %zu bytes", sizeof *made);
    made->device = known.device;
    made->threads = known.threads;
    made->parallel_for = known.parallel_for;
    made->thread_count = known.thread_count;
    made->user = known.user;
    made->loss_workspace_bytes = loss_workspace_bytes();
    made->synchronous = environment_flag("LIGER_SYNC");
    const liger_status status = backend_init(made, &known);
    if (status != LIGER_OK) {
        free(made);
        return status;
    }
    *context = made;
    return LIGER_OK;
}

void liger_context_destroy(liger_context *context) {
    if (context == NULL) return;
    if (context->device == LIGER_DEVICE_CPU) cpu_context_close(context);
#ifdef LIGER_HAS_CUDA
    else cuda_context_close(context);
#endif
    free(context);
}

/* A report must not crash: no context gives answers that no context of any device gives. */
enum { NO_DEVICE = LIGER_DEVICE_CPU - 1 };

int32_t liger_context_device(const liger_context *context) { return context ? context->device : NO_DEVICE; }
int32_t liger_context_isa(const liger_context *context) { return context ? context->isa : LIGER_ISA_AUTO; }
const char *liger_context_backend(const liger_context *context) { return context ? context->kernels->backend : "none"; }

const char *liger_context_gemm_provider(liger_context *context) {
    if (context == NULL) return "no matrix products: there is no context";
#ifdef LIGER_HAS_CUDA
    if (context->device != LIGER_DEVICE_CPU) return cuda_gemm_provider(context);
#endif
    return cpu_gemm_provider(context);
}

liger_status liger_gemm_ready(liger_context *context) {
#ifdef LIGER_HAS_CUDA
    if (context->device != LIGER_DEVICE_CPU) return cuda_gemm_ready(context);
#endif
    (void)context;
    return LIGER_OK;
}

int liger_has_cuda_backend(void) {
#ifdef LIGER_HAS_CUDA
    return 1;
#else
    return 0;
#endif
}
