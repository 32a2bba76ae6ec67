/* fuzz_calls.c - right calls, and right calls with a few things changed, on the CPU's kernels.
 *
 * A right call is a case of the function's cases with dtypes and strides of the fuzzer's choice: cases know what no table
 * of arguments knows, which values belong together. All its tensors lie in one arena between two forbidden pages, at odd
 * places, with junk between them. What is changed is the args struct: fields of tensors, or any bytes of it. Kernels get
 * the call only if every tensor of it, as it reads then, lies in the arena; else the door alone is asked. After the call
 *
 *   - refused: no byte of the arena has changed;
 *   - accepted: none has but the elements of outputs and the workspace;
 *   - in half of the calls: threads, pool, instruction set and junk are others, contexts come and go, and the outputs have
 *     the bits that one thread of a fresh context gives. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "liger/core/overlap.h"
#include "tests/fuzz/fuzz.h"
#include "tests/harness/call_image.h"
#include "tests/harness/host_pool.h"
#include "tests/harness/modes.h"
#include "tests/harness/op_door.h"

enum { ARENA_BYTES = 1 << 17, ARENA_PAGE = 1 << 16, MOST_CHANGES = 3, MOST_ELEMENTS = 1 << 16 };

/* ---- the arena ---- */

static unsigned char *arena; /* ARENA_BYTES that may be touched */
static unsigned char before[ARENA_BYTES], after[ARENA_BYTES], first[ARENA_BYTES];

static void open_arena(void) {
    if (arena != NULL) return;
    unsigned char *map = mmap(NULL, ARENA_BYTES + 2 * ARENA_PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED || mprotect(map + ARENA_PAGE, ARENA_BYTES, PROT_READ | PROT_WRITE) != 0) abort();
    arena = map + ARENA_PAGE;
}

static bool in_arena(struct byte_span span) {
    const uintptr_t begin = (uintptr_t)arena;
    return span.begin >= begin && span.begin <= span.end && span.end <= begin + ARENA_BYTES;
}

/* ---- contexts ---- */

enum { POOLS = 5, ISAS = LIGER_ISA_NEON + 1 };
static liger_context *contexts[ISAS][POOLS];

/* Pool 0 is the calling thread. */
static liger_context *context_of(int isa, int pool) {
    static const int threads[POOLS] = {1, 2, 3, 7, 0};
    liger_context_options options = LIGER_CONTEXT_OPTIONS_INIT;
    options.isa = isa;
    options.threads = threads[pool];
    if (pool == POOLS - 1) options.parallel_for = host_pool_backwards, options.thread_count = host_pool_threads;
    if (contexts[isa][pool] == NULL && liger_context_create(&options, &contexts[isa][pool]) != LIGER_OK) abort();
    return contexts[isa][pool];
}

static void end_context(int isa, int pool) {
    liger_context_destroy(contexts[isa][pool]);
    contexts[isa][pool] = NULL;
}

static int some_isa(struct choices *choices) {
    int isa = (int)choose(choices, ISAS);
    while (!liger_has_isa(isa)) isa = (isa + 1) % ISAS;
    return isa;
}

void fuzz_calls_end(void) {
    for (int isa = 0; isa < ISAS; isa++)
        for (int pool = 0; pool < POOLS; pool++) end_context(isa, pool);
}

/* ---- a right call ---- */

struct prepared {
    const struct op_run *run;
    struct op_call call;
    _Alignas(16) unsigned char args[FUZZ_ARGS_BYTES];
    const struct door *door;
    int tensors;      /* of the args struct: they stand behind its size, in one row */
    uint32_t written; /* bits of those that the function may write to */
    size_t workspace; /* offset of the pointer, the size behind it; 0: none */
    size_t used;      /* bytes of the arena */
    size_t needed;    /* bytes of workspace, as the function says of the changed call */
};

