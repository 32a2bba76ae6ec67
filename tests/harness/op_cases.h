/* op_cases.h - what a room tells the test and bench drivers about one function: its cases file, as a struct.
 *
 * A room's <room>_cases.c defines one `const struct op_cases <op>_<direction>_cases` per public function and, for an
 * internal kernel slot, `<kernel>_cases`. The driver makes every mode (parity, gradient, guard pages, strides, aliases,
 * edges, errors, determinism) out of the same description, so a room writes what is true of its operator and no loops.
 *
 * All tensors of a function, inputs and outputs, stand in one array whose order the room chooses (an enum in its cases
 * file). The reference sees the same array as contiguous doubles: inputs are already rounded to their dtype, absent
 * tensors are NULL, integers are exact. */
#ifndef TESTS_HARNESS_OP_CASES_H
#define TESTS_HARNESS_OP_CASES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "liger/core/context.h"
#include "liger/core/tensor.h"

enum { OP_MAX_TENSORS = 24, OP_MAX_SIZES = 13, OP_MAX_SCALARS = 10, OP_MAX_TEXTS = 4 };

/* One set of sizes and options. What the numbers mean is between the room's own functions (use an enum of indices). */
struct op_case {
    const char *label;
    int64_t size[OP_MAX_SIZES];
    double scalar[OP_MAX_SCALARS];
    uint32_t flags;  /* the room's own option bits */
    uint32_t dtypes; /* bits 1u << LIGER_F32 ...: the Ts this case is run with; 0 = all */
    bool edge;       /* runs in mode edge only: empty inputs, everything ignored, extreme values */
    bool large;      /* runs in modes parity and determinism only, and not with --quick */
};

/* The dtypes of one run. T is LIGER_DTYPE_NONE in mode grad: nothing is rounded. */
struct op_types {
    liger_dtype t, weight, index;
};

/* IN: never written. OUT: never read, filled with canaries first. INOUT: read and written. */
enum tensor_role { ROLE_IN, ROLE_OUT, ROLE_INOUT };

enum tensor_kind {
    KIND_T,      /* the activation dtype of the run: f32, f16, bf16 */
    KIND_WEIGHT, /* T or f32: the driver runs both */
    KIND_F32,
    KIND_INDEX, /* i64 or i32: the driver runs both */
    KIND_I64,   /* always i64 */
    KIND_I32,   /* always i32: words of bits, sums of integers */
    KIND_I8,
    KIND_U8,
    KIND_BOOL
};

/* Data beyond N(0, 1): mode range runs every ordinary case with each of these. */
enum op_range {
    RANGE_HUGE, /* as far up as the function's arithmetic carries, and where the result overflows it must be infinite */
    RANGE_TINY, /* as far down, mostly normal numbers */
    RANGE_SUBNORMAL, /* below the smallest normal number of the dtype */
    RANGE_OFFSET,    /* values about 1024: what varies is a small part of them */
    OP_RANGES,
    RANGE_USUAL = OP_RANGES /* as drawn: every other mode */
};
#define OP_EVERY_RANGE ((1u << OP_RANGES) - 1)

/* Inputs are drawn as told, then rounded to their dtype. */
enum tensor_values {
    VALUES_NORMAL,   /* normal, standard deviation `spread` (0 means 1), shifted by `offset` */
    VALUES_POSITIVE, /* uniform in [0.5, 1.5] */
    VALUES_ZERO,
    VALUES_INTEGER, /* uniform integers in [offset, offset + spread) */
    VALUES_TARGET   /* uniform integers in [0, spread), every `ignore_every`-th (0: none) is `offset` instead */
};

struct tensor_spec {
    const char *name; /* as in the args struct: reports name it */
    enum tensor_role role;
    enum tensor_kind kind;
    enum tensor_values values;
    double spread, offset;
    int ignore_every;
    bool absent; /* this case passes data == NULL; the reference sees NULL */
    int ndim;    /* 0 is a scalar */
    int64_t shape[LIGER_MAX_DIMS];
    int order[LIGER_MAX_DIMS]; /* dimensions from outermost to innermost in memory; all zero = as they are.
                                * {0, 2, 1, 3} makes [batch, heads, seq, dim] a view of [batch, seq, heads, dim] memory */
    bool gaps;     /* mode stride may leave gaps behind rows (the innermost dimension in memory stays contiguous) and
                      * behind the next level; false: the function wants it in one piece */
    bool specials; /* mode edge may plant a NaN and an infinity in this input and expects what the reference gives */
    /* Float inputs: bits 1u << RANGE_HUGE ... that this input takes part in; the others stay as drawn. HUGE and TINY
     * multiply it by these powers of two (0: by what brings it near the largest or the smallest normal number of its dtype;
     * no dtype is left by the draw in any case). */
    uint32_t ranges;
    double huge, tiny;
    /* Outputs: |got - reference| <= relative · u(dtype) · |reference| + absolute · u(f32) · magnitude, where u is the unit
     * roundoff (2^-24, 2^-11, 2^-8) and magnitude, if 0, is the largest |reference| of this output. One correct rounding
     * at the store is relative = 1. Integer outputs must be equal. */
    double relative, absolute, magnitude;
    /* Roundings to T that the contract puts inside the function: each may fall on the other side of a tie, which allows
     * 2 · u(T) · magnitude more (nothing if T is f32). */
    double inner;
    /* With data of the ranges only: results below the normal numbers are off by fixed steps. So many of them more than
     * half of `relative`: roundings before the last one, times what then multiplies them. */
    double steps;
    bool nan_for_infinity; /* an infinity may have met a zero that the reference does not multiply by */
};

