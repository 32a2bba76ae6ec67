/* guard_buffer.h - memory between two pages that nobody may touch, filled with canaries. */
#ifndef TESTS_HARNESS_GUARD_BUFFER_H
#define TESTS_HARNESS_GUARD_BUFFER_H

#include <stdbool.h>
#include <stddef.h>

enum placement {
    PLACE_MIDDLE,       /* canaries on both sides: writes out of bounds are seen afterwards, on a GPU too */
    PLACE_BEFORE_FENCE, /* the data end where the forbidden page begins */
    PLACE_AFTER_FENCE   /* the data begin where the forbidden page ends */
};

enum { GUARD_ZONE_BYTES = 256 };

struct guard_buffer {
    unsigned char *map; /* forbidden page, region, forbidden page */
    size_t map_bytes;
    unsigned char *region; /* all that may be touched */
    size_t region_bytes;
    unsigned char *data;
    size_t bytes;
};

/* Two bytes that make a NaN of every float dtype. */
static inline unsigned char guard_canary(size_t offset) { return offset % 2 ? 0xff : 0xf5; }

/* `align` is a power of two up to 256; `shift` moves the data by that many bytes (PLACE_MIDDLE). False: no memory. */
bool guard_buffer_make(struct guard_buffer *buffer, size_t bytes, size_t align, size_t shift, enum placement place);
void guard_buffer_free(struct guard_buffer *buffer);

/* Runs call(argument); false if it touched forbidden memory. The call must stay on this thread, and is abandoned
 * where it stood. */
bool guard_survives(void (*call)(void *argument), void *argument);

#endif
