/* linear_logprob_cases.c - calls, tolerances and properties of log-probabilities on a linear head; shapes stand in the header.
 *
 * Logits are exact (linear_head_cases.h); only the GENERAL cases, in f32, have logits with an error of their own. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "liger/core/context_state.h"
#include "liger/ops/linear_logprob/linear_logprob.h"
#include "liger/ops/linear_logprob/linear_logprob_cases.h"
#include "liger/ops/linear_logprob/linear_logprob_ref.h"
#include "tests/harness/linear_head_cases.h"
#include "tests/harness/op_door.h"
#include "tests/harness/op_run.h"

/* ---- tensors ---------------------------------------------------------------------------------------------------- */

static void describe_operands(const struct op_case *c, struct tensor_spec *spec) {
    const int64_t rows = c->size[ROWS], hidden = c->size[HIDDEN], vocab = c->size[VOCAB];
    spec[X] = (struct tensor_spec){.name = "x", .kind = KIND_T, .ndim = 2, .shape = {rows, hidden}, .gaps = true};
    spec[WEIGHT] =
        (struct tensor_spec){.name = "weight", .kind = KIND_T, .spread = .5, .ndim = 2, .shape = {vocab, hidden}};
    spec[BIAS] =
        (struct tensor_spec){.name = "bias", .kind = KIND_T, .ndim = 1, .shape = {vocab}, .absent = !has(c, BIASED)};
    spec[TARGET] = logprob_target(c, rows, vocab);
    spec[SELECTED_IDS] = (struct tensor_spec){.name = "selected_ids",
                                              .kind = KIND_INDEX,
                                              .values = VALUES_TARGET,
                                              .spread = (double)vocab,
                                              .ndim = 1,
                                              .shape = {c->size[IDS]},
                                              .absent = !has(c, HAS_SELECTED)};
}

static struct tensor_spec of_ids(const struct op_case *c, const char *name, enum tensor_role role) {
    return logprob_by_rows(name, role, c->size[ROWS], c->size[IDS], has(c, HAS_SELECTED));
}

/* f32 logits err by hidden u of their terms' magnitudes, about 4 hidden u. */
static double error_of_z(const struct op_case *c) {
    return logprob_error_of_z(c) + (has(c, GENERAL) ? 4.0 * (double)c->size[HIDDEN] : 0);
}

/* An exponential takes 4 u, the sum over a row some 16 more, logarithm and differences the rest: 32 u of log p, whatever its
 * size, because 1 - p is a sum as well where p is about 1 (SURE). Where the most probable class is not the target, a
 * logarithm of about 1 has an error of some u that nothing makes small. */
static void describe_forward(const struct op_case *c, struct tensor_spec *spec) {
    const double relative = 32 + 2 * error_of_z(c), about_one = has(c, SURE) ? 0 : 16 + 2 * error_of_z(c);
    describe_operands(c, spec);
    spec[LOGITS] = head_chunk("logits", c->size[PART], c->size[VOCAB]);
    logprob_describe_results(c, c->size[ROWS], &spec[LOG_PROB]);
    spec[SELECTED] = of_ids(c, "selected_log_probs", ROLE_OUT);
    for (int i = LOG_PROB; i < FORWARD_TENSORS; i++)
        if (i != IS_TOP1) spec[i].relative = relative, spec[i].absolute = about_one, spec[i].magnitude = 1;
    spec[LOG_PROB].absolute = 0;
    spec[SQUARES].relative *= 2, spec[SQUARES].absolute *= 2;
    /* Sums about 1024 are rounded to steps of 1024 u, sums of what differs from it to none. */
    spec[LSE].relative = spec[MEAN].relative = 2;
    spec[LSE].absolute = spec[MEAN].absolute = 16 + 2 * error_of_z(c);
}

static void describe_backward(const struct op_case *c, struct tensor_spec *spec) {
    describe_operands(c, spec);
    spec[LOGITS] = head_chunk("logits", most_rows(c), c->size[PART]);
    logprob_describe_upstreams(c, c->size[ROWS], &spec[OF_LOG_PROB]);
    spec[D_SELECTED] = of_ids(c, "d_selected_log_probs", ROLE_IN);
    head_describe_gradients(c->size[ROWS], c->size[HIDDEN], c->size[VOCAB], &spec[DX], &spec[DWEIGHT], &spec[DBIAS]);
    if (has(c, WIDE_DX)) spec[DX].kind = KIND_F32;
    spec[DX].absent = has(c, NO_DX), spec[DWEIGHT].absent = has(c, NO_DWEIGHT), spec[DBIAS].absent = has(c, NO_DBIAS);
}

