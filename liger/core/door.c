/* door.c - see door.h. */
#include "liger/core/door.h"

#include <math.h>
#include <string.h>

#include "liger/core/check.h"
#include "liger/core/dtype.h"
#include "liger/core/overlap.h"

/* ---- the args struct -------------------------------------------------------------------------------------------- */

bool door_ends_a_field(const struct door *door, size_t size) {
    if (size == sizeof(size_t)) return true;
    for (int i = 0; i < door->count; i++) {
        const struct door_rule *rule = &door->rules[i];
        if (rule->kind == DOOR_CHECK) continue;
        if (size == (size_t)rule->offset + rule->bytes) return true;
        if (rule->kind == DOOR_WORKSPACE && size == rule->offset + rule->bytes + sizeof(size_t)) return true;
    }
    return false;
}

static liger_status import(const struct door *door, const void *given, void *args) {
    const char *what = door->function;
    const size_t size = door->size;
    LIGER_REQUIRE(given != NULL, LIGER_ERR_ARGUMENT, "%s: args is NULL", what);
    size_t claimed;
    memcpy(&claimed, given, sizeof claimed);
    LIGER_REQUIRE(
        claimed <= 65536 && (claimed >= size || door_ends_a_field(door, claimed)), LIGER_ERR_ABI,
        "%s: args.size is %zu, which is no size of an args struct (this library's is %zu): initialise it with "
        "the _ARGS_INIT macro",
        what, claimed, size);
    for (size_t i = size; i < claimed; i++)
        LIGER_REQUIRE(((const char *)given)[i] == 0, LIGER_ERR_ABI,
                      "%s: args.size is %zu, but this library knows %zu bytes and a later field is set", what, claimed,
                      size);
    memcpy(args, given, claimed < size ? claimed : size);
    if (claimed < size) memset((char *)args + claimed, 0, size - claimed);
    return LIGER_OK;
}

/* ---- numbers ---------------------------------------------------------------------------------------------------- */

static liger_status check_float(const struct door_rule *rule, double value) {
    switch (rule->bounds) {
        case DOOR_BETWEEN:
            LIGER_REQUIRE(value >= rule->low && value <= rule->high, LIGER_ERR_ARGUMENT,
                          "%s is %g, but must be in [%g, %g]", rule->what, value, rule->low, rule->high);
            break;
        case DOOR_AT_LEAST:
            LIGER_REQUIRE(value >= rule->low, LIGER_ERR_ARGUMENT, "%s is %g, but must be %g or more", rule->what, value,
                          rule->low);
            break;
        case DOOR_POSITIVE:
        case DOOR_FINITE:
            LIGER_REQUIRE(isfinite(value), LIGER_ERR_ARGUMENT, "%s is %g, but must be finite", rule->what, value);
            LIGER_REQUIRE(rule->bounds == DOOR_FINITE || value > 0, LIGER_ERR_ARGUMENT,
                          "%s is %g, but must be larger than 0", rule->what, value);
            break;
        case DOOR_CAP:
            LIGER_REQUIRE(value >= 0 && isfinite(value), LIGER_ERR_ARGUMENT,
                          "%s is %g, but must be greater than 0 (or 0 for none)", rule->what, value);
            break;
    }
    return LIGER_OK;
}

static liger_status check_integer(const struct door_rule *rule, int64_t value) {
    switch (rule->bounds) {
        case DOOR_BETWEEN:
            LIGER_REQUIRE(value >= (int64_t)rule->low && value <= (int64_t)rule->high, LIGER_ERR_ARGUMENT,
                          "%s is %lld, but must be in [%lld, %lld]", rule->what, (long long)value, (long long)rule->low,
                          (long long)rule->high);
            break;
        case DOOR_AT_LEAST:
            LIGER_REQUIRE(value >= (int64_t)rule->low, LIGER_ERR_ARGUMENT, "%s is %lld, but must be %lld or more",
                          rule->what, (long long)value, (long long)rule->low);
            break;
        case DOOR_NONE_OR_FLOAT:
            LIGER_REQUIRE(value == LIGER_DTYPE_NONE || (value == (int)value && liger_is_float((int)value)),
                          LIGER_ERR_ARGUMENT, "%s is %lld, but must be 0 or one of f32 (%d), f16 (%d), bf16 (%d)",
                          rule->what, (long long)value, LIGER_F32, LIGER_F16, LIGER_BF16);
            break;
    }
    return LIGER_OK;
}

static int64_t integer_of(const struct door_rule *rule, const void *field) {
    int32_t narrow;
    int64_t wide;
    if (rule->kind == DOOR_INT64) return memcpy(&wide, field, sizeof wide), wide;
    return memcpy(&narrow, field, sizeof narrow), narrow;
}

