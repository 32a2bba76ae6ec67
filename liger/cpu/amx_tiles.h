/* amx_tiles.h - tile registers, for kernels that are compiled with AMX. Internal.
 *
 * They are configured per block of work and released before foreign code runs. */
#ifndef LIGER_CPU_AMX_TILES_H
#define LIGER_CPU_AMX_TILES_H

#include <immintrin.h>
#include <stdint.h>

struct tile_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};

/* All eight tiles are 16 rows of 64 bytes. */
static void amx_begin(void) {
    struct tile_config config = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        config.row_bytes[i] = 64;
        config.rows[i] = 16;
    }
    /* gcc 12 takes _tile_loadconfig to read only a part of its operand, and would drop the stores above. */
    __asm__ volatile("" ::: "memory");
    _tile_loadconfig(&config);
}
static void amx_end(void) { _tile_release(); }

#endif