/* One call about to be made. An error provocation changes it. */
struct op_call {
    struct op_case c;
    liger_tensor t[OP_MAX_TENSORS];
    void *workspace; /* 256-byte aligned; NULL if the function needs none */
    size_t workspace_bytes;
    /* For calls through a table (op_door.h): a field that is not a tensor and its value; another size than the struct's. */
    const struct door_rule *number;
    double number_is;
    bool claims_size;
    size_t claimed_size;
    void *args_to; /* nothing is called: the args struct goes there */
};

/* One thing about a call that is made wrong; the macros below write it. */
struct op_change {
    enum op_field {
        CHANGES_NOTHING,
        CHANGES_MEMORY, /* tensor lies `value` elements behind the first of tensor `at`; at < 0: it is absent */
        CHANGES_DTYPE,
        CHANGES_NDIM,
        CHANGES_SHAPE,  /* of dimension `at` */
        CHANGES_STRIDE, /* of dimension `at` */
        CHANGES_TO_VECTOR,
        CHANGES_SIZE,   /* number `at` of the case */
        CHANGES_SCALAR, /* number `at` of the case */
        ADDS_FLAGS,
        CHANGES_WORKSPACE_BYTES
    } field;
    int tensor, at;
    double value;
};

#define OP_ABSENT(tensor)                                                                                              \
    { CHANGES_MEMORY, tensor, -1, 0 }
#define OP_ON(tensor, other)                                                                                           \
    { CHANGES_MEMORY, tensor, other, 0 }
#define OP_BESIDE(tensor, other, elements)                                                                             \
    { CHANGES_MEMORY, tensor, other, elements }
#define OP_DTYPE(tensor, dtype)                                                                                        \
    { CHANGES_DTYPE, tensor, 0, dtype }
#define OP_NDIM(tensor, ndim)                                                                                          \
    { CHANGES_NDIM, tensor, 0, ndim }
#define OP_SHAPE(tensor, dimension, size)                                                                              \
    { CHANGES_SHAPE, tensor, dimension, size }
#define OP_STRIDE(tensor, dimension, stride)                                                                           \
    { CHANGES_STRIDE, tensor, dimension, stride }
#define OP_VECTOR(tensor, size)                                                                                        \
    { CHANGES_TO_VECTOR, tensor, 0, size }
#define OP_SIZE(index, value)                                                                                          \
    { CHANGES_SIZE, 0, index, value }
#define OP_SCALAR(index, value)                                                                                        \
    { CHANGES_SCALAR, 0, index, value }
#define OP_FLAGS(bits)                                                                                                 \
    { ADDS_FLAGS, 0, 0, bits }
#define OP_WORKSPACE(bytes)                                                                                            \
    { CHANGES_WORKSPACE_BYTES, 0, 0, bytes }

/* A valid call of cases[0] made wrong: the status and pieces of the sentence - the argument's name and both numbers - must
 * be as stated, and no output may be touched. */
struct op_provocation {
    const char *label;
    struct op_change change;
    liger_status status;
    const char *says[OP_MAX_TEXTS];
    void (*spoil)(struct op_call *call); /* for what one change does not do; may be NULL */
};

struct op_alias {
    int out, in; /* the output may be the very same view as the input (or inout) */
};

struct op_gradient {
    int gradient, input; /* tensor `gradient` holds d loss / d tensor `input` */
};

struct op_run; /* see op_run.h: lets a property run the function on values of its own */

struct op_property {
    const char *label;
    /* NULL if the property holds, else a sentence (static, or op_run_text(run, ...)); op_run_not_applicable(run, reason) if
     * it means nothing for this run, but one at least it must mean something for. The run stands for one case with inputs
     * drawn, nothing expected; the driver calls it for every case that is neither edge nor large. */
    const char *(*check)(struct op_run *run);
    bool of_a_cpu; /* means nothing on a GPU */
};

struct op_cases {
    const char *name; /* "rms_norm_forward" */
    int tensor_count;
    /* Fills spec[0..tensor_count), which is zeroed before. */
    void (*describe)(const struct op_case *c, struct tensor_spec *spec);
    const struct op_case *cases; /* cases[0]: small, with every optional tensor present; error provocations use it */
    int case_count;
    /* Inputs that follow from others or have a form of their own (rstd of x, cos/sin tables, confident logits). Called
     * after the draw and its rounding; what it writes is rounded again. May be NULL. */
    void (*prepare)(const struct op_case *c, const struct op_types *types, double *const *t);
    /* Fills the public args struct and calls the function (a slot: fills its problem, calls context->kernels). */
    liger_status (*call)(liger_context *context, const struct op_call *call, liger_stream stream);
    /* Bytes of workspace; NULL = needs none. */
    liger_status (*workspace)(liger_context *context, const struct op_call *call, size_t *bytes);
    /* Outputs from inputs, in double, three loops. op_round(types->t, v) where the contract rounds in between. */
    void (*reference)(const struct op_case *c, const struct op_types *types, double *const *t);