/* A piece of the arena behind what is used, at an odd place for its size; NULL if there is no room. */
static void *piece(struct prepared *p, size_t bytes, size_t align, struct choices *choices) {
    const size_t gap = (size_t)choose(choices, 24) * 8 + 64, start = (p->used + gap + align - 1) / align * align;
    if (start + bytes + 256 > ARENA_BYTES) return NULL;
    p->used = start + bytes;
    return arena + start;
}

static bool place_tensor(struct prepared *p, int i, struct choices *choices) {
    static const enum spacing spacings[] = {SPACING_DENSE, SPACING_DENSE, SPACING_ODD, SPACING_WIDE};
    const struct tensor_spec *spec = &p->run->spec[i];
    const liger_dtype dtype = op_tensor_dtype(spec, p->run->types);
    const size_t size = liger_dtype_size((int)dtype);
    liger_tensor *t = &p->call.t[i];
    const int64_t span = op_tensor_layout(spec, spacings[choose(choices, 4)], t->stride);
    t->data = piece(p, (size_t)span * size, choose(choices, 2) ? 64 : size, choices);
    if (t->data == NULL) return false;
    t->dtype = (int32_t)dtype;
    t->ndim = spec->ndim;
    memcpy(t->shape, spec->shape, sizeof t->shape);
    if (spec->role != ROLE_OUT) op_tensor_store(spec, dtype, t->stride, p->run->t[i], t->data);
    return true;
}

static bool place_workspace(struct prepared *p, struct choices *choices) {
    size_t bytes = 0;
    if (p->run->op->workspace == NULL) return true;
    if (p->run->op->workspace(p->run->context, &p->call, &bytes) != LIGER_OK) return false;
    if (bytes == 0) return true;
    p->call.workspace = piece(p, bytes, 256, choices);
    p->call.workspace_bytes = bytes;
    return p->call.workspace != NULL;
}

/* False: it does not fit the arena. */
static bool prepare(struct prepared *p, struct choices *choices) {
    static const unsigned char junk[] = {0xff, 0xf5, 0x00, 0x3c};
    open_arena();
    memset(arena, junk[choose(choices, 4)], ARENA_BYTES);
    p->call = (struct op_call){.c = p->run->c};
    p->used = 0;
    for (int i = 0; i < p->run->op->tensor_count; i++)
        if (p->run->t[i] != NULL && !place_tensor(p, i, choices)) return false;
    if (!place_workspace(p, choices)) return false;
    p->call.args_to = p->args;
    return p->run->op->call(p->run->context, &p->call, NULL) == LIGER_OK;
}

/* ---- what the struct says ---- */

static liger_tensor *tensor_at(struct prepared *p, int k) { return (liger_tensor *)(p->args + sizeof(size_t)) + k; }

static bool is_written(const struct prepared *p, int k) { return p->written >> k & 1; }

static void read_door(struct prepared *p) {
    p->tensors = 0, p->written = 0, p->workspace = 0;
    for (const struct door_rule *rule = p->door->rules; rule < p->door->rules + p->door->count; rule++) {
        if (rule->kind == DOOR_WORKSPACE) p->workspace = rule->offset;
        if (rule->kind != DOOR_TENSOR) continue;
        p->tensors++;
        if (rule->role != DOOR_IN) p->written |= 1u << rule->at;
    }
}

static struct byte_span workspace_span(const struct prepared *p) {
    uintptr_t begin;
    size_t bytes;
    if (p->workspace == 0) return (struct byte_span){0, 0};
    memcpy(&begin, p->args + p->workspace, sizeof begin);
    memcpy(&bytes, p->args + p->workspace + sizeof begin, sizeof bytes);
    if (begin == 0 || bytes == 0) return (struct byte_span){0, 0};
    return (struct byte_span){begin, bytes < UINTPTR_MAX - begin ? begin + bytes : UINTPTR_MAX};
}

/* More may be given than is needed: that is not touched. */
static struct byte_span used_workspace(const struct prepared *p) {
    struct byte_span span = workspace_span(p);
    if (span.end - span.begin > p->needed) span.end = span.begin + p->needed;
    return span;
}

