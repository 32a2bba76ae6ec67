/* linear_logprob_cases.h - shapes and bench points of log-probabilities on a linear head, and what their numbers and flags mean. */
#ifndef LIGER_OPS_LINEAR_LOGPROB_CASES_H
#define LIGER_OPS_LINEAR_LOGPROB_CASES_H

#include "liger/ops/logprob/logprob_cases.h"

/* Both functions have these tensors in common, and these of a case. */
enum { X, WEIGHT, BIAS, TARGET, SELECTED_IDS, LOGITS, OPERANDS };
enum { LOGPROB_RESULTS(OPERANDS), SELECTED, FORWARD_TENSORS };
enum { LOGPROB_UPSTREAMS(OPERANDS), D_SELECTED, DX, DWEIGHT, DBIAS, BACKWARD_TENSORS };
enum { ROWS, HIDDEN, VOCAB, PART, IDS }; /* PART: rows of a chunk, or columns of a slice */
enum {
    BARE = HAS_LOG_PROB | HAS_LSE | HAS_NORMALIZER,
    BIASED = LOGPROB_FLAGS,
    /* valid_rows: how many are not ignored, one more, or -1. */
    EXACT = LOGPROB_FLAGS << 1,
    MORE = LOGPROB_FLAGS << 2,
    FEWER = LOGPROB_FLAGS << 3, /* valid_rows is too small by one */
    GENERAL = LOGPROB_FLAGS << 4,
    SURE = LOGPROB_FLAGS << 5,    /* all have one target, with p about .9999 */
    NAN_ROW = LOGPROB_FLAGS << 6, /* the first row has a NaN */
    KEPT = LOGPROB_FLAGS << 7,    /* logits are those that forward has left */
    NO_DX = LOGPROB_FLAGS << 8,
    NO_DWEIGHT = LOGPROB_FLAGS << 9,
    NO_DBIAS = LOGPROB_FLAGS << 10,
    WIDE_DX = LOGPROB_FLAGS << 11, /* f32 */
};

static int64_t counted(const struct op_case *c) {
    const int64_t rows = c->size[ROWS];
    return has(c, COUNTED) ? rows : has(c, IGNORED) ? 0 : rows - rows / 3;
}
static int64_t valid_rows(const struct op_case *c) {
    if (has(c, FEWER)) return counted(c) - 1;
    return has(c, EXACT) ? counted(c) : has(c, MORE) ? counted(c) + 1 : -1;
}
/* Rows of logits that backward may have to be given. */
static int64_t most_rows(const struct op_case *c) {
    const int64_t rows = c->size[ROWS], valid = valid_rows(c);
    return valid >= 0 && valid < rows ? valid : rows;
}

/* ---- cases ------------------------------------------------------------------------------------------------------ */