static double real_of(const struct door_rule *rule, const void *field) {
    float narrow;
    double wide;
    if (rule->bytes == sizeof wide) return memcpy(&wide, field, sizeof wide), wide;
    return memcpy(&narrow, field, sizeof narrow), (double)narrow;
}

static liger_status check_number(struct door_call *call, const struct door_rule *rule, const void *field) {
    if (rule->kind == DOOR_ADDRESS) return LIGER_OK;
    if (rule->kind == DOOR_FLOAT) return check_float(rule, real_of(rule, field));
    const int64_t value = integer_of(rule, field);
    if (rule->binds != DOOR_ONE) {
        call->bound |= 1u << rule->binds;
        call->size[rule->binds] = value;
    }
    return check_integer(rule, value);
}

static liger_status check_reserved(const struct door_rule *rule, const char *field) {
    for (int i = 0; i < rule->bytes; i++)
        LIGER_REQUIRE(field[i] == 0, LIGER_ERR_ABI,
                      "%s must be 0, but byte %d of it is %d: initialise args with the _ARGS_INIT macro", rule->what, i,
                      (int)(unsigned char)field[i]);
    return LIGER_OK;
}

_Static_assert(sizeof(liger_dtype) == sizeof(int32_t), "a tensor's dtype is copied into a problem's");

/* ---- one tensor ------------------------------------------------------------------------------------------------- */

static bool is_given(const struct door_call *call, int at) {
    const liger_tensor *tensor = door_tensor(call->args, at);
    return call->query ? tensor->dtype != LIGER_DTYPE_NONE : tensor->data != NULL;
}

static bool any_given(const struct door_call *call, uint32_t tensors) {
    for (int at = 0; tensors != 0; at++, tensors >>= 1)
        if (tensors & 1 && is_given(call, at)) return true;
    return false;
}

/* Whether the rule has nothing to check: the argument is absent, and may be. */
static bool is_skipped(const struct door_call *call, const struct door_rule *rule) {
    if (is_given(call, rule->at)) return false;
    if (call->query && !(call->needs >> rule->at & 1)) return true;
    return rule->optional && !any_given(call, rule->with);
}

static const struct door_rule *rule_of(const struct door *door, int at) {
    const struct door_rule *rule = door->rules;
    while (rule->kind != DOOR_TENSOR || rule->at != at) rule++;
    return rule;
}

static liger_status check_dtype(struct door_call *call, const struct door_rule *rule, const liger_tensor *tensor) {
    const char *what = rule->what;
    switch (rule->dtype) {
        case DOOR_T: return liger_check_dtype(tensor, what, (int)call->t);
        case DOOR_FLOAT_T: call->t = (liger_dtype)tensor->dtype; return liger_check_float(tensor, what);
        case DOOR_T_OR_F32: return liger_check_dtype_or_f32(tensor, what, (int)call->t);
        case DOOR_ANY_FLOAT: return liger_check_float(tensor, what);
        case DOOR_INDEX: return liger_check_index(tensor, what);
    }
    if (rule->dtype < DOOR_T) return liger_check_dtype(tensor, what, rule->dtype);
    const int at = rule->dtype - DOOR_AS;
    if (!door_has(call, 1u << at)) return liger_check_dtype(tensor, what, LIGER_F32);
    const int other = door_tensor(call->args, at)->dtype;
    LIGER_REQUIRE(tensor->dtype == other, LIGER_ERR_DTYPE, "%s is %s, but %s is %s", what,
                  liger_dtype_name(tensor->dtype), door_name(rule_of(call->door, at)), liger_dtype_name(other));
    return LIGER_OK;
}

static liger_status check_rank(const liger_tensor *tensor, const char *what, int rank, const char *means) {
    LIGER_REQUIRE(tensor->ndim == rank, LIGER_ERR_SHAPE, "%s has %d dimensions, but must have %d%s%s", what,
                  tensor->ndim, rank, means ? ": " : "", means ? means : "");
    return LIGER_OK;
}