/* ---- reference -------------------------------------------------------------------------------------------------- */

static struct linear_logprob_ref reference_of(const struct op_case *c, const struct op_types *types, double *const *t) {
    struct linear_logprob_ref ref = {
        .rows = logprob_ref_of(c, c->size[ROWS], c->size[VOCAB]),
        .hidden = c->size[HIDDEN],
        .x = t[X],
        .weight = t[WEIGHT],
        .bias = t[BIAS],
    };
    ref.rows.ids = c->size[IDS], ref.rows.dtype = types->t;
    ref.rows.target = t[TARGET], ref.rows.selected_ids = t[SELECTED_IDS];
    ref.rows.logits = head_doubles(c->size[ROWS] * c->size[VOCAB]);
    return ref;
}

static void evaluate_forward(const struct op_case *c, const struct op_types *types, double *const *t,
                             void (*loops)(struct linear_logprob_ref)) {
    struct linear_logprob_ref ref = reference_of(c, types, t);
    logprob_ref_results(&ref.rows, t + LOG_PROB);
    ref.rows.selected = t[SELECTED];
    loops(ref);
    free(ref.rows.logits);
}
static void reference_forward(const struct op_case *c, const struct op_types *types, double *const *t) {
    evaluate_forward(c, types, t, linear_logprob_reference_forward);
}
static void naive_forward(const struct op_case *c, const struct op_types *types, double *const *t) {
    evaluate_forward(c, types, t, linear_logprob_naive_forward);
}

static struct linear_logprob_ref backward_of(const struct op_case *c, const struct op_types *types, double *const *t) {
    struct linear_logprob_ref ref = reference_of(c, types, t);
    logprob_ref_upstreams(&ref.rows, t + OF_LOG_PROB);
    ref.rows.d_selected = t[D_SELECTED];
    ref.rows.dlogits = head_doubles(c->size[ROWS] * c->size[VOCAB]);
    return ref;
}
static void release(const struct linear_logprob_ref *ref) {
    free(ref->rows.logits);
    free(ref->rows.dlogits);
    free(ref->rows.terms);
}

static void evaluate_backward(const struct op_case *c, const struct op_types *types, double *const *t,
                              void (*loops)(struct linear_logprob_ref)) {
    struct linear_logprob_ref ref = backward_of(c, types, t);
    ref.dx = t[DX], ref.dweight = t[DWEIGHT], ref.dbias = t[DBIAS];
    loops(ref);
    release(&ref);
}
static void reference_backward(const struct op_case *c, const struct op_types *types, double *const *t) {
    evaluate_backward(c, types, t, linear_logprob_reference_backward);
}
static void naive_backward(const struct op_case *c, const struct op_types *types, double *const *t) {
    evaluate_backward(c, types, t, linear_logprob_naive_backward);
}

static double loss_backward(const struct op_case *c, const struct op_types *types, double *const *t) {
    struct linear_logprob_ref ref = backward_of(c, types, t);
    linear_logprob_reference_forward(ref); /* the logits */
    const double loss = logprob_ref_loss(ref.rows);
    release(&ref);
    return loss;
}

/* ---- inputs ------------------------------------------------------------------------------------------------------- */

static void spoil_ignored_rows(const struct op_case *c, double *const *t, int first_upstream, int upstreams) {
    const int64_t hidden = c->size[HIDDEN];
    for (int64_t r = 0; r < c->size[ROWS]; r++) {
        if (t[TARGET][r] >= 0) continue;
        t[X][r * hidden] = NAN, t[X][r * hidden + 1] = INFINITY;
        for (int i = 0; i < upstreams; i++)
            if (t[first_upstream + i]) t[first_upstream + i][r] = NAN;
    }
}