/* The first has every tensor. Chunks: of one row, prime, a divisor, all rows, more than all. */
static const struct op_case forward_cases[] = {
    {.label = "all", .size = {7, 9, 33, 3, 5}, .scalar = {1.5, 6, .7}, .flags = ALL | BIASED},
    {.label = "1x1x1", .size = {1, 1, 1, 1, 1}, .scalar = PLAIN, .flags = ALL},
    {.label = "5x3x2, chunk 1", .size = {5, 3, 2, 1, 3}, .scalar = PLAIN, .flags = ALL | BIASED},
    {.label = "6x8x15, chunk 2", .size = {6, 8, 15, 2, 4}, .scalar = PLAIN, .flags = ALL},
    {.label = "6x8x16, ids of a vector", .size = {6, 8, 16, 2, 16}, .scalar = PLAIN, .flags = ALL},
    {.label = "7x17x17, more ids than classes", .size = {7, 17, 17, 5, 83}, .scalar = PLAIN, .flags = ALL | BIASED},
    {.label = "12x16x64, one chunk, none ignored",
     .size = {12, 16, 64, 12, 3},
     .scalar = PLAIN,
     .flags = ALL | COUNTED},
    {.label = "11x31x67, buffer too large", .size = {11, 31, 67, 16, 2}, .scalar = PLAIN, .flags = ALL | BIASED},
    {.label = "9x12x35 valid rows", .size = {9, 12, 35, 4, 2}, .scalar = PLAIN, .flags = ALL | BIASED | EXACT},
    {.label = "9x12x35 one valid row more", .size = {9, 12, 35, 4, 2}, .scalar = PLAIN, .flags = ALL | MORE},
    {.label = "9x12x35 valid rows, none ignored",
     .size = {9, 12, 35, 4},
     .scalar = PLAIN,
     .flags = BARE | COUNTED | EXACT},
    {.label = "9x12x35 bare", .size = {9, 12, 35, 4}, .scalar = PLAIN, .flags = BARE},
    {.label = "9x12x35 only log_prob", .size = {9, 12, 35, 4}, .scalar = PLAIN, .flags = HAS_LOG_PROB},
    {.label = "9x12x35 only entropy", .size = {9, 12, 35, 4}, .scalar = PLAIN, .flags = HAS_ENTROPY},
    {.label = "9x12x35 only lse", .size = {9, 12, 35, 4}, .scalar = PLAIN, .flags = HAS_LSE},
    {.label = "9x12x35 only log_sum_sq_probs", .size = {9, 12, 35, 4}, .scalar = PLAIN, .flags = HAS_SQUARES},
    {.label = "9x12x35 only mean_logits", .size = {9, 12, 35, 4}, .scalar = PLAIN, .flags = HAS_MEAN},
    {.label = "9x12x35 only is_top1", .size = {9, 12, 35, 4}, .scalar = PLAIN, .flags = HAS_TOP1},
    {.label = "9x12x35 only selected", .size = {9, 12, 35, 4, 3}, .scalar = PLAIN, .flags = HAS_SELECTED},
    {.label = "9x12x35 only normalizer", .size = {9, 12, 35, 4}, .scalar = PLAIN, .flags = HAS_NORMALIZER},
    {.label = "9x12x35 temperature", .size = {9, 12, 35, 4, 3}, .scalar = {1, 0, .6}, .flags = ALL | BIASED},
    {.label = "9x12x35 scale and temperature", .size = {9, 12, 35, 4, 3}, .scalar = {.7, 0, .7}, .flags = ALL},
    {.label = "9x12x35 negative scale", .size = {9, 12, 35, 4, 3}, .scalar = {-1.3, 0, 1}, .flags = ALL | BIASED},
    {.label = "9x12x35 scale 0", .size = {9, 12, 35, 4, 3}, .scalar = {0, 0, 1}, .flags = ALL | BIASED},
    {.label = "9x12x35 cap", .size = {9, 12, 35, 4, 3}, .scalar = {1, 5, 1}, .flags = ALL | BIASED},
    {.label = "9x12x35 narrow cap", .size = {9, 12, 35, 4, 3}, .scalar = {-4, .25, 1}, .flags = ALL | BIASED},
    {.label = "14x12x47 sure", .size = {14, 12, 47, 5, 3}, .scalar = PLAIN, .flags = ALL | BIASED | SURE},
    {.label = "14x12x47 sure, with a factor",
     .size = {14, 12, 47, 5, 3},
     .scalar = {1, 0, .9},
     .flags = ALL | BIASED | SURE},
    {.label = "14x12x47 masked", .size = {14, 12, 47, 5, 9}, .scalar = PLAIN, .flags = ALL | BIASED | MASKED},
    {.label = "14x12x47 masked, with a factor",
     .size = {14, 12, 47, 5, 9},
     .scalar = {1, 0, 2},
     .flags = ALL | BIASED | MASKED},
    {.label = "14x12x47 shifted", .size = {14, 12, 47, 5, 3}, .scalar = PLAIN, .flags = ALL | BIASED | SHIFTED},
    {.label = "23x45x131 general",
     .size = {23, 45, 131, 8, 3},
     .scalar = PLAIN,
     .flags = ALL | BIASED | GENERAL,
     .dtypes = 1u << LIGER_F32},
    {.label = "40x33x3001", .size = {40, 33, 3001, 16, 70}, .scalar = PLAIN, .flags = ALL | BIASED, .large = true},
    {.label = "40x33x3001 cap",
     .size = {40, 33, 3001, 16, 70},
     .scalar = {1, 5, .8},
     .flags = ALL | BIASED,
     .large = true},
    {.label = "no rows", .size = {0, 9, 33, 3, 4}, .scalar = PLAIN, .flags = ALL | BIASED, .edge = true},
    {.label = "no rows, no buffer", .size = {0, 9, 33, 0}, .scalar = PLAIN, .flags = BARE, .edge = true},
    {.label = "no ids", .size = {5, 9, 33, 3, 0}, .scalar = PLAIN, .flags = ALL | BIASED, .edge = true},
    {.label = "all ignored", .size = {5, 9, 33, 2, 4}, .scalar = PLAIN, .flags = ALL | IGNORED, .edge = true},
    {.label = "all ignored, no valid rows",
     .size = {5, 9, 33, 0, 4},
     .scalar = PLAIN,
     .flags = ALL | IGNORED | EXACT,
     .edge = true},
    {.label = "NaN and Inf in ignored rows",
     .size = {7, 9, 33, 3, 4},
     .scalar = PLAIN,
     .flags = ALL | POISON,
     .edge = true},
    {.label = "NaN and Inf in rows left out",
     .size = {7, 9, 33, 3, 4},
     .scalar = PLAIN,
     .flags = ALL | POISON | EXACT,
     .edge = true},
    {.label = "a row of NaN",
     .size = {7, 9, 33, 3, 4},
     .scalar = PLAIN,
     .flags = (ALL & ~HAS_NORMALIZER) | NAN_ROW,
     .edge = true},
    {.label = "a logit of +inf",
     .size = {7, 9, 33, 3, 4},
     .scalar = PLAIN,
     .flags = ALL | BIASED | INFINITE,
     .edge = true},
};