/* A size of the tensor against the number that the rule gives it, which is bound if it was not. */
static liger_status check_size(struct door_call *call, const char *what, uint16_t size, int d, int64_t value) {
    const int number = size & (DOOR_SOME - 1);
    const int64_t factor = size >> 8 ? size >> 8 : 1; /* rarely more, and a division is dear */
    LIGER_REQUIRE(value > 0 || !(size & DOOR_SOME), LIGER_ERR_SHAPE, "%s.shape[%d] is 0, but must be 1 or more", what,
                  d);
    if (!(call->bound >> number & 1)) {
        LIGER_REQUIRE(factor == 1 || value % factor == 0, LIGER_ERR_SHAPE,
                      "%s: shape[%d] is %lld, but must be a multiple of %lld", what, d, (long long)value,
                      (long long)factor);
        call->bound |= 1u << number;
        call->size[number] = factor == 1 ? value : value / factor;
    }
    LIGER_REQUIRE(value == call->size[number] * factor, LIGER_ERR_SHAPE, "%s: shape[%d] is %lld, but must be %lld",
                  what, d, (long long)value, (long long)(call->size[number] * factor));
    return LIGER_OK;
}

static liger_status check_folded(struct door_call *call, const struct door_rule *rule, const liger_tensor *tensor) {
    const int last = tensor->ndim > 0 ? tensor->ndim - 1 : 0;
    LIGER_REQUIRE(tensor->ndim >= rule->shape.count, LIGER_ERR_SHAPE, "%s has %d dimensions, but must have %d to %d",
                  rule->what, tensor->ndim, rule->shape.count, LIGER_MAX_DIMS);
    LIGER_TRY(check_size(call, rule->what, rule->shape.size[1], last, liger_tensor_cols(tensor)));
    return check_size(call, rule->what, rule->shape.size[0], 0, liger_tensor_rows(tensor));
}

static liger_status check_dims(struct door_call *call, const struct door_rule *rule, const liger_tensor *tensor) {
    LIGER_TRY(check_rank(tensor, rule->what, rule->shape.count, rule->shape.means));
    for (int d = 0; d < tensor->ndim; d++)
        LIGER_TRY(check_size(call, rule->what, rule->shape.size[d], d, tensor->shape[d]));
    return LIGER_OK;
}

static liger_status check_like(const struct door_call *call, const struct door_rule *rule, const liger_tensor *tensor) {
    const liger_tensor *other = door_tensor(call->args, rule->shape.like);
    if (!door_has(call, 1u << rule->shape.like)) return LIGER_OK; /* in a query only */
    if (rule->shape.free == 0 && liger_same_shape(tensor, other)) return LIGER_OK;
    const char *name = door_name(rule_of(call->door, rule->shape.like));
    LIGER_REQUIRE(tensor->ndim == other->ndim, LIGER_ERR_SHAPE, "%s has %d dimensions, but %s has %d", rule->what,
                  tensor->ndim, name, other->ndim);
    for (int d = 0; d < tensor->ndim; d++)
        LIGER_REQUIRE(tensor->shape[d] == other->shape[d] || rule->shape.free >> d & 1, LIGER_ERR_SHAPE,
                      "%s: shape[%d] is %lld, but %s has %lld", rule->what, d, (long long)tensor->shape[d], name,
                      (long long)other->shape[d]);
    return LIGER_OK;
}

static liger_status check_shape(struct door_call *call, const struct door_rule *rule, const liger_tensor *tensor) {
    int64_t elements;
    switch (rule->shape.kind) {
        case DOOR_FOLDED: return check_folded(call, rule, tensor);
        case DOOR_DIMS: return check_dims(call, rule, tensor);
        case DOOR_LIKE: return check_like(call, rule, tensor);
        case DOOR_ELEMENT:
            elements = liger_tensor_elements(tensor);
            LIGER_REQUIRE(elements == 1, LIGER_ERR_SHAPE, "%s has %lld elements, but must have 1", rule->what,
                          (long long)elements);
            return LIGER_OK;
        case DOOR_ELEMENT_OR:
            if (tensor->ndim <= 1 && liger_tensor_elements(tensor) == 1) return LIGER_OK;
            LIGER_TRY(check_rank(tensor, rule->what, 1, NULL));
            return check_size(call, rule->what, rule->shape.size[0], 0, tensor->shape[0]);
        case DOOR_OWN_SHAPE: return rule->fits(call, tensor, rule->what);
    }
    return LIGER_OK;
}

static liger_status check_pitch(const liger_tensor *tensor, const char *what) {
    LIGER_TRY(liger_check_last_contiguous(tensor, what));
    if (liger_tensor_elements(tensor) == 0) return LIGER_OK;
    LIGER_REQUIRE(tensor->shape[0] <= 1 || tensor->stride[0] >= tensor->shape[1], LIGER_ERR_LAYOUT,
                  "%s: rows overlap: stride[0] is %lld, but a row has %lld elements", what,
                  (long long)tensor->stride[0], (long long)tensor->shape[1]);
    return LIGER_OK;
}