static void prepare_operands(const struct op_case *c, const struct op_types *types, double *const *t) {
    const int64_t rows = c->size[ROWS], hidden = c->size[HIDDEN], vocab = c->size[VOCAB];
    if (!has(c, GENERAL)) {
        head_coarsen(t[X], rows * hidden);
        head_coarsen(t[WEIGHT], vocab * hidden);
        head_coarsen(t[BIAS], vocab);
    }
    for (int64_t r = 0; r < rows; r++) {
        if (t[TARGET][r] < 0) continue;
        if (has(c, SURE)) t[TARGET][r] = (double)(vocab / 2);
        if (has(c, MASKED)) t[TARGET][r] -= (int64_t)t[TARGET][r] % 3 == 1;
    }
    for (int64_t j = 0; t[BIAS] && j < vocab; j++) {
        if (has(c, SURE)) t[BIAS][j] = j == vocab / 2 ? round(16 * (9.5 + log((double)vocab))) / 16 : t[BIAS][j] / 4;
        if (has(c, MASKED) && j % 3 == 1) t[BIAS][j] = -INFINITY;
        if (has(c, SHIFTED)) t[BIAS][j] = op_round(types->t, t[BIAS][j] + 1024);
        if (has(c, INFINITE) && j == 0) t[BIAS][j] = INFINITY;
    }
    for (int64_t i = 0; has(c, SURE) && i < rows * hidden; i++) t[X][i] = round(t[X][i] * 4) / 16;
    if (has(c, NAN_ROW)) t[X][0] = NAN;
    /* Some ids are there twice, and one is a target. */
    if (t[SELECTED_IDS] && c->size[IDS] > 2) t[SELECTED_IDS][2] = t[SELECTED_IDS][0];
    if (t[SELECTED_IDS] && c->size[IDS] > 1 && rows > 0 && t[TARGET][0] >= 0) t[SELECTED_IDS][1] = t[TARGET][0];
}

static void prepare_forward(const struct op_case *c, const struct op_types *types, double *const *t) {
    prepare_operands(c, types, t);
    if (has(c, POISON)) spoil_ignored_rows(c, t, 0, 0);
}

/* The statistics that forward gives, and the logits that it leaves: those of the rows that count, if it has left out any. */
static void prepare_backward(const struct op_case *c, const struct op_types *types, double *const *t) {
    const int64_t vocab = c->size[VOCAB];
    int64_t place = 0;
    prepare_operands(c, types, t);
    struct linear_logprob_ref ref = reference_of(c, types, t);
    logprob_ref_statistics(&ref.rows, t + OF_LOG_PROB);
    linear_logprob_reference_forward(ref);
    for (int64_t r = 0; has(c, KEPT) && r < c->size[ROWS]; r++)
        if (t[TARGET][r] >= 0)
            memcpy(t[LOGITS] + vocab * place++, ref.rows.logits + vocab * r, (size_t)vocab * sizeof(double));
    free(ref.rows.logits);
    if (has(c, POISON)) spoil_ignored_rows(c, t, D_LOG_PROB, D_MEAN - D_LOG_PROB + 1);
}

/* ---- calls ------------------------------------------------------------------------------------------------------ */

#define OPTIONS(to, c) (LOGPROB_OPTIONS(to, c), (to)->valid_rows = valid_rows(c))

static void forward_options(const struct op_case *c, void *args) {
    OPTIONS((liger_linear_logprob_forward_args *)args, c);
}
static void backward_options(const struct op_case *c, void *args) {
    liger_linear_logprob_backward_args *to = args;
    OPTIONS(to, c);
    to->logits_kept = has(c, KEPT);
}
OP_DOOR(linear_logprob_forward, forward_options)
OP_DOOR_WORKSPACE(linear_logprob_forward)
OP_DOOR(linear_logprob_backward, backward_options)
OP_DOOR_WORKSPACE(linear_logprob_backward)

/* ---- budgets ---------------------------------------------------------------------------------------------------- */

