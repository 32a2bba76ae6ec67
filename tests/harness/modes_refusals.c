/* modes_refusals.c - what the table of a function's door says it refuses: each rule broken in a call that is otherwise right.
 *
 * Nothing here is about one function. What a rule cannot say - a CHECK row, a SHAPE of its own - the room provokes by hand. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/harness/modes.h"
#include "tests/harness/random.h"

enum { MOST_TENSORS = 32, MOST_SAYS = 96 };

struct refusals {
    struct op_run *run;
    struct report *report;
    const struct door *door;
    int tensor[MOST_TENSORS];        /* of the run, by its place among the arguments; -1: the case does without */
    liger_tensor view[MOST_TENSORS]; /* of the right call */
    size_t workspace_bytes;
};

/* What one change of op_cases.h does not do; spoil() has no other way to know. */
static struct {
    int workspace_on; /* tensor of the run, or -1 */
    const struct door_rule *number;
    double value;
    bool claims_size;
    size_t size;
} more;

static void spoil(struct op_call *call) {
    if (more.workspace_on >= 0) call->workspace = call->t[more.workspace_on].data;
    call->number = more.number;
    call->number_is = more.value;
    call->claims_size = more.claims_size;
    call->claimed_size = more.size;
}

static void nothing_more(void) {
    memset(&more, 0, sizeof more);
    more.workspace_on = -1;
}

static void expect(const struct refusals *r, struct op_change change, liger_status status, const char *label,
                   const char *says, const char *too) {
    const struct op_provocation p = {
        .label = label, .change = change, .status = status, .says = {says, too}, .spoil = spoil};
    modes_expect_refusal(r->run, &p, r->report);
    nothing_more();
}

static bool is_written(const struct door_rule *rule) { return rule->role != DOOR_IN; }

static const liger_tensor *view_of(const struct refusals *r, const struct door_rule *rule) {
    return &r->view[rule->at];
}

static int64_t elements_of(const liger_tensor *view) {
    int64_t count = 1;
    for (int d = 0; d < view->ndim; d++) count *= view->shape[d];
    return count;
}

/* A tensor rule of an argument that the call has. */
static bool is_there(const struct refusals *r, const struct door_rule *rule) {
    return rule->kind == DOOR_TENSOR && r->tensor[rule->at] >= 0;
}

static const struct door_rule *rule_at(const struct refusals *r, int at) {
    for (int i = 0; i < r->door->count; i++)
        if (r->door->rules[i].kind == DOOR_TENSOR && r->door->rules[i].at == at) return &r->door->rules[i];
    return NULL;
}

/* ---- presence, dtype -------------------------------------------------------------------------------------------- */

static void absent(const struct refusals *r, const struct door_rule *rule) {
    if (rule->optional && rule->with == 0) return;
    expect(r, (struct op_change)OP_ABSENT(r->tensor[rule->at]), LIGER_ERR_ARGUMENT, "absent", rule->what, "NULL");
}

static bool takes_dtype(const struct refusals *r, const struct door_rule *rule, int dtype) {
    const bool real = dtype == LIGER_F32 || dtype == LIGER_F16 || dtype == LIGER_BF16;
    switch (rule->dtype) {
        case DOOR_T:
        case DOOR_T_OR_F32: return dtype == LIGER_F32; /* the run's T */
        case DOOR_FLOAT_T:
        case DOOR_ANY_FLOAT: return real;
        case DOOR_INDEX: return dtype == LIGER_I32 || dtype == LIGER_I64;
    }
    if (rule->dtype < DOOR_T) return dtype == rule->dtype;
    const struct door_rule *other = rule_at(r, rule->dtype - DOOR_AS);
    return dtype == (is_there(r, other) ? view_of(r, other)->dtype : LIGER_F32);
}

static void dtypes(const struct refusals *r, const struct door_rule *rule) {
    static const int all[] = {LIGER_DTYPE_NONE, LIGER_F32, LIGER_F16,  LIGER_BF16, LIGER_I32, LIGER_I64,
                              LIGER_U8,         LIGER_I8,  LIGER_BOOL, 99,         -1};
    for (int k = 0; k < OP_COUNT(all); k++) {
        char is[MOST_SAYS];
        if (takes_dtype(r, rule, all[k])) continue;
        snprintf(is, sizeof is, "%s is %s", rule->what, liger_dtype_name(all[k]));
        expect(r, (struct op_change)OP_DTYPE(r->tensor[rule->at], all[k]), LIGER_ERR_DTYPE, "dtype", is, NULL);
    }
}

