/* embedding.c - the door of embedding: what its functions take, and the problem that a kernel gets. */
#include "liger/ops/embedding/embedding.h"

#include "liger/core/door_rules.h"
#include "liger/ops/embedding/embedding_problem.h"

enum { TOKENS = 1, VOCAB, COLS };

/* A key has 32 bits for each, and one row number that no row has. */
static liger_status fit_a_key(struct door_call *call) {
    const char *const names[] = {"tokens", "rows of the table"};
    const int sizes[] = {TOKENS, VOCAB};
    for (int i = 0; i < 2; i++)
        LIGER_REQUIRE(call->size[sizes[i]] <= UINT32_MAX, LIGER_ERR_SHAPE,
                      "%s: there are %lld %s, but at most %lld fit", call->door->function,
                      (long long)call->size[sizes[i]], names[i], (long long)UINT32_MAX);
    return LIGER_OK;
}

/* clang-format off */
#define DOOR embedding_forward, embedding_forward_problem
static const struct door_rule forward_rules[] = {
    {ARG(weight),  IN,  FLOAT_T, DIMS(2, VOCAB, COLS),  TO_ROWS(weight)},
    {ARG(indices), IN,  INDEX,   VECTOR(TOKENS),        TO_POINTER(indices), DTYPE_TO(index_dtype)},
    {CHECK(fit_a_key)},
    {ARG(y),       OUT, T,       DIMS(2, TOKENS, COLS), TO_ROWS(y)},
    {INT64(padding_index), TO(padding_index)},
};
#undef DOOR

static size_t workspace_bytes(const struct door_call *call) {
    return embedding_layout(call->size[TOKENS], call->size[COLS]).bytes;
}

#define DOOR embedding_backward, embedding_backward_problem
static const struct door_rule backward_rules[] = {
    {ARG(dy),      IN,  FLOAT_T, DIMS(2, TOKENS, COLS), TO_ROWS(dy)},
    {ARG(indices), IN,  INDEX,   VECTOR(TOKENS),        TO_POINTER(indices), DTYPE_TO(index_dtype)},
    {ARG(dweight), OUT, T,       DIMS(2, VOCAB, COLS),  TO_ROWS(dweight)},
    {CHECK(fit_a_key)},
    {INT64(padding_index), TO(padding_index)},
    {WORKSPACE(workspace_bytes, dy), TO(workspace)},
};
#undef DOOR
/* clang-format on */

const struct door embedding_forward_door = DOOR_OF(embedding_forward, forward_rules);
const struct door embedding_backward_door = DOOR_OF(embedding_backward, backward_rules);

liger_status liger_embedding_forward(liger_context *context, const liger_embedding_forward_args *given,
                                     liger_stream stream) {
    liger_embedding_forward_args args;
    struct embedding_forward_problem problem;
    struct door_call call;
    LIGER_TRY(door_enter(&call, &embedding_forward_door, context, given, &args, &problem));
    problem.dtype = call.t;
    problem.tokens = call.size[TOKENS];
    problem.vocab = call.size[VOCAB];
    problem.cols = call.size[COLS];
    if (problem.tokens == 0 || problem.cols == 0) return LIGER_OK;
    return context->kernels->embedding_forward(context, &problem, stream);
}

liger_status liger_embedding_backward(liger_context *context, const liger_embedding_backward_args *given,
                                      liger_stream stream) {
    liger_embedding_backward_args args;
    struct embedding_backward_problem problem;
    struct door_call call;
    LIGER_TRY(door_enter(&call, &embedding_backward_door, context, given, &args, &problem));
    problem.dtype = call.t;
    problem.tokens = call.size[TOKENS];
    problem.vocab = call.size[VOCAB];
    problem.cols = call.size[COLS];
    problem.piece_bits = embedding_piece_bits(problem.tokens);
    if (problem.vocab == 0 || problem.cols == 0) return LIGER_OK;
    return context->kernels->embedding_backward(context, &problem, stream);
}

WORKSPACE_QUERY(embedding_backward)