static void magnitudes(const struct op_case *c, const struct op_types *types, double *const *t, double *magnitude) {
    const int64_t elements = c->size[ROWS] * c->size[VOCAB];
    struct linear_logprob_ref ref = backward_of(c, types, t);
    ref.rows.terms = head_doubles(elements);
    linear_logprob_reference_backward(ref);
    const double each = logprob_error_of_gradient(c, error_of_z(c));
    for (int64_t i = 0; i < elements; i++) ref.rows.terms[i] *= each;
    const struct head_budget budget = {
        .rows = c->size[ROWS],
        .hidden = c->size[HIDDEN],
        .vocab = c->size[VOCAB],
        .t = types->t,
        .x = t[X],
        .weight = t[WEIGHT],
        .dlogits = ref.rows.dlogits,
        .error = ref.rows.terms,
    };
    head_magnitudes(&budget, &magnitude[DX], &magnitude[DWEIGHT], &magnitude[DBIAS]);
    release(&ref);
}

static const struct op_gradient gradients[] = {{DX, X}, {DWEIGHT, WEIGHT}, {DBIAS, BIAS}};

/* ---- refusals --------------------------------------------------------------------------------------------------- */

static void without_logits(struct op_call *call) { call->t[LOGITS] = (liger_tensor){.data = NULL}; }

static const struct op_provocation shared_provocations[] = {
    {"logits absent", OP_ABSENT(LOGITS), LIGER_ERR_ARGUMENT, {"logits is required"}},
};
static const struct op_provocation forward_provocations[] = {
    {"logits without rows", OP_SHAPE(LOGITS, 0, 0), LIGER_ERR_SHAPE, {"logits", "1 or more rows", "has 0"}},
};
static const struct op_provocation backward_provocations[] = {
    {"too few rows of logits", OP_SHAPE(LOGITS, 0, 6), LIGER_ERR_SHAPE, {": logits has 6 rows, but 7 may have to be"}},
    {"logits without columns", OP_SHAPE(LOGITS, 1, 0), LIGER_ERR_SHAPE, {": logits has no columns"}},
    {"kept logits absent", OP_FLAGS(KEPT), LIGER_ERR_ARGUMENT, {"logits is required"}, without_logits},
    {"a slice of kept logits",
     OP_FLAGS(KEPT),
     LIGER_ERR_SHAPE,
     {": logits has 13 columns, but those that were kept are 33"}},
};

/* ---- properties ------------------------------------------------------------------------------------------------- */

/* Chunks of any size give what the whole gives, within the same budget. */
static const char *any_chunk(struct op_run *run) {
    const int64_t rows = run->c.size[ROWS], chunks[] = {1, 2, rows / 2 + 1, rows, rows + 3};
    return op_run_any_size(run, PART, chunks, OP_COUNT(chunks));
}
static const char *any_slice(struct op_run *run) {
    const int64_t vocab = run->c.size[VOCAB], slices[] = {1, 2, vocab / 3 + 1, vocab / 2 + 1, vocab, vocab + 3};
    if (has(&run->c, KEPT)) return op_run_not_applicable(run, "slices of any size: kept logits are one");
    return op_run_any_size(run, PART, slices, OP_COUNT(slices));
}

static bool on_cpu(const struct op_run *run) { return liger_context_device(run->context) == LIGER_DEVICE_CPU; }

static const char *refusal(struct op_run *run, liger_status wanted, const char *says) {
    const liger_status status = op_run_call(run);
    if (status != wanted) return op_run_text(run, "the status was %s", liger_status_name(status));
    return strstr(liger_last_error(), says) ? NULL : op_run_text(run, "the message was: %s", liger_last_error());
}

/* The CPU refuses the call and names the value; on CUDA, where nobody can be told, what of `result` it is about is NaN, and
 * the rest is not: of `every` elements a row, that row, or that column of the rows that count. */
static const char *out_of_range(struct op_run *run, int tensor, int64_t at, int result, int64_t every) {
    char says[96];
    run->t[tensor][at] = (double)run->c.size[VOCAB];
    snprintf(says, sizeof says, "%s[%lld] is %lld, which is out of bounds", run->spec[tensor].name, (long long)at,
             (long long)run->c.size[VOCAB]);
    if (on_cpu(run)) return refusal(run, LIGER_ERR_TARGET, says);
    const liger_status status = op_run_call(run);
    if (status != LIGER_OK) return op_run_text(run, "the status was %s", liger_status_name(status));
    for (int64_t i = 0; run->t[result] && i < run->count[result]; i++) {
        const bool row = tensor == TARGET, counts = row || run->t[TARGET][i / every] >= 0;
        if (isnan(run->t[result][i]) != (counts && (row ? i / every : i % every) == at))
            return op_run_text(run, "%s[%lld] is %g", run->spec[result].name, (long long)i, run->t[result][i]);
    }
    return NULL;
}