/* Whether a kernel may be trusted with the tensor: its numbers are small enough to compute with, it is aligned as its dtype
 * wants, and it lies in the arena. */
static bool is_there(const liger_tensor *t) {
    int64_t elements = 1;
    if (t->data == NULL) return true;
    const size_t size = liger_dtype_size(t->dtype);
    if (size == 0 || (uintptr_t)t->data % size != 0 || t->ndim < 0 || t->ndim > LIGER_MAX_DIMS) return false;
    for (int d = 0; d < t->ndim; d++) {
        if (t->shape[d] < 0 || t->shape[d] > MOST_ELEMENTS) return false;
        if (t->stride[d] < -ARENA_BYTES || t->stride[d] > ARENA_BYTES) return false;
        elements *= t->shape[d];
        if (elements > MOST_ELEMENTS) return false;
    }
    return elements == 0 || in_arena(liger_byte_span(t));
}

static bool all_is_there(struct prepared *p) {
    const struct byte_span workspace = workspace_span(p);
    bool there = workspace.end == 0 || in_arena(workspace);
    for (int k = 0; k < p->tensors; k++) there = there && is_there(tensor_at(p, k));
    return there;
}

/* ---- changes ---- */

/* One of the aliases that the contract permits. */
static void share(struct prepared *p, struct choices *choices) {
    struct op_alias aliases[OP_MOST_ALIASES];
    const int count = op_door_aliases(p->run->op, aliases);
    if (count == 0) return;
    const struct op_alias *alias = &aliases[choose(choices, count)];
    const liger_tensor *in = &p->call.t[alias->in], *out = &p->call.t[alias->out];
    if (in->data == NULL || out->data == NULL || in->dtype != out->dtype) return;
    for (int k = 0; k < p->tensors; k++)
        if (memcmp(tensor_at(p, k), out, sizeof *out) == 0) *tensor_at(p, k) = *in;
}

/* One more or one less; the ends of the range meet. */
static int64_t beside(int64_t value, struct choices *choices) {
    return (int64_t)((uint64_t)value + (choose(choices, 2) ? 1 : UINT64_MAX));
}

static void change_tensor(struct prepared *p, struct choices *choices) {
    static const int64_t sizes[] = {0, 1, 2, 3, -1, 64, INT64_MAX, INT64_MIN, INT64_C(1) << 32, INT64_C(1) << 40};
    liger_tensor *t = tensor_at(p, (int)choose(choices, p->tensors));
    const liger_tensor *other = tensor_at(p, (int)choose(choices, p->tensors));
    const int d = (int)choose(choices, t->ndim > 0 && t->ndim <= LIGER_MAX_DIMS ? t->ndim : LIGER_MAX_DIMS);
    switch (choose(choices, 10)) {
        case 0: t->data = NULL; break;
        case 1: t->data = other->data; break;
        case 2:
            if (t->data) t->data = (char *)t->data + (choose(choices, 33) - 16) * (int64_t)liger_dtype_size(t->dtype);
            break;
        case 3: t->dtype = (int32_t)choose(choices, 8); break;
        case 4: t->ndim = (int32_t)choose(choices, 9) - 1; break;
        case 5: t->shape[d] = sizes[choose(choices, OP_COUNT(sizes))]; break;
        case 6: t->shape[d] = beside(t->shape[d], choices); break;
        case 7: t->stride[d] = sizes[choose(choices, OP_COUNT(sizes))]; break;
        case 8: t->stride[d] = beside(t->stride[d], choices); break;
        default: *t = *other; break;
    }
}

/* Behind the tensors: numbers, reserved bytes, the workspace. */
static void change_rest(struct prepared *p, const struct door_entry *function, struct choices *choices) {
    static const float numbers[] = {0.0f, -1.0f, 1.0f, 0.5f, 1e30f, -1e-30f, 2.0f, 100.0f};
    const size_t rest = sizeof(size_t) + (size_t)p->tensors * sizeof(liger_tensor);
    if (rest >= function->door->size) return;
    const size_t at = rest + (size_t)choose(choices, (int64_t)(function->door->size - rest));
    const float number = numbers[choose(choices, OP_COUNT(numbers))];
    if (choose(choices, 2)) p->args[at] = (unsigned char)choose(choices, 256);
    else if (at / 4 * 4 + 4 <= function->door->size) memcpy(p->args + at / 4 * 4, &number, sizeof number);
}

