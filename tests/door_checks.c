/* door_checks.c - see door_checks.h. What the rules of a function refuse is seen in mode error, operator by operator. */
#include "tests/door_checks.h"

#include <stdlib.h>
#include <string.h>

#include "liger/core/door_rules.h"
#include "liger/ops/linear_cross_entropy/linear_cross_entropy.h"
#include "tests/harness/modes.h"
#include "tests/harness/op_door.h"

static void expect(struct report *report, bool fact, const char *what) {
    if (fact) report_pass(report);
    else report_fail(report, "%s", what);
}

/* ---- every table ------------------------------------------------------------------------------------------------- */

enum { MOST_BYTES = 4096 };

/* The tensors whose rules must stand before this one. */
static uint32_t tensors_before(const struct door_rule *rule) {
    uint32_t named = 0;
    if (rule->kind == DOOR_TENSOR && rule->shape.kind == DOOR_LIKE) named |= 1u << rule->shape.like;
    if (rule->kind == DOOR_TENSOR && rule->dtype >= DOOR_AS) named |= 1u << (rule->dtype - DOOR_AS);
    return named;
}

/* Every byte behind `size` belongs to one field, so there is no padding and no field without a rule. */
static void table_is_whole(struct report *report, const struct door *door) {
    unsigned char owners[MOST_BYTES] = {0};
    uint32_t tensors = 0, named = 0;
    bool whole = door->size <= MOST_BYTES, own_name = true, in_order = true;
    for (int i = 0; i < door->count && whole; i++) {
        const struct door_rule *rule = &door->rules[i];
        named |= rule->with | rule->may_be | rule->needs;
        in_order = in_order && (tensors_before(rule) & ~tensors) == 0;
        if (rule->kind == DOOR_CHECK) continue;
        const size_t bytes = rule->bytes + (rule->kind == DOOR_WORKSPACE ? sizeof(size_t) : 0);
        for (size_t b = 0; b < bytes; b++) owners[rule->offset + b]++;
        if (rule->kind == DOOR_TENSOR) tensors |= 1u << rule->at;
        own_name = own_name && strncmp(rule->what, door->function, strlen(door->function)) == 0;
    }
    for (size_t b = sizeof(size_t); b < door->size && whole; b++) whole = owners[b] == 1;
    if (whole && own_name && in_order && (named & ~tensors) == 0) report_pass(report);
    else
        report_fail(report, "%s: %s", door->function,
                    !whole ? "a field has no rule, or two" : "a rule names what is not there, or comes later");
}

static void every_table(struct report *report) {
    for (int k = 0; k < door_count; k++) {
        const struct door_entry *entry = &door_list[k];
        if (entry->call == NULL) continue;
        if (entry->door == NULL) report_fail(report, "%s has no table", entry->name);
        else table_is_whole(report, entry->door);
    }
}

/* ---- a made-up function: what no operator needs yet ------------------------------------------------------------- */

typedef struct liger_made_up_args {
    size_t size;
    liger_tensor blocks; /* [4·groups], u8 */
    liger_tensor codes;  /* [groups, width], i8 */
    liger_tensor mask;   /* [groups], bool; with `masked` */
    liger_tensor masked; /* [groups, any] */
    int32_t width;
    int32_t reserved;
} liger_made_up_args;

struct made_up_problem {
    const void *blocks, *codes, *mask;
    void *masked;
    int32_t masked_dtype, width;
    int64_t masked_stride;
};

enum { GROUPS = 1, WIDTH };

#define DOOR made_up, made_up_problem
/* clang-format off */
static const struct door_rule rules[] = {
    {INT32(width), AT_LEAST(1), BINDS(WIDTH), TO(width)},
    {ARG(blocks), IN,  DTYPE(U8),   VECTOR(TIMES(4, GROUPS)), TO_POINTER(blocks)},
    {ARG(codes),  IN,  DTYPE(I8),   DIMS(2, GROUPS, WIDTH),   TO_PITCHED(codes)},
    {ARG(mask),   IN,  DTYPE(BOOL), VECTOR(GROUPS),           TO_POINTER(mask), ONLY_WITH(masked)},
    {ARG(masked), OUT, ANY_FLOAT,   LIKE_BUT(codes, 1),       TO_LAST(masked), DTYPE_TO(masked_dtype),
                                                              PITCH_TO(masked_stride), ONLY_WITH(mask)},
    {RESERVED(reserved)},
};
/* clang-format on */
#undef DOOR
static const struct door made_up_door = DOOR_OF(made_up, rules);

