/* vocab_rows.h - rows as long as a vocabulary on the CPU: one is walked in blocks that are widened to f32 in L1; a second
 * walk, for what is written, finds the row in L2. Threads share out the rows. */
#ifndef LIGER_CPU_VOCAB_ROWS_H
#define LIGER_CPU_VOCAB_ROWS_H

#include "liger/cpu/parallel.h"
#include "liger/cpu/softmax_state.h"

/* VOCAB_BLOCK f32 values are 4 KB of L1; below VOCAB_BYTES_PER_TASK bytes a second thread costs more than it brings. */
enum { VOCAB_BLOCK = 1024, VOCAB_BYTES_PER_TASK = 32 << 10 };

/* Rows of a task, at least. */
LIGER_TEMPLATE int64_t vocab_rows_per_task(int64_t cols, liger_dtype t) {
    return 1 + VOCAB_BYTES_PER_TASK / (cols * (int64_t)liger_dtype_size(t));
}

/* Values of the block that begins there. */
LIGER_TEMPLATE int64_t vocab_block(int64_t cols, int64_t begin) {
    return cols - begin < VOCAB_BLOCK ? cols - begin : VOCAB_BLOCK;
}

/* Values of one vector, soft-capped. */
LIGER_TEMPLATE v_f32 vocab_capped(v_f32 x, bool cap, v_f32 softcap) {
    return cap ? v_mul(softcap, v_tanh(v_div(x, softcap))) : x;
}

/* Widens up to VOCAB_BLOCK values to f32, padded with -inf to whole vectors; returns their maximum. */
LIGER_TEMPLATE float vocab_widen(liger_dtype t, const void *row, int64_t begin, int64_t count, bool cap, float softcap,
                                 float *block) {
    v_f32 most = v_set(-FLT_MAX);
    int64_t i = 0;
    for (; i + V_LANES <= count; i += V_LANES) {
        const v_f32 x = vocab_capped(v_load(t, row, begin + i), cap, v_set(softcap));
        v_store_f32(block + i, x);
        most = v_max(x, most);
    }
    if (i < count) {
        v_store_f32(block + i, vocab_capped(v_load_tail(t, row, begin + i, (int)(count - i)), cap, v_set(softcap)));
        for (int64_t l = count; l < i + V_LANES; l++) block[l] = -INFINITY;
        most = v_max(v_load_f32(block + i), most);
    }
    return v_max_across(most);
}

/* Multiplies the values of a block; padding and maximum as above. */
LIGER_TEMPLATE float vocab_scale(float *block, int64_t count, float factor) {
    v_f32 most = v_set(-FLT_MAX);
    const int64_t padded = (count + V_LANES - 1) / V_LANES * V_LANES;
    for (int64_t i = 0; i < padded; i += V_LANES) {
        v_store_f32(block + i, v_mul(v_load_f32(block + i), v_set(factor)));
        for (int64_t l = count; l < i + V_LANES; l++) block[l] = -INFINITY;
        most = v_max(v_load_f32(block + i), most);
    }
    return v_max_across(most);
}

/* The largest value of a row, each times a factor, and Σ exp(value - max). */
LIGER_TEMPLATE struct softmax_state vocab_softmax(liger_dtype t, const void *row, int64_t cols, float factor) {
    float block[VOCAB_BLOCK + V_LANES];
    struct softmax_state state = softmax_empty();
    for (int64_t begin = 0; begin < cols; begin += VOCAB_BLOCK) {
        const int64_t count = vocab_block(cols, begin);
        float most = vocab_widen(t, row, begin, count, false, 0.0f, block);
        if (factor != 1.0f) most = vocab_scale(block, count, factor);
        state = softmax_push(state, block, (count + V_LANES - 1) / V_LANES * V_LANES, most);
    }
    return state;
}

#endif