static void change(struct prepared *p, const struct door_entry *function, struct choices *choices) {
    size_t size = function->door->size;
    switch (choose(choices, 8)) {
        case 0: size = choose(choices, 2) ? (size_t)choose(choices, (int64_t)size + 64) : size + 8; break;
        case 1:
        case 2: change_rest(p, function, choices); break;
        case 3: p->args[sizeof size + choose(choices, (int64_t)(size - sizeof size))] ^= 1 << choose(choices, 8); break;
        default: change_tensor(p, choices); break;
    }
    if (size == function->door->size) return;
    memcpy(p->args, &size, sizeof size);
    /* What an older caller's struct does not have is absent, to the library and to what is asked below of its tensors. */
    if (size >= sizeof size && size < function->door->size) memset(p->args + size, 0, function->door->size - size);
}

/* ---- what the call did ---- */

static struct prepared current;

void fuzz_describe(void) {
    if (current.run == NULL) return;
    const struct byte_span workspace = workspace_span(&current);
    printf("    %s, %s; workspace of %zu at %lld, %zu needed\n", current.run->op->name, current.run->c.label,
           (size_t)(workspace.end - workspace.begin), (long long)(workspace.begin - (uintptr_t)arena), current.needed);
    for (int k = 0; k < current.tensors; k++) {
        const liger_tensor *t = tensor_at(&current, k);
        printf("    tensor %d: %s, %s at %lld, %d dimensions:", k, is_written(&current, k) ? "output" : "input",
               liger_dtype_name(t->dtype), t->data ? (long long)((unsigned char *)t->data - arena) : -1LL, t->ndim);
        for (int d = 0; d < t->ndim && d < LIGER_MAX_DIMS; d++)
            printf(" %lld by %lld", (long long)t->shape[d], (long long)t->stride[d]);
        printf("\n");
    }
}

static bool complain(const char *what) {
    printf("FAILED %s\n", what);
    fuzz_describe();
    return false;
}

/* Calls body for the place in the arena of every element. */
static void for_each_element(const liger_tensor *t, void (*body)(size_t at, size_t size)) {
    int64_t index[LIGER_MAX_DIMS] = {0}, at = (unsigned char *)t->data - arena;
    const int64_t size = (int64_t)liger_dtype_size(t->dtype);
    int64_t elements = 1;
    if (t->data == NULL) return; /* absent, whatever its other fields say */
    for (int d = 0; d < t->ndim; d++) elements *= t->shape[d];
    for (int64_t e = 0; e < elements; e++) {
        body((size_t)at, (size_t)size);
        for (int d = t->ndim - 1; d >= 0; d--) {
            at += t->stride[d] * size;
            if (++index[d] < t->shape[d]) break;
            at -= index[d] * t->stride[d] * size;
            index[d] = 0;
        }
    }
}

static void set_back(size_t at, size_t size) { memcpy(after + at, before + at, size); }

/* Nothing but the elements of outputs and the workspace may have changed. */
static bool wrote_in_place(struct prepared *p) {
    const struct byte_span workspace = used_workspace(p);
    memcpy(after, arena, ARENA_BYTES);
    for (int k = 0; k < p->tensors; k++)
        if (is_written(p, k)) for_each_element(tensor_at(p, k), set_back);
    if (workspace.end > workspace.begin) {
        const size_t at = workspace.begin - (uintptr_t)arena;
        memcpy(after + at, before + at, workspace.end - workspace.begin);
    }
    return memcmp(after, before, ARENA_BYTES) == 0;
}

/* ---- overlaps, byte by byte ---- */