static unsigned char memory[4][512];

static liger_made_up_args valid(void) {
    liger_made_up_args args = {.size = sizeof args, .width = 3};
    args.blocks = liger_tensor_contiguous(memory[0], LIGER_U8, 1, (int64_t[]){8});
    args.codes = liger_tensor_contiguous(memory[1], LIGER_I8, 2, (int64_t[]){2, 3});
    args.mask = liger_tensor_contiguous(memory[2], LIGER_BOOL, 1, (int64_t[]){2});
    args.masked = liger_tensor_contiguous(memory[3], LIGER_BF16, 2, (int64_t[]){2, 7});
    return args;
}

static void refused(struct report *report, liger_context *context, const liger_made_up_args *args, liger_status status,
                    const char *says) {
    liger_made_up_args known;
    struct made_up_problem problem;
    struct door_call call;
    const liger_status got = door_enter(&call, &made_up_door, context, args, &known, &problem);
    if (got == status && strstr(liger_last_error(), says) != NULL) report_pass(report);
    else report_fail(report, "%s, not: %s (%s)", liger_status_name(got), says, liger_last_error());
}

static void words(struct report *report, liger_context *context) {
    liger_made_up_args args = valid(), known;
    struct made_up_problem problem = {.mask = NULL};
    struct door_call call;
    expect(report, door_enter(&call, &made_up_door, context, &args, &known, &problem) == LIGER_OK, liger_last_error());
    expect(report, call.size[GROUPS] == 2 && call.size[WIDTH] == 3, "sizes are bound by a multiple and by a number");
    expect(report, problem.masked_dtype == LIGER_BF16 && problem.masked_stride == 7 && problem.width == 3,
           "dtype, stride and number are in the problem");
    expect(report, problem.masked == memory[3] && problem.codes == memory[1], "so are addresses");
    args.blocks.shape[0] = 9;
    refused(report, context, &args, LIGER_ERR_SHAPE, "made_up: blocks: shape[0] is 9, but must be a multiple of 4");
    args = valid(), args.blocks.shape[0] = 12;
    refused(report, context, &args, LIGER_ERR_SHAPE, "made_up: codes: shape[0] is 2, but must be 3");
    args = valid(), args.width = 4;
    refused(report, context, &args, LIGER_ERR_SHAPE, "made_up: codes: shape[1] is 3, but must be 4");
    args = valid(), args.mask.data = NULL;
    refused(report, context, &args, LIGER_ERR_ARGUMENT, "made_up: mask is required");
    args = valid(), args.masked.shape[0] = 1;
    refused(report, context, &args, LIGER_ERR_SHAPE, "made_up: masked: shape[0] is 1, but codes has 2");
    args = valid(), args.mask.dtype = LIGER_U8;
    refused(report, context, &args, LIGER_ERR_DTYPE, "made_up: mask is u8, but must be bool");
    args = valid(), args.mask.data = args.masked.data = NULL;
    expect(report, door_enter(&call, &made_up_door, context, &args, &known, &problem) == LIGER_OK,
           "both may be absent");
    args = valid(), args.size = offsetof(liger_made_up_args, masked), args.mask.data = NULL;
    expect(report, door_enter(&call, &made_up_door, context, &args, &known, &problem) == LIGER_ERR_ARGUMENT,
           "what an older caller does not know is zero");
}

/* ---- a workspace that is not needed ------------------------------------------------------------------------------ */

typedef struct liger_seldom_args {
    size_t size;
    liger_tensor x, sums;
    void *workspace; /* for sums */
    size_t workspace_bytes;
} liger_seldom_args;

struct seldom_problem {
    void *workspace;
};

