/* guard_buffer.c - see guard_buffer.h. */
#define _GNU_SOURCE
#include "tests/harness/guard_buffer.h"

#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* Maps of buffers that are no more, for the next ones of the same size: pages that a process has need not be found and zeroed
 * again, which took a third of a run. Nobody may touch them meanwhile. The oldest go first. */
enum { KEPT_MAPS = 512, KEPT_BYTES = 1 << 28 };
static struct kept_map {
    unsigned char *map;
    size_t bytes;
} kept[KEPT_MAPS];
static int kept_count;
static size_t kept_bytes;

static unsigned char *take_kept(int k) {
    unsigned char *map = kept[k].map;
    kept_bytes -= kept[k].bytes;
    memmove(&kept[k], &kept[k + 1], (size_t)(--kept_count - k) * sizeof *kept);
    return map;
}

static void keep(unsigned char *map, size_t bytes) {
    if (bytes > KEPT_BYTES || mprotect(map, bytes, PROT_NONE) != 0) {
        munmap(map, bytes);
        return;
    }
    while (kept_count == KEPT_MAPS || kept_bytes + bytes > KEPT_BYTES) {
        const size_t oldest = kept[0].bytes;
        munmap(take_kept(0), oldest);
    }
    kept[kept_count++] = (struct kept_map){map, bytes};
    kept_bytes += bytes;
}

/* Of pages that are all protected. The one that was let go last is the likeliest to be in a cache. */
static unsigned char *map_of(size_t bytes) {
    for (int k = kept_count - 1; k >= 0; k--)
        if (kept[k].bytes == bytes) return take_kept(k);
    void *map = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return map == MAP_FAILED ? NULL : map;
}

bool guard_buffer_make(struct guard_buffer *buffer, size_t bytes, size_t align, size_t shift, enum placement place) {
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    const size_t rounded = (bytes + align - 1) / align * align;
    const size_t needed = place == PLACE_MIDDLE ? rounded + shift + 2 * GUARD_ZONE_BYTES : rounded;
    memset(buffer, 0, sizeof *buffer);
    buffer->bytes = bytes;
    buffer->region_bytes = (needed + page - 1) / page * page;
    if (buffer->region_bytes == 0) buffer->region_bytes = page;
    buffer->map_bytes = buffer->region_bytes + 2 * page;
    buffer->map = map_of(buffer->map_bytes);
    if (buffer->map == NULL) return false;
    buffer->region = buffer->map + page;
    if (mprotect(buffer->region, buffer->region_bytes, PROT_READ | PROT_WRITE) != 0) {
        guard_buffer_free(buffer);
        return false;
    }
    for (size_t i = 0; i < page; i++) buffer->region[i] = guard_canary(i);
    for (size_t i = page; i < buffer->region_bytes; i += page) memcpy(buffer->region + i, buffer->region, page);
    if (place == PLACE_MIDDLE) buffer->data = buffer->region + GUARD_ZONE_BYTES + shift;
    if (place == PLACE_AFTER_FENCE) buffer->data = buffer->region;
    if (place == PLACE_BEFORE_FENCE) buffer->data = buffer->region + buffer->region_bytes - rounded;
    return true;
}

void guard_buffer_free(struct guard_buffer *buffer) {
    if (buffer->map != NULL) keep(buffer->map, buffer->map_bytes);
    memset(buffer, 0, sizeof *buffer);
}

static sigjmp_buf guard_return;

static void guard_handler(int signal_number) {
    (void)signal_number;
    siglongjmp(guard_return, 1);
}

bool guard_survives(void (*call)(void *argument), void *argument) {
    struct sigaction action, old_segv, old_bus;
    memset(&action, 0, sizeof action);
    action.sa_handler = guard_handler;
    sigemptyset(&action.sa_mask);
    sigaction(SIGSEGV, &action, &old_segv);
    sigaction(SIGBUS, &action, &old_bus);
    volatile bool survived = false;
    if (sigsetjmp(guard_return, 1) == 0) {
        call(argument);
        survived = true;
    }
    sigaction(SIGSEGV, &old_segv, NULL);
    sigaction(SIGBUS, &old_bus, NULL);
    return survived;
}
