/* door.h - what a public function takes, as a table, and the one reader of such tables. Internal.
 *
 * A row per field of the args struct says everything that is a fact about this field: its role, its dtype, its shape, its
 * strides, what it may be, and what becomes of it in the problem. From the same rows door_enter checks a call, and the
 * tests derive calls that are right, calls that are wrong, and views that may be shared. Tables are written with the words
 * of door_rules.h. */
#ifndef LIGER_CORE_DOOR_H
#define LIGER_CORE_DOOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "liger/core/context_state.h"
#include "liger/core/rows.h"

#ifdef __cplusplus
extern "C" {
#endif

enum door_kind {
    DOOR_TENSOR,
    DOOR_FLOAT, /* float or double */
    DOOR_INT32,
    DOOR_INT64,
    DOOR_ADDRESS,   /* a pointer that is nobody's business here */
    DOOR_WORKSPACE, /* void *workspace; size_t workspace_bytes; */
    DOOR_RESERVED,  /* must be zero, so that a later version may give it a meaning */
    DOOR_CHECK      /* no field: a check of its own, at this place in the order */
};

/* SCRATCH is memory of the caller's that is lost: it must lie apart from everything, as an output does. */
enum door_role { DOOR_IN, DOOR_OUT, DOOR_SCRATCH };

/* A value below DOOR_T is that liger_dtype; DOOR_AS + n is the dtype of tensor n, or f32 where that is absent. */
enum door_dtype {
    DOOR_T = 64,
    DOOR_FLOAT_T /* f32, f16, bf16: it is T */,
    DOOR_T_OR_F32,
    DOOR_ANY_FLOAT,
    DOOR_INDEX,
    DOOR_AS
};

/* Sizes are numbers of a room: 1, 2, ... are bound by the first argument that has them and must agree from then on. 0 is the
 * number one. A size of a rule is such a number, or DOOR_TIMES of it, and may have DOOR_SOME: 0 is refused. */
enum { DOOR_ONE = 0, DOOR_SIZES = 16, DOOR_SOME = 0x80 };
#define DOOR_TIMES(factor, size) ((factor) << 8 | (size))

enum door_shape_kind {
    DOOR_ANY_SHAPE,
    DOOR_FOLDED,     /* leading dimensions multiply to size[0], the last is size[1]; `count` dimensions at least */
    DOOR_DIMS,       /* `count` dimensions: size[] */
    DOOR_LIKE,       /* the shape of tensor `like`, but for the dimensions in `free` */
    DOOR_ELEMENT,    /* one element, in any rank */
    DOOR_ELEMENT_OR, /* a scalar, [1] or [size[0]] */
    DOOR_OWN_SHAPE   /* what `fits` says */
};

enum door_layout {
    DOOR_STRIDED,    /* any strides */
    DOOR_LAST,       /* the last dimension is contiguous */
    DOOR_PITCHED,    /* that, two dimensions, and rows do not overlap: what a matrix product takes */
    DOOR_CONTIGUOUS, /* one piece */
    DOOR_ROWS,       /* folds into liger_rows */
    DOOR_OWN_LAYOUT  /* what `lower` says */
};

enum door_bounds {
    DOOR_UNBOUNDED,
    DOOR_BETWEEN,  /* low <= value <= high */
    DOOR_AT_LEAST, /* low <= value */
    DOOR_FINITE,
    DOOR_POSITIVE,      /* finite and > 0 */
    DOOR_CAP,           /* finite and > 0, or 0 for none */
    DOOR_NONE_OR_FLOAT, /* 0, or a float dtype */
};

struct door_call;

struct door_rule {
    const char *what; /* "function: field", as messages begin */
    uint16_t name;    /* where the field's own name begins in it */
    uint16_t offset, bytes;
    uint8_t kind;
    /* Tensors; `at` is the place among the tensors of the struct, and masks of tensors have bit 1u << at. */
    uint8_t at, role, layout;
    bool optional;   /* may be absent */
    uint32_t with;   /* but not if one of these is there */
    uint32_t may_be; /* may be the very same view as one of these */
    uint16_t dtype;
    struct {
        uint8_t kind, count, like, free;
        uint16_t size[LIGER_MAX_DIMS];
        const char *means; /* what the dimensions are, for the message about their number; or NULL */
    } shape;
    liger_status (*fits)(const struct door_call *call, const liger_tensor *tensor, const char *what);
    /* The problem gets, at offset `to`: a number as it is, an address, a liger_rows (ROWS), what `lower` makes of a tensor
     * (OWN_LAYOUT); and of a tensor that is there its dtype and the stride of its first dimension. */
    bool lowered, dtype_lowered, pitch_lowered;
    uint16_t to, dtype_to, pitch_to;
    liger_status (*lower)(const liger_tensor *tensor, const char *what, void *to);
    /* Numbers. An integer may bind a size: `binds`, if it is not DOOR_ONE. */
    uint8_t bounds, binds;
    double low, high;
    /* WORKSPACE: bytes needed (none if `with` names tensors and none of them is there), and the tensors that the answer to a
     * query depends on. */
    size_t (*needed)(const struct door_call *call);
    uint32_t needs;
    /* CHECK. It may bind sizes. Whoever wants valid values draws until it says OK. */
    liger_status (*check)(struct door_call *call);
};

struct door {
    const char *function;
    size_t size; /* of the args struct */
    const struct door_rule *rules;
    int count;
};

/* What is known of a call while its rules are read, and after. */
struct door_call {
    const struct door *door;
    const liger_context *context;
    const void *args; /* of door->size bytes, whatever the caller's size was */
    bool query;       /* about sizes: strides and addresses do not matter, a tensor is there if it has a dtype */
    uint32_t needs;   /* tensors that the answer depends on */
    liger_dtype t;
    uint32_t present; /* tensors */
    uint32_t bound;   /* sizes */
    int64_t size[DOOR_SIZES];
};

/* Copies `given` to `args`, of door->size bytes, checks the call, and fills the fields of `problem` that rules name; the
 * caller sets its other fields, before (an absent argument leaves its field) or after. Nothing is written to an argument.
 *
 * An args struct begins with its own size and grows only by appending. A shorter struct is that of an older caller: it ends
 * with a field, and reads as zero from there on, which by rule means the old behaviour. A longer one must be zero where this
 * library knows nothing. */
liger_status door_enter(struct door_call *call, const struct door *door, liger_context *context, const void *given,
                        void *args, void *problem);

/* The same for a question about sizes, or for a struct without tensors and then without a context. Tensors outside of `needs`
 * may be missing. */
liger_status door_query(struct door_call *call, const struct door *door, liger_context *context, const void *given,
                        void *args, uint32_t needs);

/* Answers a workspace query from the table. */
liger_status door_workspace(const struct door *door, liger_context *context, const void *given, void *args,
                            size_t *bytes);

/* Whether an args struct may be so long: one of an older caller ends with a field. */
bool door_ends_a_field(const struct door *door, size_t size);

static inline const char *door_name(const struct door_rule *rule) { return rule->what + rule->name; }
static inline bool door_has(const struct door_call *call, uint32_t tensors) { return (call->present & tensors) != 0; }
static inline const liger_tensor *door_tensor(const void *args, int at) {
    return (const liger_tensor *)((const char *)args + sizeof(size_t)) + at;
}
/* Pieces of a workspace begin at multiples of 256 bytes, as it does. */
static inline size_t door_padded(size_t bytes) { return (bytes + 255) / 256 * 256; }
/* What most problems begin with: T, and a matrix of the sizes 1 and 2. False: there is nothing in it. */
static inline bool door_matrix(const struct door_call *call, liger_dtype *dtype, int64_t *rows, int64_t *cols) {
    *dtype = call->t;
    *rows = call->size[1];
    *cols = call->size[2];
    return *rows > 0 && *cols > 0;
}
/* Where all of a call's rows are of that matrix and what happens to an element is all that matters: those that lie in one
 * piece become one long row. The problem is filled; a row's absent argument has no data there. */
void door_join_rows(const struct door_call *call, void *problem, int64_t *rows, int64_t *cols);
/* The value of a size of a rule; it must be bound. */
static inline int64_t door_size(const struct door_call *call, uint16_t size) {
    const int64_t factor = size >> 8;
    return call->size[size & (DOOR_SOME - 1)] * (factor ? factor : 1);
}

#ifdef __cplusplus
}
#endif
#endif