static const struct op_case backward_cases[] = {
    {.label = "all", .size = {7, 9, 33, 13, 5}, .scalar = {1.5, 6, .7}, .flags = ALL | BIASED},
    {.label = "1x1x1", .size = {1, 1, 1, 1, 1}, .scalar = PLAIN, .flags = ALL},
    {.label = "5x3x7, slices of 1", .size = {5, 3, 7, 1, 3}, .scalar = PLAIN, .flags = ALL | BIASED},
    {.label = "7x17x15, slices of 4", .size = {7, 17, 15, 4, 3}, .scalar = PLAIN, .flags = ALL},
    {.label = "7x17x16, slices of 8", .size = {7, 17, 16, 8, 3}, .scalar = PLAIN, .flags = ALL | BIASED},
    {.label = "7x17x17, more ids than classes", .size = {7, 17, 17, 17, 83}, .scalar = PLAIN, .flags = ALL | BIASED},
    {.label = "12x16x64, one slice, none ignored",
     .size = {12, 16, 64, 64, 3},
     .scalar = PLAIN,
     .flags = ALL | COUNTED},
    {.label = "12x16x64, none ignored", .size = {12, 16, 64, 20, 3}, .scalar = PLAIN, .flags = ALL | COUNTED | BIASED},
    {.label = "11x13x29, buffer too large", .size = {11, 13, 29, 40, 2}, .scalar = PLAIN, .flags = ALL | BIASED},
    {.label = "9x12x35 valid rows", .size = {9, 12, 35, 16, 2}, .scalar = PLAIN, .flags = ALL | BIASED | EXACT},
    {.label = "9x12x35 one valid row more", .size = {9, 12, 35, 16, 2}, .scalar = PLAIN, .flags = ALL | MORE},
    {.label = "9x12x35 kept, none ignored", .size = {9, 12, 35, 35, 2}, .scalar = PLAIN, .flags = ALL | KEPT | COUNTED},
    {.label = "9x12x35 kept, valid rows",
     .size = {9, 12, 35, 35, 2},
     .scalar = {1, 0, .8},
     .flags = ALL | BIASED | KEPT | EXACT},
    {.label = "9x12x35 only log_prob", .size = {9, 12, 35, 16}, .scalar = PLAIN, .flags = HAS_LOG_PROB | BIASED},
    {.label = "9x12x35 only entropy", .size = {9, 12, 35, 16}, .scalar = PLAIN, .flags = HAS_ENTROPY | BIASED},
    {.label = "9x12x35 only lse", .size = {9, 12, 35, 16}, .scalar = PLAIN, .flags = HAS_LSE | BIASED},
    {.label = "9x12x35 only log_sum_sq_probs", .size = {9, 12, 35, 16}, .scalar = PLAIN, .flags = HAS_SQUARES | BIASED},
    {.label = "9x12x35 only mean_logits", .size = {9, 12, 35, 16}, .scalar = PLAIN, .flags = HAS_MEAN | BIASED},
    {.label = "9x12x35 only selected", .size = {9, 12, 35, 16, 6}, .scalar = PLAIN, .flags = HAS_SELECTED | BIASED},
    {.label = "9x12x35 no upstream", .size = {9, 12, 35, 16}, .scalar = PLAIN, .flags = BIASED},
    {.label = "9x12x35 log_prob, temperature",
     .size = {9, 12, 35, 16},
     .scalar = {1, 0, .6},
     .flags = HAS_LOG_PROB | BIASED},
    {.label = "9x12x35 negative scale", .size = {9, 12, 35, 16, 3}, .scalar = {-1.3, 0, 1}, .flags = ALL | BIASED},
    {.label = "9x12x35 scale 0", .size = {9, 12, 35, 16, 3}, .scalar = {0, 0, 1}, .flags = ALL | BIASED},
    {.label = "9x12x35 log_prob, cap", .size = {9, 12, 35, 16}, .scalar = {1, 5, 1}, .flags = HAS_LOG_PROB | BIASED},
    {.label = "9x12x35 narrow cap", .size = {9, 12, 35, 16, 3}, .scalar = {-4, 2, 1}, .flags = ALL | BIASED},
    {.label = "14x12x47 sure", .size = {14, 12, 47, 20}, .scalar = PLAIN, .flags = HAS_LOG_PROB | BIASED | SURE},
    {.label = "14x12x47 sure, all", .size = {14, 12, 47, 20, 3}, .scalar = {1, 0, .9}, .flags = ALL | BIASED | SURE},
    {.label = "9x12x35 only dx", .size = {9, 12, 35, 16, 3}, .scalar = PLAIN, .flags = ALL | NO_DWEIGHT | NO_DBIAS},
    {.label = "9x12x35 f32 dx", .size = {9, 12, 35, 16, 3}, .scalar = PLAIN, .flags = ALL | COUNTED | WIDE_DX},
    {.label = "9x12x35 f32 dx, one slice",
     .size = {9, 12, 35, 35, 3},
     .scalar = PLAIN,
     .flags = ALL | COUNTED | WIDE_DX},
    {.label = "9x12x35 f32 dx, valid rows",
     .size = {9, 12, 35, 16, 2},
     .scalar = PLAIN,
     .flags = ALL | EXACT | WIDE_DX},
    {.label = "no rows, f32 dx", .size = {0, 9, 33, 13, 4}, .scalar = PLAIN, .flags = ALL | WIDE_DX, .edge = true},
    {.label = "9x12x35 only dweight", .size = {9, 12, 35, 16, 3}, .scalar = PLAIN, .flags = ALL | NO_DX | NO_DBIAS},
    {.label = "9x12x35 only dbias",
     .size = {9, 12, 35, 16, 3},
     .scalar = PLAIN,
     .flags = ALL | BIASED | NO_DX | NO_DWEIGHT},
    {.label = "23x45x131 general",
     .size = {23, 45, 131, 50, 3},
     .scalar = PLAIN,
     .flags = ALL | BIASED | GENERAL,
     .dtypes = 1u << LIGER_F32},
    {.label = "40x17x3001", .size = {40, 17, 3001, 1200, 70}, .scalar = PLAIN, .flags = ALL | BIASED, .large = true},
    {.label = "shifted", .size = {14, 12, 47, 20, 3}, .scalar = PLAIN, .flags = ALL | BIASED | SHIFTED, .edge = true},
    {.label = "masked",
     .size = {14, 12, 47, 20, 9},
     .scalar = PLAIN,
     .flags = (ALL & ~HAS_MEAN) | BIASED | MASKED,
     .edge = true},
    {.label = "masked, log_prob",
     .size = {14, 12, 47, 20},
     .scalar = PLAIN,
     .flags = HAS_LOG_PROB | BIASED | MASKED,
     .edge = true},
    {.label = "no rows", .size = {0, 9, 33, 13, 4}, .scalar = PLAIN, .flags = ALL | BIASED, .edge = true},
    {.label = "no rows, no buffer", .size = {0, 9, 33, 0}, .scalar = PLAIN, .flags = BARE, .edge = true},
    {.label = "no ids", .size = {5, 9, 33, 13, 0}, .scalar = PLAIN, .flags = ALL | BIASED, .edge = true},
    {.label = "all ignored", .size = {5, 9, 33, 12, 4}, .scalar = PLAIN, .flags = ALL | IGNORED, .edge = true},
    {.label = "all ignored, no valid rows",
     .size = {5, 9, 33, 12, 4},
     .scalar = PLAIN,
     .flags = ALL | IGNORED | EXACT,
     .edge = true},
    {.label = "NaN and Inf in rows left out",
     .size = {7, 9, 33, 12, 4},
     .scalar = PLAIN,
     .flags = ALL | POISON | EXACT,
     .edge = true},
};