static unsigned char taken[ARENA_BYTES];
static bool meets;

static void take(size_t at, size_t size) {
    for (size_t i = at; i < at + size; i++) meets = meets || taken[i], taken[i] = 1;
}
static void touch(size_t at, size_t size) {
    for (size_t i = at; i < at + size; i++) meets = meets || taken[i];
}

static bool same_view(const liger_tensor *a, const liger_tensor *b) {
    bool same = a->data != NULL && a->data == b->data && a->dtype == b->dtype && a->ndim == b->ndim;
    for (int d = 0; same && d < a->ndim; d++)
        same = a->shape[d] == b->shape[d] && (a->shape[d] == 1 || a->stride[d] == b->stride[d]);
    return same;
}

/* What no function may accept, or NULL: an output that meets itself, another output, the workspace, or an input other than
 * as the very same view. Which of them may be the same view is the business of the driver's refusals. */
static const char *overlap(struct prepared *p) {
    const struct byte_span workspace = used_workspace(p);
    memset(taken, 0, sizeof taken);
    meets = false;
    if (workspace.end > workspace.begin) take(workspace.begin - (uintptr_t)arena, workspace.end - workspace.begin);
    for (int k = 0; k < p->tensors; k++)
        if (!is_written(p, k)) for_each_element(tensor_at(p, k), touch);
    if (meets) return "an input in the workspace was accepted";
    for (int k = 0; k < p->tensors; k++)
        if (is_written(p, k)) for_each_element(tensor_at(p, k), take);
    if (meets) return "an output that meets itself, another one or the workspace was accepted";
    for (int out = 0; out < p->tensors; out++) {
        if (!is_written(p, out)) continue;
        memset(taken, 0, sizeof taken);
        for_each_element(tensor_at(p, out), take);
        for (int in = 0; in < p->tensors; in++)
            if (!is_written(p, in) && !same_view(tensor_at(p, out), tensor_at(p, in)))
                for_each_element(tensor_at(p, in), touch);
        if (meets) return "an output that meets an input was accepted";
    }
    return NULL;
}

/* ---- the same again ---- */

/* The outputs of the last call, each where it lies. */
static void outputs(struct prepared *p, unsigned char *bits) {
    memset(bits, 0, ARENA_BYTES);
    for (int k = 0; k < p->tensors; k++) {
        const liger_tensor *t = tensor_at(p, k);
        if (t->data == NULL || !is_written(p, k)) continue;
        const struct byte_span span = liger_byte_span(t);
        const size_t at = span.begin - (uintptr_t)arena, length = span.end - span.begin;
        if (span.end > span.begin) memcpy(bits + at, arena + at, length);
    }
}

/* ---- one call ---- */

static bool run_once(const struct door_entry *function, struct prepared *p, liger_context *context,
                     liger_status *status) {
    memcpy(before, arena, ARENA_BYTES);
    *status = function->call(context, p->args, NULL);
    if (!fuzz_answered(function->name, *status)) return false;
    if (*status != LIGER_OK && memcmp(arena, before, ARENA_BYTES) != 0)
        return complain("a call that was refused has written");
    const char *met = *status == LIGER_OK ? overlap(p) : NULL;
    if (met != NULL) return complain(met);
    if (*status == LIGER_OK && !wrote_in_place(p)) return complain("written outside of outputs and workspace");
    return true;
}

/* Other junk where no argument lies. */
static void spoil_the_rest(struct prepared *p) {
    memcpy(after, arena, ARENA_BYTES);
    memset(arena, 0xa7, ARENA_BYTES);
    for (int k = 0; k <= p->tensors; k++) {
        const struct byte_span span = k < p->tensors ? liger_byte_span(tensor_at(p, k)) : workspace_span(p);
        const size_t at = span.begin - (uintptr_t)arena;
        if (span.end > span.begin) memcpy(arena + at, after + at, span.end - span.begin);
    }
}