/* ---- shape ------------------------------------------------------------------------------------------------------ */

static bool takes_rank(const struct refusals *r, const struct door_rule *rule, int rank) {
    if (rank < 0 || rank > LIGER_MAX_DIMS) return false;
    switch (rule->shape.kind) {
        case DOOR_FOLDED: return rank >= rule->shape.count;
        case DOOR_DIMS: return rank == rule->shape.count;
        case DOOR_LIKE: return rank == view_of(r, rule_at(r, rule->shape.like))->ndim;
    }
    return true; /* or only the values of the sizes tell */
}

static void ranks(const struct refusals *r, const struct door_rule *rule) {
    for (int rank = -1; rank <= LIGER_MAX_DIMS + 1; rank++) {
        char has[MOST_SAYS];
        if (takes_rank(r, rule, rank)) continue;
        snprintf(has, sizeof has, "%s has %d dimensions", rule->what, rank);
        expect(r, (struct op_change)OP_NDIM(r->tensor[rule->at], rank), LIGER_ERR_SHAPE, "rank", has, "but");
    }
}

/* Whether an argument of an earlier row has the number that a size goes by, or it is a constant. */
static bool is_bound(const struct refusals *r, const struct door_rule *rule, int number) {
    bool bound = number == DOOR_ONE;
    for (const struct door_rule *before = r->door->rules; before < rule; before++) {
        const int count = before->shape.kind == DOOR_DIMS     ? before->shape.count
                          : before->shape.kind == DOOR_FOLDED ? 2
                                                              : 0;
        for (int d = 0; d < count && is_there(r, before); d++)
            bound = bound || (before->shape.size[d] & (DOOR_SOME - 1)) == number;
    }
    return bound;
}

static void wrong_size(const struct refusals *r, const struct door_rule *rule, int d, int64_t size, const char *too) {
    char is[MOST_SAYS];
    snprintf(is, sizeof is, size == 0 ? "%s.shape[%d] is %lld" : "%s: shape[%d] is %lld", rule->what, d,
             (long long)size);
    expect(r, (struct op_change)OP_SHAPE(r->tensor[rule->at], d, (double)size), LIGER_ERR_SHAPE, "size", is, too);
}

static void sizes_that_differ(const struct refusals *r, const struct door_rule *rule) {
    const liger_tensor *view = view_of(r, rule);
    const bool like = rule->shape.kind == DOOR_LIKE;
    if (!like && rule->shape.kind != DOOR_DIMS) return;
    for (int d = 0; d < view->ndim; d++) {
        char wanted[MOST_SAYS];
        if (like ? rule->shape.free >> d & 1 : !is_bound(r, rule, rule->shape.size[d] & (DOOR_SOME - 1))) continue;
        if (like)
            snprintf(wanted, sizeof wanted, "%s has %lld", door_name(rule_at(r, rule->shape.like)),
                     (long long)view->shape[d]);
        else snprintf(wanted, sizeof wanted, "must be %lld", (long long)view->shape[d]);
        wrong_size(r, rule, d, view->shape[d] + 1, wanted);
        if (view->shape[d] > 2) wrong_size(r, rule, d, view->shape[d] - 1, wanted);
    }
}

static void sizes_of_zero(const struct refusals *r, const struct door_rule *rule) {
    const liger_tensor *view = view_of(r, rule);
    if (rule->shape.kind == DOOR_FOLDED && rule->shape.size[1] & DOOR_SOME)
        wrong_size(r, rule, view->ndim - 1, 0, "must be 1 or more");
    for (int d = 0; rule->shape.kind == DOOR_DIMS && d < view->ndim; d++)
        if (rule->shape.size[d] & DOOR_SOME) wrong_size(r, rule, d, 0, "must be 1 or more");
}

