/* divergence_cases.h - what the cases of divergences share: x and y are [rows, cols], one formula an element, a reduction. */
#ifndef TESTS_HARNESS_DIVERGENCE_CASES_H
#define TESTS_HARNESS_DIVERGENCE_CASES_H

#include "liger/core/reduction.h"
#include "tests/harness/op_cases.h"

enum {
    DIVERGENCE_X,
    DIVERGENCE_Y,
    DIVERGENCE_LABELS,
    DIVERGENCE_UPSTREAM,
    DIVERGENCE_LOSS,
    DIVERGENCE_DX,
    DIVERGENCE_TENSORS
};
enum { DIVERGENCE_ROWS, DIVERGENCE_COLS };

/* Flags; the two lowest bits are the liger_reduction, a room's own begin at DIVERGENCE_OWN. */
enum {
    DIVERGENCE_REDUCTION = 3,
    DIVERGENCE_LABELLED = 4,
    DIVERGENCE_SCALED = 8,  /* an upstream of one number */
    DIVERGENCE_BY_ROW = 16, /* one for each row */
    DIVERGENCE_BY_ELEMENT = 32 /* one for each element */,
    DIVERGENCE_NO_LOSS = 64,
    DIVERGENCE_NO_DX = 128,
    DIVERGENCE_IGNORED = 256, /* no row counts */
    DIVERGENCE_POISON = 512,  /* ignored rows hold NaN */
    DIVERGENCE_OWN = 1024
};

/* Of one element. The sizes: what a rounding of the terms that value and slope are made of amounts to, in units. */
struct divergence_term {
    double value, slope, value_size, slope_size;
};
typedef struct divergence_term divergence_formula(const struct op_case *c, const struct op_types *types, double x,
                                                  double y);

/* All shapes and options; what else a room's cases have, and flags of its own, follow in each. */
/* clang-format off */
#define DIVERGENCE_CASES(own, ...)                                                                                     \
    {.label = "5x37 all", .size = {5, 37}, .flags = LIGER_REDUCTION_NONE | 4 | 32 | (own), __VA_ARGS__},               \
    {.label = "5x37 mean", .size = {5, 37}, .flags = LIGER_REDUCTION_MEAN | 4 | 8 | (own), __VA_ARGS__},               \
    {.label = "7x16 batchmean", .size = {7, 16}, .flags = LIGER_REDUCTION_BATCHMEAN | (own), __VA_ARGS__},             \
    {.label = "9x64 sum by labels", .size = {9, 64}, .flags = LIGER_REDUCTION_SUM | 4 | (own), __VA_ARGS__},           \
    {.label = "6x40 by row", .size = {6, 40}, .flags = LIGER_REDUCTION_NONE | 16 | (own), __VA_ARGS__},                \
    {.label = "6x41 gradient of none", .size = {6, 41}, .flags = LIGER_REDUCTION_NONE | 32 | 64 | (own), __VA_ARGS__}, \
    {.label = "3x33 gradient of sum", .size = {3, 33}, .flags = LIGER_REDUCTION_SUM | 8 | 64 | (own), __VA_ARGS__},    \
    {.label = "4x100 loss only", .size = {4, 100}, .flags = LIGER_REDUCTION_BATCHMEAN | 128 | (own), __VA_ARGS__},     \
    {.label = "4x100 values only", .size = {4, 100}, .flags = LIGER_REDUCTION_NONE | 128 | (own), __VA_ARGS__},        \
    {.label = "1x1", .size = {1, 1}, .flags = LIGER_REDUCTION_MEAN | (own), __VA_ARGS__},                              \
    {.label = "1031x8", .size = {1031, 8}, .flags = LIGER_REDUCTION_BATCHMEAN | 4 | (own), __VA_ARGS__},               \
    {.label = "70x1", .size = {70, 1}, .flags = LIGER_REDUCTION_MEAN | (own), __VA_ARGS__},                            \
    {.label = "3x8191", .size = {3, 8191}, .flags = LIGER_REDUCTION_BATCHMEAN | 4 | (own), __VA_ARGS__},               \
    {.label = "3x8192", .size = {3, 8192}, .flags = LIGER_REDUCTION_NONE | 32 | (own), __VA_ARGS__},                   \
    {.label = "3x8193", .size = {3, 8193}, .flags = LIGER_REDUCTION_SUM | 8 | (own), __VA_ARGS__},                     \
    {.label = "2x40007", .size = {2, 40007}, .flags = LIGER_REDUCTION_BATCHMEAN | (own), __VA_ARGS__},                 \
    {.label = "33x4104", .size = {33, 4104}, .flags = LIGER_REDUCTION_MEAN | 4 | (own), .large = true, __VA_ARGS__},   \
    {.label = "5x128256", .size = {5, 128256}, .flags = LIGER_REDUCTION_BATCHMEAN | 4 | (own), .large = true,          \
     __VA_ARGS__},                                                                                                     \
    {.label = "2x300001", .size = {2, 300001}, .flags = LIGER_REDUCTION_NONE | 32 | (own), .large = true,              \
     __VA_ARGS__},                                                                                                     \
    {.label = "nothing counts", .size = {5, 40}, .flags = LIGER_REDUCTION_MEAN | 4 | 256 | 512 | (own), .edge = true,  \
     __VA_ARGS__},                                                                                                     \
    {.label = "nothing counts, none", .size = {5, 41}, .flags = LIGER_REDUCTION_NONE | 4 | 32 | 256 | 512 | (own),     \
     .edge = true, __VA_ARGS__},                                                                                       \
    {.label = "NaN in ignored rows", .size = {9, 100}, .flags = LIGER_REDUCTION_BATCHMEAN | 4 | 512 | (own),           \
     .edge = true, __VA_ARGS__},                                                                                       \
    {.label = "nothing asked for", .size = {3, 40}, .flags = LIGER_REDUCTION_SUM | 64 | 128 | (own), .edge = true,     \
     __VA_ARGS__},                                                                                                     \
    {.label = "no rows", .size = {0, 40}, .flags = LIGER_REDUCTION_MEAN | 4 | (own), .edge = true, __VA_ARGS__},       \
    {.label = "no rows, none", .size = {0, 40}, .flags = LIGER_REDUCTION_NONE | (own), .edge = true, __VA_ARGS__},     \
    {.label = "no columns", .size = {5, 0}, .flags = LIGER_REDUCTION_BATCHMEAN | (own), .edge = true, __VA_ARGS__}