/* One of those that count: with another one they would be more than valid_rows says. */
static int64_t last_counted(const struct op_run *run) {
    int64_t row = run->c.size[ROWS] - 1;
    while (row > 0 && run->t[TARGET][row] < 0) row--;
    return row;
}
static const char *forward_target_out_of_range(struct op_run *run) {
    return out_of_range(run, TARGET, last_counted(run), LOG_PROB, 1);
}
static const char *backward_target_out_of_range(struct op_run *run) {
    if (has(&run->c, KEPT | EXACT | MORE) || (!on_cpu(run) && !has(&run->c, HAS_LOG_PROB)))
        return op_run_not_applicable(run, "a target out of range: what counts has been prepared without it");
    return out_of_range(run, TARGET, last_counted(run), DX, run->c.size[HIDDEN]);
}
static const char *id_out_of_range(struct op_run *run) {
    if (!has(&run->c, HAS_SELECTED)) return op_run_not_applicable(run, "an id out of range: the case has none");
    return out_of_range(run, SELECTED_IDS, run->c.size[IDS] - 1, SELECTED, run->c.size[IDS]);
}
/* On a GPU it hits no column: the sum over ids lacks its 1. */
static const char *backward_id_out_of_range(struct op_run *run) {
    const int64_t last = run->c.size[IDS] - 1;
    if (!has(&run->c, HAS_SELECTED)) return op_run_not_applicable(run, "an id out of range: the case has none");
    if (on_cpu(run)) return out_of_range(run, SELECTED_IDS, last, DX, 1);
    if (has(&run->c, KEPT) || run->t[DX] == NULL)
        return op_run_not_applicable(run, "an id out of range: the case has no dx, or logits for one call");
    run->t[SELECTED_IDS][last] = (double)run->c.size[VOCAB];
    if (op_run_call(run) != LIGER_OK) return op_run_text(run, "refused: %s", liger_last_error());
    for (int64_t i = 0; i < run->count[DX]; i++)
        if (!isfinite(run->t[DX][i])) return op_run_text(run, "dx[%lld] is %g", (long long)i, run->t[DX][i]);
    return NULL;
}

/* More rows count than valid_rows says: the CPU refuses; a GPU makes NaN of every number, but for dx, which has NaN only in
 * the rows that found a place. */
static const char *too_few_valid_rows(struct op_run *run, int dx) {
    char says[96];
    const char *wrong = NULL;
    struct op_case c = run->c;
    c.flags = (c.flags & ~(uint32_t)(EXACT | MORE | KEPT)) | FEWER;
    if (counted(&c) <= (dx >= 0)) return op_run_not_applicable(run, "too few valid rows: none has a place");
    struct op_run *other = op_run_new(run->context, run->op, &c, run->types, 5);
    if (other == NULL) return "no memory";
    snprintf(says, sizeof says, ": valid_rows is %lld, but %lld of %lld rows", (long long)valid_rows(&c),
             (long long)counted(&c), (long long)c.size[ROWS]);
    if (on_cpu(run)) wrong = refusal(other, LIGER_ERR_ARGUMENT, says);
    else if (op_run_call(other) != LIGER_OK) wrong = "the call failed";
    for (int i = LOGITS + 1; !on_cpu(run) && wrong == NULL && i < run->op->tensor_count; i++) {
        if (other->t[i] == NULL || other->spec[i].role != ROLE_OUT || other->spec[i].kind == KIND_BOOL) continue;
        int64_t numbers = 0;
        for (int64_t k = 0; k < other->count[i]; k++) numbers += !isnan(other->t[i][k]);
        if (i == dx ? numbers == other->count[i] && numbers > 0 : numbers > 0) wrong = "a result is a number";
    }
    if (wrong) wrong = op_run_text(run, "%s", on_cpu(run) ? other->text : wrong);
    op_run_free(other);
    return wrong;
}
static const char *forward_too_few_valid_rows(struct op_run *run) { return too_few_valid_rows(run, -1); }
static const char *backward_too_few_valid_rows(struct op_run *run) { return too_few_valid_rows(run, DX); }