/* The call again in another context of the same instruction set, from the same memory: same answer, same bits. */
static bool run_again(const struct door_entry *function, struct prepared *p, int isa, liger_status expected,
                      struct choices *choices, struct fuzz_counts *counts) {
    const int pool = (int)choose(choices, POOLS);
    liger_status status;
    outputs(p, first);
    memcpy(arena, before, ARENA_BYTES);
    spoil_the_rest(p);
    if (choose(choices, 16) == 0) end_context(isa, pool);
    if (!run_once(function, p, context_of(isa, pool), &status)) return false;
    static unsigned char second[ARENA_BYTES];
    outputs(p, second);
    counts->twice++;
    if (status != expected) return complain("another status in another context");
    return memcmp(first, second, ARENA_BYTES) == 0 || complain("other bits in another context");
}

/* A question is about dtypes and shapes: a tensor without memory counts in it, and may be wrong. In the call it is absent: what
 * that needs is asked without it. */
static bool ask_for_workspace(const struct door_entry *function, struct prepared *p, int isa) {
    if (function->workspace == NULL) return true;
    static struct prepared called;
    liger_status status = function->workspace(context_of(isa, 0), p->args, &p->needed);
    if (!fuzz_answered(function->name, status)) return false;
    called = *p;
    for (int k = 0; k < called.tensors; k++)
        if (tensor_at(&called, k)->data == NULL) tensor_at(&called, k)->dtype = LIGER_DTYPE_NONE;
    status = function->workspace(context_of(isa, 0), called.args, &p->needed);
    if (status != LIGER_OK) p->needed = SIZE_MAX;
    return fuzz_answered(function->name, status);
}

static bool make_call(const struct door_entry *function, struct prepared *p, int isa, bool again,
                      struct choices *choices, struct fuzz_counts *counts) {
    if (choose(choices, 8) == 0) share(p, choices);
    if (choose(choices, 2))
        for (int64_t k = choose(choices, MOST_CHANGES) + 1; k > 0; k--) change(p, function, choices);
    const bool there = all_is_there(p);
    if (!ask_for_workspace(function, p, isa)) return false;
    liger_status status;
    counts->made++;
    if (!there) {
        counts->without_memory++;
        status = function->call(fuzz_stubs(), p->args, NULL);
        return fuzz_answered(function->name, status);
    }
    if (!run_once(function, p, context_of(isa, 0), &status)) return false;
    counts->succeeded += status == LIGER_OK;
    counts->refused += status != LIGER_OK;
    return !again || run_again(function, p, isa, status, choices, counts);
}

/* A case small enough for the arena, with some dtypes. */
static struct op_run *draw(const struct op_cases *op, int isa, struct choices *choices) {
    const struct op_case *c = &op->cases[choose(choices, op->case_count)];
    struct tensor_spec spec[OP_MAX_TENSORS];
    struct op_types types;
    int64_t elements = 0;
    memset(spec, 0, sizeof spec);
    op->describe(c, spec);
    for (int i = 0; i < op->tensor_count; i++) elements += spec[i].absent ? 0 : op_tensor_count(&spec[i]);
    if (elements > ARENA_BYTES / 8 || !modes_types(op, c, (int)choose(choices, MODE_CHOICES), &types)) return NULL;
    return op_run_new(context_of(isa, 0), op, c, types, (uint64_t)choose(choices, 1 << 20));
}

bool fuzz_call(const struct door_entry *function, const struct op_cases *cases, struct choices *choices,
               struct fuzz_counts *counts) {
    const bool again = choose(choices, 2);
    const int isa = again ? some_isa(choices) : LIGER_ISA_AUTO;
    struct op_run *run = NULL;
    for (int tries = 0; run == NULL && tries < 64; tries++) run = draw(cases, isa, choices);
    if (run == NULL) return true;
    current.run = run;
    current.door = function->door;
    read_door(&current);
    const bool fine = !prepare(&current, choices) || make_call(function, &current, isa, again, choices, counts);
    current.run = NULL;
    op_run_free(run);
    return fine;
}