/* ---- bench ------------------------------------------------------------------------------------------------------ */

/* With the parts that are advised for bf16. */
static const struct op_case forward_bench[] = {
    {.label = "1024x1024x32000", .size = {1024, 1024, 32000, 352}, .scalar = PLAIN, .flags = BARE | COUNTED},
    {.label = "1024x1024x32000 all",
     .size = {1024, 1024, 32000, 352, 64},
     .scalar = {1, 0, .7},
     .flags = ALL | COUNTED},
    {.label = "16384x4096x131072",
     .size = {16384, 4096, 131072, 4096},
     .scalar = PLAIN,
     .flags = BARE | HAS_ENTROPY | COUNTED,
     .large = true,
     .dtypes = 1u << LIGER_BF16},
};
static const struct op_case backward_bench[] = {
    {.label = "1024x1024x32000",
     .size = {1024, 1024, 32000, 10688},
     .scalar = PLAIN,
     .flags = HAS_LOG_PROB | COUNTED | NO_DBIAS},
    {.label = "1024x1024x32000 all",
     .size = {1024, 1024, 32000, 10688, 64},
     .scalar = {1, 0, .7},
     .flags = ALL | COUNTED | NO_DBIAS},
    {.label = "16384x4096x131072",
     .size = {16384, 4096, 131072, 4096},
     .scalar = PLAIN,
     .flags = HAS_LOG_PROB | HAS_ENTROPY | COUNTED | NO_DBIAS,
     .large = true,
     .dtypes = 1u << LIGER_BF16},
};

#endif
