/* norm_partials.h - how many partial rows the parameters' gradients of a norm are summed in. Internal.
 *
 * Fixed by the shape and the device, never by the number of threads, and asked for by the caller as workspace. A GPU's backward
 * kernel (liger/cuda/row_norm_backward.cuh) has about as many rows at once as its multiprocessors hold. A block of it leaves
 * one partial row. Of wide rows there is room for one for each row at once, though a block of several leaves but one; blocks of
 * narrow rows, which have a warp each, always have as many of them as they can. */
#ifndef LIGER_CORE_NORM_PARTIALS_H
#define LIGER_CORE_NORM_PARTIALS_H

#include <stdbool.h>
#include <stdint.h>

enum {
    NORM_CPU_PARTIALS = 64,
    NORM_CPU_ROWS = 32,                 /* for each of them, at least */
    NORM_MULTIPROCESSOR_THREADS = 1024, /* of 64 registers each; half as many have 128 */
    NORM_BLOCK = 512,                   /* threads of a block, which several rows share */
    NORM_NARROW = 512,                  /* bytes of a row, at most: a warp has it, 16 bytes a thread */
    NORM_TOTALS_OF_A_PARTIAL = 16       /* rows that a block has at once, at most: each has its sums over everything */
};

static inline int64_t norm_cpu_partials(int64_t rows) {
    const int64_t useful = (rows + NORM_CPU_ROWS - 1) / NORM_CPU_ROWS;
    return useful < NORM_CPU_PARTIALS ? useful : (int64_t)NORM_CPU_PARTIALS;
}

/* Threads of a wider row, a power of two, each with 32 bytes of it, or with more where they are a block. */
static inline int32_t norm_row_threads(int64_t row_bytes) {
    int32_t threads = NORM_BLOCK;
    while (threads > 64 && threads / 2 * (int64_t)32 >= row_bytes) threads /= 2;
    return threads;
}

/* multiprocessors: 0 on the CPU. */
static inline int64_t norm_partials(int32_t multiprocessors, int64_t rows, int64_t row_bytes) {
    if (multiprocessors == 0) return norm_cpu_partials(rows);
    const bool narrow = row_bytes <= NORM_NARROW;
    const int64_t most = (int64_t)multiprocessors *
                         (narrow ? NORM_MULTIPROCESSOR_THREADS / NORM_BLOCK : NORM_BLOCK / norm_row_threads(row_bytes));
    if (rows <= most) return rows;
    if (narrow) return most;
    /* No more than it takes to be done in as many turns: of 16384 rows for 528 at once, sixteen would have a turn more than
     * all others. */
    const int64_t turns = (rows + most - 1) / most;
    return (rows + turns - 1) / turns;
}

/* Rows that come in groups, each with parameters of its own, whose gradients are sums over the group. With few groups each is
 * summed up in parts; with many a unit (a block of threads, a chunk) takes one group after the other. The workspace is
 * [3, units, cols]: two sums of each part, and then what each group, or each unit, adds to the sums over all rows. */
struct norm_groups {
    int64_t groups, group_rows;
    int64_t parts, part_rows; /* of a group */
    int64_t units;
};

static inline struct norm_groups norm_groups_of(int32_t multiprocessors, int64_t rows, int64_t groups,
                                                int64_t row_bytes) {
    enum { LEAST_BYTES = 2048 }; /* narrower rows have fewer threads, not fewer units */
    const int64_t bytes = row_bytes < LEAST_BYTES ? (int64_t)LEAST_BYTES : row_bytes;
    const int64_t fits = NORM_MULTIPROCESSOR_THREADS * (int64_t)16 / bytes, units = multiprocessors * (fits ? fits : 1);
    const int64_t most = multiprocessors == 0 ? norm_cpu_partials(rows) : rows < units ? rows : units;
    struct norm_groups plan = {groups, groups ? rows / groups : 0, 1, 0, 0};
    if (groups > 0 && groups < most) plan.parts = most / groups;
    if (plan.parts > plan.group_rows) plan.parts = plan.group_rows ? plan.group_rows : 1;
    plan.part_rows = (plan.group_rows + plan.parts - 1) / plan.parts;
    plan.units = plan.parts > 1 ? groups * plan.parts : groups < most ? groups : most;
    return plan;
}

#endif