    /* The same in f32, one accumulator, as one would write it without a thought. Mode naive holds the library's error to
     * twice the error of this. For functions that add up many terms; the others say why not. */
    void (*naive)(const struct op_case *c, const struct op_types *types, double *const *t);
    const char *no_naive;

    /* Magnitudes that only the values tell (a sum whose terms cancel): magnitude[i] of output i, 0 = as in its spec. Sees
     * the reference's outputs too. May be NULL. */
    void (*magnitudes)(const struct op_case *c, const struct op_types *types, double *const *t, double *magnitude);

    /* A backward function only: loss = sum of upstream · forward(inputs), from the same tensor array; the driver
     * compares the reference's gradients with central differences of it. */
    double (*loss)(const struct op_case *c, const struct op_types *types, double *const *t);
    const char *no_loss; /* why there is none */
    const struct op_gradient *gradients;
    int gradient_count;

    const char *no_range[OP_RANGES]; /* why no input takes part in a range */

    const struct op_alias *aliases;
    int alias_count;
    const char *no_aliases; /* why there are none */
    const struct op_provocation *provocations;
    int provocation_count;
    const struct op_provocation *more_provocations; /* a function's own, beside those it shares with another */
    int more_provocation_count;
    const struct op_property *properties;
    int property_count;

    const struct op_case *bench;
    int bench_count;
    /* Bytes that must move and floating-point operations, for GB/s and GFLOP/s. NULL: every tensor once; no GFLOP/s. */
    double (*bytes)(const struct op_case *c, const struct op_types *types);
    double (*flops)(const struct op_case *c);
};

#define OP_COUNT(array) ((int)(sizeof(array) / sizeof((array)[0])))

/* The usual reasons. */
#define OP_NO_SUMS "no sums: an element of a result takes a few roundings"
#define OP_IS_FORWARD "not a backward function: it has no gradients to differentiate"
#define OP_NO_ALIASES "the contract permits no output to be an input"

/* A table of a room and its length, as two members of op_cases. */
#define OP_CASES(table) .cases = table, .case_count = OP_COUNT(table)
#define OP_GRADIENTS(table) .gradients = table, .gradient_count = OP_COUNT(table)
#define OP_ALIASES(table) .aliases = table, .alias_count = OP_COUNT(table)
#define OP_PROVOCATIONS(table) .provocations = table, .provocation_count = OP_COUNT(table)
#define OP_MORE_PROVOCATIONS(table) .more_provocations = table, .more_provocation_count = OP_COUNT(table)
#define OP_PROPERTIES(table) .properties = table, .property_count = OP_COUNT(table)
#define OP_BENCH(table) .bench = table, .bench_count = OP_COUNT(table)

/* Of one function reference_<way> and naive_<way>, which evaluate one problem and write to the same tensors of `t`. */
#define OP_EVALUATED(way, type, problem, ref, naive, ...)                                                              \
    static void reference_##way(const struct op_case *c, const struct op_types *types, double *const *t) {             \
        const type p = problem;                                                                                        \
        (void)types;                                                                                                   \
        ref(&p, __VA_ARGS__);                                                                                          \
    }                                                                                                                  \
    static void naive_##way(const struct op_case *c, const struct op_types *types, double *const *t) {                 \
        const type p = problem;                                                                                        \
        (void)types;                                                                                                   \
        naive(&p, __VA_ARGS__);                                                                                        \
    }
/* The same, where the problem says where results go. */
#define OP_EVALUATED_WHOLE(way, type, problem, ref, naive)                                                             \
    static void reference_##way(const struct op_case *c, const struct op_types *types, double *const *t) {             \
        const type p = problem;                                                                                        \
        (void)types;                                                                                                   \
        ref(&p);                                                                                                       \
    }                                                                                                                  \
    static void naive_##way(const struct op_case *c, const struct op_types *types, double *const *t) {                 \
        const type p = problem;                                                                                        \
        (void)types;                                                                                                   \
        naive(&p);                                                                                                     \
    }

/* v rounded to the nearest value of a float dtype, ties to even; v itself for LIGER_DTYPE_NONE. */
double op_round(liger_dtype dtype, double v);

/* A vector of weights, positive ones. */
struct tensor_spec op_parameter(const char *name, enum tensor_role role, int64_t size, bool absent);

/* Raises a magnitude to a value, if that is finite. */
void op_raise(double *magnitude, double value);

/* The loss of most backward functions: the sum of dy · y, where `forward` is the reference of what `problem` points to. */
typedef void op_forward(const void *problem, double *y);
double op_loss(int64_t elements, const double *dy, op_forward *forward, const void *problem);

#endif