static size_t a_page_for_sums(const struct door_call *call) { return (void)call, 256; }

#define DOOR seldom, seldom_problem
static const struct door_rule seldom_rules[] = {
    {ARG(x), IN, FLOAT_T, VECTOR(1), LAST},
    {ARG(sums), OUT, T, LIKE(x), LAST, OPTIONAL},
    {WORKSPACE(a_page_for_sums, x), ONLY_WITH(sums), TO(workspace)},
};
#undef DOOR
static const struct door seldom_door = DOOR_OF(seldom, seldom_rules);

/* Callers hand one arena to every call. A kernel looks whether there is a workspace to find out whether there is work. */
static void workspace_in_vain(struct report *report, liger_context *context) {
    float *arena = aligned_alloc(256, 512);
    liger_seldom_args args, given = {.size = sizeof given, .workspace = arena, .workspace_bytes = 512};
    struct seldom_problem problem = {arena + 1};
    struct door_call call;
    float x[4] = {0}, sums[4];
    given.x = liger_tensor_contiguous(x, LIGER_F32, 1, (int64_t[]){4});
    expect(report, door_enter(&call, &seldom_door, context, &given, &args, &problem) == LIGER_OK, liger_last_error());
    expect(report, problem.workspace == NULL, "a workspace that nobody needs is none");
    given.sums = liger_tensor_contiguous(sums, LIGER_F32, 1, (int64_t[]){4});
    expect(report, door_enter(&call, &seldom_door, context, &given, &args, &problem) == LIGER_OK, liger_last_error());
    expect(report, problem.workspace == arena, "one that is needed is the caller's");
    free(arena);
}

/* ---- the refusals that the driver derives ------------------------------------------------------------------------- */

typedef struct liger_plain_args {
    size_t size;
    liger_tensor x, weight, y, sums;
    int64_t first;
    float scale;
    int32_t reserved;
    void *workspace;
    size_t workspace_bytes;
} liger_plain_args;

enum { ROWS = 1, COLS };
static size_t one_page(const struct door_call *call) { return (void)call, 256; }

#define DOOR plain, plain
/* clang-format off */
static const struct door_rule plain_rules[] = {
    {ARG(x),      IN,  FLOAT_T,    MATRIX(ROWS, SOME(COLS)), LAST},
    {ARG(weight), IN,  T_OR_F32,   VECTOR(COLS),             CONTIGUOUS, OPTIONAL},
    {ARG(y),      OUT, T,          LIKE(x),                  LAST, MAY_BE(x)},
    {ARG(sums),   OUT, DTYPE(F32), VECTOR(ROWS),             CONTIGUOUS},
    {INT64(first)},
    {FLOAT(scale), BETWEEN(0, 1)},
    {RESERVED(reserved)},
    {WORKSPACE(one_page, x)},
};
/* clang-format on */
#undef DOOR
static const struct door plain_door = DOOR_OF(plain, plain_rules);

/* What a door may do wrong as a whole; each part of it is broken by hand when it changes. */
static enum { CHECKS_ALL, LETS_ALL_PASS, REFUSES_ALL } plain_does;

static liger_status enter_plain(liger_context *context, const void *given, liger_stream stream) {
    liger_plain_args args;
    struct door_call call;
    (void)stream;
    if (plain_does == LETS_ALL_PASS) return LIGER_OK;
    if (plain_does == REFUSES_ALL) return liger_fail(LIGER_ERR_UNSUPPORTED, "plain: x y weight sums NULL 0 1 but");
    return door_enter(&call, &plain_door, context, given, &args, NULL);
}

static liger_status query_plain(liger_context *context, const void *given, size_t *bytes) {
    liger_plain_args args;
    *bytes = 256;
    return plain_does == CHECKS_ALL ? door_workspace(&plain_door, context, given, &args, bytes) : LIGER_OK;
}

enum { PLAIN_X, PLAIN_WEIGHT, PLAIN_Y, PLAIN_SUMS, PLAIN_TENSORS };
static const struct door_entry plain_entry = {
    .name = "plain", .door = &plain_door, .call = enter_plain, .workspace = query_plain};