static liger_status lower(const struct door_rule *rule, const liger_tensor *tensor, void *problem) {
    char *to = rule->lowered ? (char *)problem + rule->to : NULL;
    switch (rule->layout) {
        case DOOR_ROWS: return liger_fold_rows(tensor, rule->what, (liger_rows *)(void *)to);
        case DOOR_OWN_LAYOUT: return rule->lower(tensor, rule->what, to);
        case DOOR_LAST: LIGER_TRY(liger_check_last_contiguous(tensor, rule->what)); break;
        case DOOR_PITCHED: LIGER_TRY(check_pitch(tensor, rule->what)); break;
        case DOOR_CONTIGUOUS: LIGER_TRY(liger_check_contiguous(tensor, rule->what)); break;
    }
    if (to != NULL) memcpy(to, &tensor->data, sizeof tensor->data);
    return LIGER_OK;
}

/* A GPU's access to an element that is not aligned ends the process's use of the device. */
static liger_status check_alignment(const liger_tensor *tensor, const char *what) {
    const size_t size = dtype_size(tensor->dtype), past = (uintptr_t)tensor->data & (size - 1); /* a power of two */
    LIGER_REQUIRE(past == 0 || liger_tensor_elements(tensor) == 0, LIGER_ERR_LAYOUT,
                  "%s: data lies %zu bytes past a multiple of its elements' %zu", what, past, size);
    return LIGER_OK;
}

static liger_status check_tensor(struct door_call *call, const struct door_rule *rule, void *problem) {
    const liger_tensor *tensor = door_tensor(call->args, rule->at);
    if (is_skipped(call, rule)) return LIGER_OK;
    LIGER_TRY(liger_check_sizes(tensor, rule->what));
    LIGER_REQUIRE(!call->query || is_given(call, rule->at), LIGER_ERR_ARGUMENT, "%s is required, but its dtype is NONE",
                  rule->what);
    LIGER_REQUIRE(call->query || tensor->data != NULL || liger_tensor_elements(tensor) == 0, LIGER_ERR_ARGUMENT,
                  "%s is required, but its data is NULL", rule->what);
    call->present |= 1u << rule->at;
    LIGER_TRY(check_dtype(call, rule, tensor));
    LIGER_TRY(check_shape(call, rule, tensor));
    if (call->query) return LIGER_OK;
    LIGER_TRY(check_alignment(tensor, rule->what));
    if (rule->dtype_lowered) memcpy((char *)problem + rule->dtype_to, &tensor->dtype, sizeof tensor->dtype);
    if (rule->pitch_lowered) memcpy((char *)problem + rule->pitch_to, &tensor->stride[0], sizeof tensor->stride[0]);
    return lower(rule, tensor, problem);
}

static liger_status check_rules(struct door_call *call, void *problem) {
    for (int i = 0; i < call->door->count; i++) {
        const struct door_rule *rule = &call->door->rules[i];
        const char *field = (const char *)call->args + rule->offset;
        switch (rule->kind) {
            case DOOR_TENSOR: LIGER_TRY(check_tensor(call, rule, problem)); break;
            case DOOR_RESERVED: LIGER_TRY(check_reserved(rule, field)); break;
            case DOOR_CHECK: LIGER_TRY(rule->check(call)); break;
            case DOOR_WORKSPACE: break; /* when all sizes are known */
            default:
                LIGER_TRY(check_number(call, rule, field));
                if (rule->lowered && problem) memcpy((char *)problem + rule->to, field, rule->bytes);
        }
    }
    return LIGER_OK;
}

/* ---- who shares memory with whom -------------------------------------------------------------------------------- */

enum { MOST_VIEWS = 33 }; /* every tensor of a mask, and the workspace */

struct views {
    const struct door_rule *rule[MOST_VIEWS];
    const liger_tensor *tensor[MOST_VIEWS];
    struct byte_span span[MOST_VIEWS];
    int count;
};

static void add_view(struct views *views, const struct door_rule *rule, const liger_tensor *tensor) {
    const struct byte_span span = liger_byte_span(tensor);
    if (span.begin == span.end) return;
    views->rule[views->count] = rule;
    views->tensor[views->count] = tensor;
    views->span[views->count++] = span;
}

static liger_status check_pair(const struct views *views, int a, int b) {
    const int out = views->rule[a]->role == DOOR_IN ? b : a, other = out == a ? b : a;
    const struct door_rule *writer = views->rule[out], *reader = views->rule[other];
    const bool may = reader->kind == DOOR_TENSOR && writer->may_be >> reader->at & 1;
    return liger_check_overlap(views->tensor[out], writer->what, views->tensor[other], door_name(reader), may);
}

