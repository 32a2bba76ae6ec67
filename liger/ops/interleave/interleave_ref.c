/* interleave_ref.c - what another order of blocks is: two loops and a copy. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

void interleave_reference(int64_t rows, int64_t cols, int64_t block, double *data);

void interleave_reference(int64_t rows, int64_t cols, int64_t block, double *data) {
    const size_t bytes = (size_t)(rows * cols * block) * sizeof *data;
    double *const before = malloc(bytes ? bytes : 1);
    if (before == NULL) abort();
    memcpy(before, data, bytes);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < cols; c++)
            memcpy(data + (c * rows + r) * block, before + (r * cols + c) * block, (size_t)block * sizeof *data);
    free(before);
}