static struct op_door plain_way = {.entry = &plain_entry, .tensor = {0, 1, 2, 3}};

static void describe_plain(const struct op_case *c, struct tensor_spec *spec) {
    const struct tensor_spec matrix = {.kind = KIND_T, .ndim = 2, .shape = {c->size[0], c->size[1]}, .gaps = true};
    spec[PLAIN_X] = spec[PLAIN_Y] = matrix;
    spec[PLAIN_X].name = "x", spec[PLAIN_Y].name = "y", spec[PLAIN_Y].role = ROLE_OUT;
    spec[PLAIN_WEIGHT] = (struct tensor_spec){.name = "weight", .kind = KIND_WEIGHT, .ndim = 1, .shape = {c->size[1]}};
    spec[PLAIN_SUMS] =
        (struct tensor_spec){.name = "sums", .role = ROLE_OUT, .kind = KIND_F32, .ndim = 1, .shape = {c->size[0]}};
}

static liger_status call_plain(liger_context *context, const struct op_call *call, liger_stream stream) {
    return op_door_call(&plain_way, context, call, stream);
}
static liger_status workspace_plain(liger_context *context, const struct op_call *call, size_t *bytes) {
    return op_door_workspace(&plain_way, context, call, bytes);
}

static struct report refusals_of_plain(liger_context *context) {
    static const struct op_case c = {.label = "5x7", .size = {5, 7}};
    static const struct op_cases op = {.name = "plain",
                                       .tensor_count = PLAIN_TENSORS,
                                       .describe = describe_plain,
                                       .cases = &c,
                                       .case_count = 1,
                                       .call = call_plain,
                                       .workspace = workspace_plain};
    const struct op_types types = {LIGER_F32, LIGER_F32, LIGER_I64};
    struct report silent = {.silent = true};
    struct op_run *run = op_run_new(context, &op, &c, types, 1);
    if (run != NULL) modes_refuse_rules(run, &plain_door, &silent);
    op_run_free(run);
    return silent;
}

static void derived_refusals(struct report *report, liger_context *context) {
    const struct report right = refusals_of_plain(context);
    expect(report, right.failed == 0 && right.passed > 100, "a door that checks all");
    plain_does = LETS_ALL_PASS;
    const struct report open = refusals_of_plain(context);
    expect(report, open.passed == 0 && open.failed == right.passed, "a door that lets all pass");
    plain_does = REFUSES_ALL;
    const struct report closed = refusals_of_plain(context);
    expect(report, closed.passed == 0 && closed.failed == right.passed, "a door that refuses for another reason");
    plain_does = CHECKS_ALL;
}

/* ---- a longer struct, options ----------------------------------------------------------------------------------- */

/* In words of the struct, not of its rules: the driver takes the sizes that it cuts from the same function as the door. */
static void older_callers(struct report *report) {
    static const size_t ends[] = {sizeof(size_t),
                                  offsetof(liger_plain_args, weight),
                                  offsetof(liger_plain_args, y),
                                  offsetof(liger_plain_args, sums),
                                  offsetof(liger_plain_args, first),
                                  offsetof(liger_plain_args, scale),
                                  offsetof(liger_plain_args, reserved),
                                  offsetof(liger_plain_args, workspace),
                                  offsetof(liger_plain_args, workspace_bytes),
                                  sizeof(liger_plain_args)};
    size_t right = 0;
    for (size_t size = 0, next = 0; size <= sizeof(liger_plain_args); size++) {
        const bool ends_here = size == ends[next];
        if (ends_here) next++;
        right += door_ends_a_field(&plain_door, size) == ends_here;
    }
    expect(report, right == sizeof(liger_plain_args) + 1, "a struct of an older caller ends with a field");
}

static void newer_callers(struct report *report, liger_context *context) {
    struct {
        liger_made_up_args known;
        int64_t later;
    } newer = {.known = valid()};
    newer.known.size = sizeof newer;
    liger_made_up_args args;
    struct made_up_problem problem;
    struct door_call call;
    const liger_status status = door_enter(&call, &made_up_door, context, &newer, &args, &problem);
    expect(report, status == LIGER_OK, "a later field that is zero");
    newer.later = 1;
    refused(report, context, &newer.known, LIGER_ERR_ABI, "a later field is set");
}