/* What is written lies apart from itself, from all that is read, and from all else that is written. */
static liger_status check_views(const struct views *views) {
    for (int a = 0; a < views->count; a++) {
        const bool written = views->rule[a]->role != DOOR_IN;
        if (written) LIGER_TRY(liger_check_overlaps_itself(views->tensor[a], views->rule[a]->what));
        for (int b = 0; b < a; b++)
            if ((written || views->rule[b]->role != DOOR_IN) && liger_spans_meet(views->span[a], views->span[b]))
                LIGER_TRY(check_pair(views, a, b));
    }
    return LIGER_OK;
}

static size_t bytes_needed(const struct door_call *call, const struct door_rule *rule) {
    return rule->with == 0 || door_has(call, rule->with) ? rule->needed(call) : 0;
}

/* The bytes that are needed of the workspace, as a view: the caller may have given more. */
static liger_status check_workspace(const struct door_call *call, const struct door_rule *rule, liger_tensor *view,
                                    void *problem) {
    void *workspace;
    size_t bytes;
    memcpy(&workspace, (const char *)call->args + rule->offset, sizeof workspace);
    memcpy(&bytes, (const char *)call->args + rule->offset + sizeof workspace, sizeof bytes);
    const size_t needed = bytes_needed(call, rule);
    LIGER_TRY(liger_check_workspace(workspace, bytes, needed, call->door->function));
    if (needed == 0) workspace = NULL; /* kernels look whether there is one, and launch what would fill it */
    if (rule->lowered) memcpy((char *)problem + rule->to, &workspace, sizeof workspace);
    *view = (liger_tensor){.data = workspace, .dtype = LIGER_U8, .ndim = 1};
    view->shape[0] = (int64_t)needed;
    view->stride[0] = 1;
    return LIGER_OK;
}

static liger_status check_memory(const struct door_call *call, void *problem) {
    struct views views;
    liger_tensor workspace;
    views.count = 0; /* the rest is filled as it is counted */
    for (int i = 0; i < call->door->count; i++) {
        const struct door_rule *rule = &call->door->rules[i];
        if (rule->kind == DOOR_TENSOR && door_has(call, 1u << rule->at))
            add_view(&views, rule, door_tensor(call->args, rule->at));
        if (rule->kind != DOOR_WORKSPACE) continue;
        LIGER_TRY(check_workspace(call, rule, &workspace, problem));
        add_view(&views, rule, &workspace);
    }
    return check_views(&views);
}

/* ---- calls and questions ---------------------------------------------------------------------------------------- */

static void begin(struct door_call *call, const struct door *door, const liger_context *context, const void *args,
                  bool query) {
    memset(call, 0, sizeof *call);
    call->door = door;
    call->context = context;
    call->args = args;
    call->query = query;
    call->bound = 1u << DOOR_ONE;
    call->size[DOOR_ONE] = 1;
}

liger_status door_enter(struct door_call *call, const struct door *door, liger_context *context, const void *given,
                        void *args, void *problem) {
    LIGER_REQUIRE(context != NULL, LIGER_ERR_ARGUMENT, "%s: context is NULL", door->function);
    LIGER_TRY(import(door, given, args));
    begin(call, door, context, args, false);
    LIGER_TRY(check_rules(call, problem));
    return check_memory(call, problem);
}

liger_status door_query(struct door_call *call, const struct door *door, liger_context *context, const void *given,
                        void *args, uint32_t needs) {
    LIGER_TRY(import(door, given, args));
    begin(call, door, context, args, true);
    call->needs = needs;
    return check_rules(call, NULL);
}

liger_status door_workspace(const struct door *door, liger_context *context, const void *given, void *args,
                            size_t *bytes) {
    struct door_call call;
    const struct door_rule *rule = door->rules;
    LIGER_REQUIRE(context != NULL && bytes != NULL, LIGER_ERR_ARGUMENT, "%s_workspace: context or bytes is NULL",
                  door->function);
    while (rule->kind != DOOR_WORKSPACE) rule++;
    LIGER_TRY(door_query(&call, door, context, given, args, rule->needs));
    *bytes = bytes_needed(&call, rule);
    return LIGER_OK;
}

void door_join_rows(const struct door_call *call, void *problem, int64_t *rows, int64_t *cols) {
    liger_rows *views[MOST_VIEWS];
    int count = 0;
    for (int i = 0; i < call->door->count; i++) {
        const struct door_rule *rule = &call->door->rules[i];
        if (rule->kind == DOOR_TENSOR && rule->layout == DOOR_ROWS)
            views[count++] = (liger_rows *)((char *)problem + rule->to);
    }
    liger_join_rows(rows, cols, views, count);
}
