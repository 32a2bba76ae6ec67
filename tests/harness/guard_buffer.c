/* guard_buffer.c - see guard_buffer.h. */
#define _GNU_SOURCE
#include "tests/harness/guard_buffer.h"

#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

bool guard_buffer_make(struct guard_buffer *buffer, size_t bytes, size_t align, size_t shift, enum placement place) {
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    const size_t rounded = (bytes + align - 1) / align * align;
    const size_t needed = place == PLACE_MIDDLE ? rounded + shift + 2 * GUARD_ZONE_BYTES : rounded;
    memset(buffer, 0, sizeof *buffer);
    buffer->bytes = bytes;
    buffer->region_bytes = (needed + page - 1) / page * page;
    if (buffer->region_bytes == 0) buffer->region_bytes = page;
    buffer->map_bytes = buffer->region_bytes + 2 * page;
    void *map = mmap(NULL, buffer->map_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED) return false;
    buffer->map = map;
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
    if (buffer->map != NULL) munmap(buffer->map, buffer->map_bytes);
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