static void elements(const struct refusals *r, const struct door_rule *rule) {
    const struct op_change two = OP_VECTOR(r->tensor[rule->at], 2), many = OP_VECTOR(r->tensor[rule->at], 1009);
    if (rule->shape.kind == DOOR_ELEMENT) expect(r, two, LIGER_ERR_SHAPE, "two elements", rule->what, "has 2 elements");
    if (rule->shape.kind == DOOR_ELEMENT_OR) expect(r, many, LIGER_ERR_SHAPE, "many elements", rule->what, "1009");
}

static void shapes(const struct refusals *r, const struct door_rule *rule) {
    ranks(r, rule);
    sizes_that_differ(r, rule);
    sizes_of_zero(r, rule);
    elements(r, rule);
    for (int d = 0; d < view_of(r, rule)->ndim; d++) wrong_size(r, rule, d, -1, "0 or more");
}

/* ---- strides ---------------------------------------------------------------------------------------------------- */

static void stride(const struct refusals *r, const struct door_rule *rule, int d, int64_t stride, const char *label,
                   const char *too) {
    expect(r, (struct op_change)OP_STRIDE(r->tensor[rule->at], d, (double)stride), LIGER_ERR_LAYOUT, label, rule->what,
           too);
}

/* A LOWER of the room is asked itself what it does not take. */
static bool own_refuses(const struct door_rule *rule, liger_tensor view, int d, int64_t stride) {
    _Alignas(16) char somewhere[512];
    view.stride[d] = stride;
    return rule->lower(&view, rule->what, somewhere) != LIGER_OK;
}

static void strides(const struct refusals *r, const struct door_rule *rule) {
    const liger_tensor *view = view_of(r, rule);
    const int last = view->ndim - 1;
    if (last < 0 || elements_of(view) == 0) return;
    const bool wide = view->shape[last] > 1, tall = last > 0 && view->shape[last - 1] > 1;
    const bool own = rule->layout == DOOR_OWN_LAYOUT && own_refuses(rule, *view, last, 2);
    if (wide && (own || (rule->layout != DOOR_OWN_LAYOUT && rule->layout != DOOR_STRIDED)))
        stride(r, rule, last, 2, "columns apart", "2");
    if (tall && rule->layout == DOOR_CONTIGUOUS)
        stride(r, rule, last - 1, view->shape[last] + 1, "rows apart", "contiguous");
    if (tall && wide && rule->layout == DOOR_PITCHED)
        stride(r, rule, last - 1, view->shape[last] - 1, "rows that overlap", "rows overlap");
}

/* Of what is written no two elements may be one: rows expanded, rows half over each other, and levels interleaved. */
static void itself(const struct refusals *r, const struct door_rule *rule) {
    const liger_tensor *view = view_of(r, rule);
    const int row = view->ndim - 2;
    if (!is_written(rule) || row < 0 || elements_of(view) == 0) return;
    const int64_t cols = view->shape[row + 1];
    const bool strict =
        rule->layout == DOOR_CONTIGUOUS || rule->layout == DOOR_PITCHED; /* refuse it for other reasons */
    const char *says = strict ? NULL : "overlaps itself";
    if (view->shape[row] > 1) stride(r, rule, row, 0, "rows expanded", says);
    if (view->shape[row] > 1 && cols > 1) stride(r, rule, row, cols / 2, "rows half over each other", says);
    if (view->shape[row] > 1 && cols > 1) stride(r, rule, row, cols - 1, "rows meet in one element", says);
    for (int d = 0; d < row; d++)
        if (view->shape[d] > 1 && view->shape[row] > 1)
            stride(r, rule, d, view->stride[row], "levels interleaved", says);
}

/* ---- memory ----------------------------------------------------------------------------------------------------- */

static int64_t bytes_of(const liger_tensor *view) { return elements_of(view) * (int64_t)liger_dtype_size(view->dtype); }

static bool same_kind(const liger_tensor *a, const liger_tensor *b) {
    return a->dtype == b->dtype && a->ndim == b->ndim && memcmp(a->shape, b->shape, sizeof a->shape) == 0 &&
           memcmp(a->stride, b->stride, sizeof a->stride) == 0;
}

