/* scratch.c - one growing block of memory per thread. */
#include "liger/cpu/scratch.h"

#include <pthread.h>
#include <stdlib.h>

struct scratch {
    void *memory;
    size_t bytes;
};

static pthread_key_t key;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static int key_error = 1;

static void free_scratch(void *argument) {
    struct scratch *scratch = argument;
    free(scratch->memory);
    free(scratch);
}

static void make_key(void) { key_error = pthread_key_create(&key, free_scratch); }

/* When the library is unloaded no thread may call free_scratch any more. */
__attribute__((destructor)) static void forget_key(void) {
    if (!key_error) pthread_key_delete(key);
}

static struct scratch *own_scratch(void) {
    struct scratch *scratch;
    pthread_once(&once, make_key);
    if (key_error) return NULL;
    scratch = pthread_getspecific(key);
    if (scratch) return scratch;
    scratch = calloc(1, sizeof *scratch);
    if (scratch && pthread_setspecific(key, scratch) != 0) {
        free(scratch);
        return NULL;
    }
    return scratch;
}

void *cpu_thread_scratch(size_t bytes) {
    struct scratch *scratch = own_scratch();
    if (!scratch) return NULL;
    if (scratch->bytes >= bytes) return scratch->memory;
    bytes = (bytes + 4095) / 4096 * 4096;
    free(scratch->memory);
    scratch->memory = aligned_alloc(4096, bytes);
    scratch->bytes = scratch->memory ? bytes : 0;
    return scratch->memory;
}