#define DIVERGENCE_BENCH(...)                                                                                          \
    {.label = "1024x32000", .size = {1024, 32000}, .flags = LIGER_REDUCTION_BATCHMEAN, __VA_ARGS__},                   \
    {.label = "1024x32000 loss only", .size = {1024, 32000}, .flags = LIGER_REDUCTION_BATCHMEAN | 128, __VA_ARGS__},   \
    {.label = "4096x128256", .size = {4096, 128256}, .flags = LIGER_REDUCTION_BATCHMEAN, .large = true,                \
     .dtypes = 1u << LIGER_BF16, __VA_ARGS__},                                                                         \
    {.label = "4096x128256 loss only", .size = {4096, 128256}, .flags = LIGER_REDUCTION_BATCHMEAN | 128,               \
     .large = true, .dtypes = 1u << LIGER_BF16, __VA_ARGS__}
/* clang-format on */

/* A room draws x and y by itself. */
void divergence_describe(const struct op_case *c, struct tensor_spec *spec);
void divergence_prepare(const struct op_case *c, const struct op_types *types, double *const *t);
/* The numbers that all args structs have. */
#define DIVERGENCE_FILL(args, c)                                                                                       \
    ((args)->ignore_index = -100, (args)->reduction = (int32_t)((c)->flags & DIVERGENCE_REDUCTION))

/* All outputs; sums are added up in f32 if `naive`. */
void divergence_evaluate(const struct op_case *c, const struct op_types *types, double *const *t,
                         divergence_formula *formula, bool naive);
double divergence_loss(const struct op_case *c, const struct op_types *types, double *const *t,
                       divergence_formula *formula);
void divergence_magnitudes(const struct op_case *c, const struct op_types *types, double *const *t, double *magnitude,
                           divergence_formula *formula);

#endif