/* The smaller one is put on the larger one, so that it reaches no third. */
static void pair(const struct refusals *r, const struct door_rule *first, const struct door_rule *second) {
    const struct door_rule *out = is_written(second) ? second : first, *other = out == second ? first : second;
    const liger_tensor *a = view_of(r, first), *b = view_of(r, second);
    const bool may = out->may_be >> other->at & 1 && same_kind(a, b);
    const int small = bytes_of(a) < bytes_of(b) ? first->at : second->at,
              large = small == first->at ? second->at : first->at;
    char overlaps[2 * MOST_SAYS];
    snprintf(overlaps, sizeof overlaps, "%s overlaps %s: ", out->what, door_name(other));
    const struct op_change over = OP_BESIDE(r->tensor[small], r->tensor[large], 1),
                           on = OP_ON(r->tensor[small], r->tensor[large]);
    if (bytes_of(a) > 0 && bytes_of(b) > 0) expect(r, may ? over : on, LIGER_ERR_LAYOUT, "overlap", overlaps, "bytes");
}

static void pairs(const struct refusals *r, const struct door_rule *rule) {
    for (const struct door_rule *before = r->door->rules; before < rule; before++)
        if (is_there(r, before) && (is_written(before) || is_written(rule))) pair(r, before, rule);
}

/* Which tensor it lies on is only certain where memory is far apart. */
static void workspace_on(const struct refusals *r, const struct door_rule *rule) {
    const bool host = liger_context_device(r->run->context) == LIGER_DEVICE_CPU;
    if (r->workspace_bytes == 0 || bytes_of(view_of(r, rule)) == 0) return;
    more.workspace_on = r->tensor[rule->at];
    expect(r, (struct op_change){CHANGES_NOTHING}, LIGER_ERR_LAYOUT, "workspace on a tensor", "workspace overlaps ",
           host ? door_name(rule) : NULL);
}

/* ---- fields that are no tensors --------------------------------------------------------------------------------- */

static void number(const struct refusals *r, const struct door_rule *rule, double value) {
    char is[MOST_SAYS];
    snprintf(is, sizeof is, "%s is %g, but must be", rule->what, value);
    more.number = rule, more.value = value;
    expect(r, (struct op_change){CHANGES_NOTHING}, LIGER_ERR_ARGUMENT, "number", is, NULL);
}

static void numbers(const struct refusals *r, const struct door_rule *rule) {
    const bool real = rule->kind == DOOR_FLOAT;
    if (rule->bounds == DOOR_BETWEEN || rule->bounds == DOOR_AT_LEAST) number(r, rule, rule->low - 1);
    if (rule->bounds == DOOR_BETWEEN) number(r, rule, rule->high + 1);
    const bool finite = rule->bounds == DOOR_FINITE || rule->bounds == DOOR_POSITIVE;
    if (rule->bounds == DOOR_POSITIVE) number(r, rule, 0);
    if (rule->bounds == DOOR_POSITIVE || rule->bounds == DOOR_CAP) number(r, rule, -1);
    if (rule->bounds == DOOR_CAP || finite) number(r, rule, INFINITY);
    if (finite) number(r, rule, -INFINITY);
    if (real && rule->bounds != DOOR_UNBOUNDED) number(r, rule, NAN);
    static const int dtypes[] = {-1, LIGER_I32, 9, 99};
    for (int k = 0; rule->bounds == DOOR_NONE_OR_FLOAT && k < OP_COUNT(dtypes); k++) number(r, rule, dtypes[k]);
}

static void reserved(const struct refusals *r, const struct door_rule *rule) {
    more.number = rule, more.value = 1;
    expect(r, (struct op_change){CHANGES_NOTHING}, LIGER_ERR_ABI, "reserved", rule->what, "must be 0");
}

static void cut(const struct refusals *r, size_t size) {
    char is[MOST_SAYS];
    if (door_ends_a_field(r->door, size)) return;
    snprintf(is, sizeof is, "%s: args.size is %zu,", r->door->function, size);
    more.claims_size = true, more.size = size;
    expect(r, (struct op_change){CHANGES_NOTHING}, LIGER_ERR_ABI, "a size within a field", is, NULL);
}

/* ---- a question about sizes ------------------------------------------------------------------------------------- */