/* ---- the advised sizes ---- */

static const int64_t
    advised_shapes[][3] =
        {
            {1, 64, 32000},       {100, 64, 1000},       {100000, 64, 128256},
            {70000, 4096, 32000}, {1000, 8, 10000000},   {4096, 4096, 128256},
            {2000, 65536, 40000}, {INT64_MAX / 16, 1, 5}}; /* nobody has the memory, but a question needs none */

static const char *advised_chunk(struct op_run *run) {
    for (int k = 0; k < OP_COUNT(advised_shapes); k++) {
        const int64_t *shape = advised_shapes[k];
        liger_linear_logprob_forward_args args = LIGER_LINEAR_LOGPROB_FORWARD_ARGS_INIT;
        args.x = liger_tensor_contiguous(run, (int)run->types.t, 2, (const int64_t[]){shape[0], shape[1]});
        args.weight = liger_tensor_contiguous(run, (int)run->types.t, 2, (const int64_t[]){shape[2], shape[1]});
        size_t rows = 0;
        if (liger_linear_logprob_forward_chunk_rows(run->context, &args, &rows) != LIGER_OK) return liger_last_error();
        if (rows < 1 || rows > (size_t)shape[0])
            return op_run_text(run, "%lld rows: chunk of %zu", (long long)shape[0], rows);
        size_t kept = 0;
        args.keep = 1;
        if (liger_linear_logprob_forward_chunk_rows(run->context, &args, &kept) != LIGER_OK) return liger_last_error();
        const int64_t named = run->context->loss_workspace_bytes, size = (int64_t)liger_dtype_size((int)run->types.t);
        const bool costs = named ? (int64_t)kept > named / (shape[2] * size) : kept > rows + (size_t)shape[1];
        if (kept < rows || (kept > rows && (kept != (size_t)shape[0] || costs)))
            return op_run_text(run, "%lld rows: chunk of %zu, %zu to keep", (long long)shape[0], rows, kept);
    }
    return NULL;
}

/* What is kept is what a budget that is named holds. */
static const char *kept_logits(struct op_run *run) {
    const int64_t size = (int64_t)liger_dtype_size((int)run->types.t), named = run->context->loss_workspace_bytes;
    const int64_t rows = 16384, hidden = 64, vocab = 32000, bytes = rows * vocab * size;
    liger_linear_logprob_forward_args args = LIGER_LINEAR_LOGPROB_FORWARD_ARGS_INIT;
    args.x = liger_tensor_contiguous(run, (int)run->types.t, 2, (const int64_t[]){rows, hidden});
    args.weight = liger_tensor_contiguous(run, (int)run->types.t, 2, (const int64_t[]){vocab, hidden});
    args.keep = 1;
    size_t within = 0, without = 0;
    run->context->loss_workspace_bytes = bytes;
    bool asked = liger_linear_logprob_forward_chunk_rows(run->context, &args, &within) == LIGER_OK;
    run->context->loss_workspace_bytes = bytes - 1;
    asked = asked && liger_linear_logprob_forward_chunk_rows(run->context, &args, &without) == LIGER_OK;
    run->context->loss_workspace_bytes = named;
    if (!asked) return liger_last_error();
    if (within == (size_t)rows && without < (size_t)rows) return NULL;
    return op_run_text(run, "%zu rows within the budget, %zu where it is a byte less", within, without);
}

/* All columns, where they cost no more than the budget and a sum of dx, if there is a dx; else whole steps within the budget.
 * valid_rows bounds the rows. */
