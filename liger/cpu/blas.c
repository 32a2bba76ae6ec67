/* blas.c - finds a BLAS that is already on the machine.
 *
 * The address of sgemm_ is kept for the life of the process, so its library is never closed again. */
#define _GNU_SOURCE /* dl_iterate_phdr, dladdr */
#include "liger/cpu/blas.h"

#include <dlfcn.h>
#include <link.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PATH_BYTES = 4096 };

static struct blas found;
static bool is_mkl_elsewhere; /* `found` is Intel's MKL, and the processor is not Intel's */
static const struct blas none_is_better = {
    .provider = "f32 matrix products by our own kernel (PyTorch's MKL is slower on a processor that is not Intel's)"};
static char sentence[PATH_BYTES + 128];

static int keep_torch_path(struct dl_phdr_info *info, size_t size, void *path) {
    static const char name[] = "libtorch_cpu.so";
    const char *slash = info->dlpi_name ? strrchr(info->dlpi_name, '/') : NULL;
    (void)size;
    if (!slash || strncmp(slash + 1, name, sizeof name - 1) != 0) return 0;
    snprintf(path, PATH_BYTES, "%s", info->dlpi_name);
    return 1;
}

/* Takes sgemm_ out of an open library; the sentence names the file that really holds it, which may be a dependency. */
static bool take(void *library, const char *who) {
    union {
        void *object;
        liger_sgemm_fn *function;
    } symbol = {.object = library ? dlsym(library, "sgemm_") : NULL};
    Dl_info where = {.dli_fname = NULL};
    if (!symbol.object) return false;
    dladdr(symbol.object, &where);
    snprintf(sentence, sizeof sentence, "f32 matrix products by sgemm of %s (%s)", who,
             where.dli_fname ? where.dli_fname : "unknown path");
    found = (struct blas){.sgemm = symbol.function, .provider = sentence};
    return true;
}

static bool is_mkl(void *library) { return library != NULL && dlsym(library, "mkl_serv_get_version") != NULL; }

static bool is_intel(void) {
#if defined(__x86_64__)
    return __builtin_cpu_is("intel");
#else
    return false;
#endif
}

/* A BLAS waits for ever in a forked child for the threads that it had in the parent (torch.mm does, too), whether or not
 * this file had met it by then. */
static bool is_forked;

static void after_fork(void) {
    is_forked = true;
    found = (struct blas){.provider = "f32 matrix products by our own kernel (a BLAS has no threads after fork)"};
}

__attribute__((constructor)) static void watch_forks(void) { pthread_atfork(NULL, NULL, after_fork); }

static void look_up(void) {
    const char *wish = getenv("LIGER_BLAS");
    char torch_path[PATH_BYTES] = "";
    if (is_forked) return;
    if (wish && strcmp(wish, "none") == 0) {
        found.provider = "f32 matrix products by our own kernel (LIGER_BLAS=none)";
        return;
    }
    void *torch = dl_iterate_phdr(keep_torch_path, torch_path) ? dlopen(torch_path, RTLD_LAZY | RTLD_NOLOAD) : NULL;
    if (take(torch, "the loaded PyTorch")) {
        is_mkl_elsewhere = is_mkl(torch) && !is_intel() && !(wish && strcmp(wish, "always") == 0);
        return;
    }
    if (take(dlopen("libopenblas.so.0", RTLD_LAZY | RTLD_LOCAL), "OpenBLAS")) return;
    found.provider =
        "f32 matrix products by our own kernel (no PyTorch is loaded and no libopenblas.so.0 is installed)";
}

const struct blas *blas_find(bool own_avx512) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, look_up);
    return own_avx512 && is_mkl_elsewhere ? &none_is_better : &found;
}