static void options(struct report *report) {
    liger_context_options given = LIGER_CONTEXT_OPTIONS_INIT;
    liger_context *context = NULL;
    given.reserved = 1;
    expect(report, liger_context_create(&given, &context) == LIGER_ERR_ABI, "reserved options are 0");
    given.reserved = 0;
    given.size = offsetof(liger_context_options, user) + 3;
    expect(report, liger_context_create(&given, &context) == LIGER_ERR_ABI, "options that end in a field");
    given.size = offsetof(liger_context_options, user);
    expect(report, liger_context_create(&given, &context) == LIGER_OK, "options of an older caller");
    liger_context_destroy(context);
}

/* ---- refused before anything is written -------------------------------------------------------------------------- */

#ifdef LIGER_HAS_CUDA
static int launches;

#define STUB(slot)                                                                                                     \
    static liger_status slot##_stub(liger_context *context, const struct slot##_problem *problem, liger_stream s) {    \
        (void)context, (void)problem, (void)s, launches++;                                                             \
        return LIGER_OK;                                                                                               \
    }
STUB(cross_entropy_count)
STUB(cross_entropy_rows)
STUB(cross_entropy_reduce)
STUB(gemm)
STUB(column_sum)

/* A CUDA context whose kernels count: where cuBLASLt is missing, none may be launched. */
static void no_products(struct report *report) {
    const liger_kernel_table stubs = {
        .backend = "stubs",
        .cross_entropy_count = cross_entropy_count_stub,
        .cross_entropy_rows = cross_entropy_rows_stub,
        .cross_entropy_reduce = cross_entropy_reduce_stub,
        .gemm = gemm_stub,
        .column_sum = column_sum_stub,
    };
    struct liger_context context = {.kernels = &stubs, .device = 0, .multiprocessors = 1};
    const bool missing = strncmp(liger_context_gemm_provider(&context), "none", 4) == 0;
    static float x[4], weight[4], logits[4], counts[4];
    static int64_t target[2];
    liger_linear_cross_entropy_forward_args args = LIGER_LINEAR_CROSS_ENTROPY_FORWARD_ARGS_INIT;
    args.x = liger_tensor_contiguous(x, LIGER_F32, 2, (int64_t[]){2, 2});
    args.weight = liger_tensor_contiguous(weight, LIGER_F32, 2, (int64_t[]){2, 2});
    args.target = liger_tensor_contiguous(target, LIGER_I64, 1, (int64_t[]){2});
    args.logits = liger_tensor_contiguous(logits, LIGER_F32, 2, (int64_t[]){2, 2});
    args.counts = liger_tensor_contiguous(counts, LIGER_F32, 1, (int64_t[]){4});
    expect(report, liger_linear_cross_entropy_forward_workspace(&context, &args, &args.workspace_bytes) == LIGER_OK,
           "the workspace of a loss");
    args.workspace = aligned_alloc(256, args.workspace_bytes);
    const liger_status status = liger_linear_cross_entropy_forward(&context, &args, NULL);
    free(args.workspace);
    expect(report, status == (missing ? LIGER_ERR_UNSUPPORTED : LIGER_OK), liger_last_error());
    expect(report, (launches == 0) == missing, "without cuBLASLt nothing is launched, with it something is");
}
#else
static void no_products(struct report *report) { (void)report; /* the CPU always has products */ }
#endif

void door_checks(struct report *report) {
    liger_context *context = NULL;
    report_begin(report);
    expect(report, liger_context_create(NULL, &context) == LIGER_OK, "a context with default options");
    every_table(report);
    words(report, context);
    workspace_in_vain(report, context);
    derived_refusals(report, context);
    older_callers(report);
    newer_callers(report, context);
    options(report);
    no_products(report);
    liger_context_destroy(context);
    report_end(report, "core", "door", "host");
}