/* Without a tensor that the answer depends on there is no answer. */
static void query_without(const struct refusals *r, const struct door_rule *workspace) {
    struct call_image image;
    if (!call_image_make(&image, r->run, PLACE_MIDDLE, SPACING_DENSE, NULL)) report_fail(r->report, "no memory");
    for (int at = 0; at < MOST_TENSORS; at++) {
        size_t bytes;
        struct op_call call = image.call;
        if (!(workspace->needs >> at & 1) || r->tensor[at] < 0 || r->run->op->workspace == NULL) continue;
        if (rule_at(r, at)->optional) continue; /* where it may be absent, a question may leave it out */
        memset(&call.t[r->tensor[at]], 0, sizeof(liger_tensor));
        if (r->run->op->workspace(r->run->context, &call, &bytes) != LIGER_OK) report_pass(r->report);
        else report_fail(r->report, "%s: a query without %s is answered", r->door->function, door_name(rule_at(r, at)));
    }
    call_image_free(&image);
}

/* ---- all of it -------------------------------------------------------------------------------------------------- */

static bool begin(struct refusals *r) {
    struct call_image image;
    const bool made = call_image_make(&image, r->run, PLACE_MIDDLE, SPACING_DENSE, NULL);
    for (int at = 0; at < MOST_TENSORS; at++) r->tensor[at] = -1;
    for (int i = 0; i < r->door->count; i++) {
        const struct door_rule *rule = &r->door->rules[i];
        for (int t = 0; rule->kind == DOOR_TENSOR && t < r->run->op->tensor_count; t++)
            if (r->run->t[t] != NULL && strcmp(r->run->spec[t].name, door_name(rule)) == 0) r->tensor[rule->at] = t;
        if (is_there(r, rule)) r->view[rule->at] = image.call.t[r->tensor[rule->at]];
    }
    r->workspace_bytes = image.call.workspace_bytes;
    call_image_free(&image);
    return made;
}

void modes_refuse_rules(struct op_run *run, const struct door *door, struct report *report) {
    struct refusals r = {.run = run, .report = report, .door = door};
    nothing_more();
    if (!begin(&r)) report_fail(report, "%s: no memory", run->c.label);
    for (int i = 0; i < door->count; i++) {
        const struct door_rule *rule = &door->rules[i];
        if (rule->kind == DOOR_FLOAT || rule->kind == DOOR_INT32 || rule->kind == DOOR_INT64) numbers(&r, rule);
        if (rule->kind == DOOR_RESERVED) reserved(&r, rule);
        if (rule->kind == DOOR_WORKSPACE) query_without(&r, rule);
        if (rule->kind != DOOR_CHECK) cut(&r, rule->offset + 1u);
        if (rule->kind != DOOR_CHECK) cut(&r, rule->offset + rule->bytes - 1u);
        if (!is_there(&r, rule)) continue;
        absent(&r, rule);
        dtypes(&r, rule);
        shapes(&r, rule);
        strides(&r, rule);
        itself(&r, rule);
        pairs(&r, rule);
        workspace_on(&r, rule);
    }
    cut(&r, 0);
}

/* A question about sizes needs no memory. */
void modes_query_without_memory(struct op_run *run, struct report *report) {
    struct call_image image;
    size_t bytes = 0, without = 1;
    if (run->op->workspace == NULL) return;
    if (!call_image_make(&image, run, PLACE_MIDDLE, SPACING_DENSE, NULL)) {
        report_fail(report, "%s: %s", run->c.label, image.text);
    } else {
        struct op_call call = image.call;
        bool fine = run->op->workspace(run->context, &call, &bytes) == LIGER_OK;
        for (int i = 0; i < run->op->tensor_count; i++) {
            call.t[i].data = NULL;
            memset(call.t[i].stride, 0, sizeof call.t[i].stride);
        }
        fine = fine && run->op->workspace(run->context, &call, &without) == LIGER_OK;
        if (!fine) report_fail(report, "%s: the workspace query: %s", run->c.label, liger_last_error());
        else if (bytes == without) report_pass(report);
        else
            report_fail(report, "%s: the workspace query says %zu bytes, without memory %zu", run->c.label, bytes,
                        without);
    }
    call_image_free(&image);
}