static const char *advised_slice(struct op_run *run) {
    const int64_t size = (int64_t)liger_dtype_size((int)run->types.t), step = on_cpu(run) ? 64 : 128;
    const int64_t most = (int64_t)(on_cpu(run) ? 28 : 128) << 20, given = run->context->loss_workspace_bytes;
    const int64_t budget = given && given < most ? given : most;
    for (int k = 0; k < 4 * OP_COUNT(advised_shapes); k++) {
        const int64_t *shape = advised_shapes[k / 4], rows = k % 2 ? (shape[0] + 1) / 2 : shape[0], vocab = shape[2];
        const bool trained = k / 2 % 2;
        liger_linear_logprob_backward_args args = LIGER_LINEAR_LOGPROB_BACKWARD_ARGS_INIT;
        args.x = liger_tensor_contiguous(run, (int)run->types.t, 2, (const int64_t[]){shape[0], shape[1]});
        args.weight = liger_tensor_contiguous(run, (int)run->types.t, 2, (const int64_t[]){vocab, shape[1]});
        args.valid_rows = k % 2 ? rows : -1;
        if (trained) args.dx = args.x;
        size_t advised = 0;
        if (liger_linear_logprob_backward_slice_cols(run->context, &args, &advised) != LIGER_OK)
            return liger_last_error();
        const int64_t cols = (int64_t)advised;
        const bool fits = cols == step || cols <= budget / (rows * size);
        const bool whole = cols == vocab && vocab <= (budget + (trained ? rows * shape[1] * 4 : 0)) / (rows * size);
        if (cols < 1 || !(whole || (fits && cols % step == 0)))
            return op_run_text(run, "%lld rows, vocabulary %lld: slices of %lld", (long long)rows, (long long)vocab,
                               (long long)cols);
    }
    return NULL;
}

static const struct op_property forward_properties[] = {
    {"a target out of range", forward_target_out_of_range},
    {"an id out of range", id_out_of_range},
    {"too few valid rows", forward_too_few_valid_rows},
    {"chunks of any size", any_chunk},
    {"the advised chunk", advised_chunk},
    {"logits to keep", kept_logits},
};
static const struct op_property backward_properties[] = {
    {"a target out of range", backward_target_out_of_range},
    {"an id out of range", backward_id_out_of_range},
    {"too few valid rows", backward_too_few_valid_rows},
    {"slices of any size", any_slice},
    {"the advised slice", advised_slice},
};

/* ---- the functions ---------------------------------------------------------------------------------------------- */

static double flops_of_product(const struct op_case *c) {
    return 2.0 * (double)c->size[ROWS] * (double)c->size[HIDDEN] * (double)c->size[VOCAB];
}
static double flops_of_backward(const struct op_case *c) { return 3 * flops_of_product(c); }

#define INEXACT "linear head: only sums of multiples of 1/16 are exact logits; gemm and cross_entropy have this range"
#define DOMINATED                                                                                                      \
    "linear head: about 1024 a class of probability 1 that is not the target hides the others; see the shifted cases"

const struct op_cases linear_logprob_forward_cases = {
    .name = "linear_logprob_forward",
    .tensor_count = FORWARD_TENSORS,
    .describe = describe_forward,
    OP_CASES(forward_cases),
    .prepare = prepare_forward,
    .call = call_linear_logprob_forward,
    .workspace = workspace_linear_logprob_forward,
    .reference = reference_forward,
    .naive = naive_forward,
    .no_loss = OP_IS_FORWARD,
    .no_range = {INEXACT, INEXACT, INEXACT, DOMINATED},
    .no_aliases = OP_NO_ALIASES,
    OP_PROVOCATIONS(shared_provocations),
    OP_MORE_PROVOCATIONS(forward_provocations),
    OP_PROPERTIES(forward_properties),
    OP_BENCH(forward_bench),
    .flops = flops_of_product,
};

const struct op_cases linear_logprob_backward_cases = {
    .name = "linear_logprob_backward",
    .tensor_count = BACKWARD_TENSORS,
    .describe = describe_backward,
    OP_CASES(backward_cases),
    .prepare = prepare_backward,
    .call = call_linear_logprob_backward,
    .workspace = workspace_linear_logprob_backward,
    .reference = reference_backward,
    .naive = naive_backward,
    .no_range = {INEXACT, INEXACT, INEXACT, DOMINATED},
    .no_aliases = OP_NO_ALIASES,
    .magnitudes = magnitudes,
    .loss = loss_backward,
    OP_GRADIENTS(gradients),
    OP_PROVOCATIONS(shared_provocations),
    OP_MORE_PROVOCATIONS(backward_provocations),
    OP_PROPERTIES(backward_properties),
    OP_BENCH(backward_bench),
    .flops = flops_of_backward,
};
