/* cpu_context.c - which instruction set a CPU context runs, and what else it owns. */
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "liger/core/context_state.h"
#include "liger/core/fail.h"
#include "liger/cpu/blas.h"
#include "liger/cpu/cpu_state.h"

#if defined(__x86_64__)
#include "liger/cpu/amx.h"

static inline bool has_avx2(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}
static inline bool has_avx512(void) {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
static inline bool has_avx512bf16(void) {
    return has_avx512() && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni");
}
static inline bool has_amx(void) { return has_avx512bf16() && cpu_amx_request(); }
#elif defined(__aarch64__)
static inline bool has_neon(void) { return true; }
#endif
static inline bool has_base(void) { return true; }

/* The build says which sets it holds, in ascending order of preference: ISA(base, BASE) ISA(avx2, AVX2) ... */
#define ISA(name, NAME) extern const liger_kernel_table liger_table_cpu_##name;
LIGER_BUILT_ISAS
#undef ISA

static const struct isa_row {
    liger_isa isa;
    const char *name;
    bool (*present)(void);
    const liger_kernel_table *table;
} isa_rows[] = {
#define ISA(name, NAME) {LIGER_ISA_##NAME, #name, has_##name, &liger_table_cpu_##name},
    LIGER_BUILT_ISAS
#undef ISA
};
enum { ISA_ROWS = sizeof isa_rows / sizeof isa_rows[0] };

static const char *const isa_names[] = {"auto", "base", "avx2", "avx512", "avx512bf16", "amx", "neon"};

const char *liger_isa_name(int isa) {
    return isa >= 0 && isa < (int)(sizeof isa_names / sizeof isa_names[0]) ? isa_names[isa] : "unknown isa";
}

int liger_has_isa(int isa) {
    for (int i = 0; i < ISA_ROWS; i++)
        if ((int)isa_rows[i].isa == isa) return isa_rows[i].present();
    return 0;
}

/* The set that LIGER_CPU_ISA names; NULL: the best there is. */
static const char *isa_of_environment(void) {
    const char *name = getenv("LIGER_CPU_ISA");
    return name == NULL || *name == 0 || strcasecmp(name, isa_names[LIGER_ISA_AUTO]) == 0 ? NULL : name;
}

static liger_status find_row(int32_t isa, const struct isa_row **row) {
    const char *wish = isa_of_environment();
    *row = NULL;
    for (int i = 0; i < ISA_ROWS; i++) {
        const struct isa_row *candidate = &isa_rows[i];
        const bool wanted = isa != LIGER_ISA_AUTO ? (int32_t)candidate->isa == isa
                                                  : wish == NULL || strcasecmp(wish, candidate->name) == 0;
        if (wanted && candidate->present()) *row = candidate;
    }
    LIGER_REQUIRE(*row != NULL, LIGER_ERR_DEVICE,
                  "context_create: instruction set %s%s is not available: this processor or this build lacks it",
                  isa != LIGER_ISA_AUTO ? liger_isa_name(isa) : wish, isa != LIGER_ISA_AUTO ? "" : " (LIGER_CPU_ISA)");
    return LIGER_OK;
}

static int32_t threads_from_environment(void) {
    const char *text = getenv("LIGER_THREADS");
    const long threads = text ? strtol(text, NULL, 10) : 0;
    return threads >= 1 && threads <= 4096 ? (int32_t)threads : 0;
}

liger_status cpu_context_init(liger_context *context, const liger_context_options *options) {
    const struct isa_row *row;
    LIGER_TRY(find_row(options->isa, &row));
    context->kernels = row->table;
    context->isa = (int32_t)row->isa;
    if (context->threads == 0) context->threads = threads_from_environment();
    if (context->threads == 0) context->threads = cpu_pool_default_threads();
    context->cpu = calloc(1, sizeof *context->cpu);
    LIGER_REQUIRE(context->cpu != NULL, LIGER_ERR_OOM, "context_create: no memory for %zu bytes", sizeof *context->cpu);
    return LIGER_OK;
}

void cpu_context_close(liger_context *context) {
    cpu_pool_close(context->cpu->pool);
    free(context->cpu);
}

const char *cpu_gemm_provider(liger_context *context) {
    const liger_isa isa = (liger_isa)context->isa;
    return blas_find(isa == LIGER_ISA_AVX512 || isa == LIGER_ISA_AVX512BF16 || isa == LIGER_ISA_AMX)->provider;
}
