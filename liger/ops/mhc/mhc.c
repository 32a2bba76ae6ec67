/* mhc.c - the doors of mhc: what its functions take, and the problems that a kernel gets. */
#include "liger/ops/mhc/mhc.h"

#include <string.h>

#include "liger/core/door_rules.h"
#include "liger/ops/mhc/mhc_problem.h"

enum { STREAMS = 1, C, TOKENS, HC, K, M };

/* x is seen as streams: rows of c columns, hc of each token. */
static liger_status whole_tokens(struct door_call *call) {
    const int64_t streams = call->size[STREAMS], tokens = call->size[TOKENS], hc = call->size[HC];
    LIGER_REQUIRE(hc <= MHC_MOST_STREAMS && tokens <= INT32_MAX, LIGER_ERR_SHAPE,
                  "%s: %lld tokens of %lld streams, but there may be %lld of %lld at most", call->door->function,
                  (long long)tokens, (long long)hc, (long long)INT32_MAX, (long long)MHC_MOST_STREAMS);
    LIGER_REQUIRE(streams == tokens * hc, LIGER_ERR_SHAPE,
                  "%s: x has %lld rows of c columns, but must have %lld, of %lld streams for each of %lld tokens",
                  call->door->function, (long long)streams, (long long)(tokens * hc), (long long)hc, (long long)tokens);
    return LIGER_OK;
}

/* phi says how many streams there are. */
static liger_status streams_of_phi(struct door_call *call) {
    const int64_t k = call->size[K], m = call->size[M], c = call->size[C], hc = k / c;
    LIGER_REQUIRE(k % c == 0 && hc > 0, LIGER_ERR_SHAPE,
                  "%s: phi has %lld rows, but must have one for each stream and column of x: a multiple of %lld",
                  call->door->function, (long long)k, (long long)c);
    LIGER_REQUIRE(hc <= MHC_MOST_STREAMS, LIGER_ERR_SHAPE,
                  "%s: phi has rows for %lld streams, but there may be %lld at most", call->door->function,
                  (long long)hc, (long long)MHC_MOST_STREAMS);
    LIGER_REQUIRE(m == mhc_m(hc), LIGER_ERR_SHAPE,
                  "%s: phi has %lld columns, but must have %lld, for %lld streams of x", call->door->function,
                  (long long)m, (long long)mhc_m(hc), (long long)hc);
    call->bound |= 1u << HC;
    call->size[HC] = hc;
    return LIGER_OK;
}

static size_t forward_bytes(const struct door_call *call) {
    const int64_t *size = call->size;
    const int terms = mhc_terms((liger_dtype)((const liger_mhc_coeffs_forward_args *)call->args)->phi.dtype);
    return (size_t)mhc_forward_floats(call->context->multiprocessors, size[TOKENS], size[HC], size[C], terms) *
           sizeof(float);
}
static size_t backward_bytes(const struct door_call *call) {
    const int64_t *size = call->size, steps = ((const liger_mhc_coeffs_backward_args *)call->args)->tmax;
    return (size_t)mhc_backward_floats(call->context->multiprocessors, size[TOKENS], size[HC], size[C], steps) *
           sizeof(float);
}

/* clang-format off */
#define DOOR mhc_coeffs_forward, mhc_coeffs_forward_problem
static const struct door_rule coeffs_forward_rules[] = {
    {ARG(x),          IN,  FLOAT_T,    MATRIX(STREAMS, SOME(C)), TO_POINTER(x)},
    {ARG(phi),        IN,  T_OR_F32,   DIMS(2, K, M),            TO_POINTER(phi), DTYPE_TO(phi_dtype)},
    {CHECK(streams_of_phi)},
    {ARG(b),          IN,  DTYPE(F32), VECTOR(M),                TO_POINTER(formula.b)},
    {ARG(alpha_pre),  IN,  DTYPE(F32), ELEMENT,                  TO_POINTER(formula.alpha_pre)},
    {ARG(alpha_post), IN,  DTYPE(F32), ELEMENT,                  TO_POINTER(formula.alpha_post)},
    {ARG(alpha_res),  IN,  DTYPE(F32), ELEMENT,                  TO_POINTER(formula.alpha_res)},
    {ARG(h_pre),      OUT, DTYPE(F32), MATRIX(TOKENS, HC),       TO_POINTER(h_pre)},
    {CHECK(whole_tokens)},
    {ARG(h_post),     OUT, DTYPE(F32), MATRIX(TOKENS, HC),       TO_POINTER(h_post)},
    {ARG(h_res),      OUT, DTYPE(F32), MATRIX(STREAMS, HC),      TO_POINTER(h_res)},
    {ARG(x_in),       OUT, T,          MATRIX(TOKENS, C),        TO_POINTER(x_in), OPTIONAL},
    {ARG(mix),        OUT, DTYPE(F32), MATRIX(TOKENS, M),        TO_POINTER(mix)},
    {ARG(rstd),       OUT, DTYPE(F32), VECTOR(TOKENS),           TO_POINTER(rstd)},
    {INT64(tmax),         BETWEEN(1, MHC_MOST_STEPS), TO(formula.steps)},
    {FLOAT(rms_eps),      AT_LEAST(0), TO(rms_eps)},
    {FLOAT(pre_eps),      FINITE,      TO(formula.pre_eps)},
    {FLOAT(sinkhorn_eps), AT_LEAST(0), TO(formula.sinkhorn_eps)},
    {FLOAT(post_mult),    FINITE,      TO(formula.post_mult)},
    {WORKSPACE(forward_bytes, x, phi, h_pre), TO(workspace)},
};
#undef DOOR

#define DOOR mhc_coeffs_backward, mhc_coeffs_backward_problem
static const struct door_rule coeffs_backward_rules[] = {
    {ARG(x),           IN,  FLOAT_T,    MATRIX(STREAMS, SOME(C)), TO_POINTER(x)},
    {ARG(phi),         IN,  T_OR_F32,   DIMS(2, K, M),            TO_POINTER(phi), DTYPE_TO(phi_dtype)},
    {CHECK(streams_of_phi)},
    {ARG(b),           IN,  DTYPE(F32), VECTOR(M),                TO_POINTER(formula.b)},
    {ARG(alpha_pre),   IN,  DTYPE(F32), ELEMENT,                  TO_POINTER(formula.alpha_pre)},
    {ARG(alpha_post),  IN,  DTYPE(F32), ELEMENT,                  TO_POINTER(formula.alpha_post)},
    {ARG(alpha_res),   IN,  DTYPE(F32), ELEMENT,                  TO_POINTER(formula.alpha_res)},
    {ARG(mix),         IN,  DTYPE(F32), MATRIX(TOKENS, M),        TO_POINTER(mix)},
    {CHECK(whole_tokens)},
    {ARG(rstd),        IN,  DTYPE(F32), VECTOR(TOKENS),           TO_POINTER(rstd)},
    {ARG(dh_pre),      IN,  DTYPE(F32), MATRIX(TOKENS, HC),       TO_POINTER(dh_pre),    OPTIONAL},
    {ARG(dh_post),     IN,  DTYPE(F32), MATRIX(TOKENS, HC),       TO_POINTER(dh_post),   OPTIONAL},
    {ARG(dh_res),      IN,  DTYPE(F32), MATRIX(STREAMS, HC),      TO_POINTER(dh_res),    OPTIONAL},
    {ARG(dx_in),       IN,  T,          MATRIX(TOKENS, C),        TO_POINTER(dx_in),     OPTIONAL},
    {ARG(dx_so_far),   IN,  T,          LIKE(x),                  TO_POINTER(dx_so_far), OPTIONAL},
    {ARG(dx),          OUT, T,          LIKE(x),                  TO_POINTER(dx), OPTIONAL, MAY_BE(dx_so_far)},
    {ARG(dphi),        OUT, DTYPE_OF(phi), LIKE(phi),             TO_POINTER(dphi),        OPTIONAL},
    {ARG(db),          OUT, DTYPE(F32), LIKE(b),                  TO_POINTER(db),          OPTIONAL},
    {ARG(dalpha_pre),  OUT, DTYPE(F32), ELEMENT,                  TO_POINTER(dalpha_pre),  OPTIONAL},
    {ARG(dalpha_post), OUT, DTYPE(F32), ELEMENT,                  TO_POINTER(dalpha_post), OPTIONAL},
    {ARG(dalpha_res),  OUT, DTYPE(F32), ELEMENT,                  TO_POINTER(dalpha_res),  OPTIONAL},
    {INT64(tmax),         BETWEEN(1, MHC_MOST_STEPS), TO(formula.steps)},
    {FLOAT(pre_eps),      FINITE,      TO(formula.pre_eps)},
    {FLOAT(sinkhorn_eps), AT_LEAST(0), TO(formula.sinkhorn_eps)},
    {FLOAT(post_mult),    FINITE,      TO(formula.post_mult)},
    {RESERVED(reserved)},
    {WORKSPACE(backward_bytes, x, phi, mix), TO(workspace)},
};
#undef DOOR

#define DOOR mhc_pre_forward, mhc_pre_forward_problem
static const struct door_rule pre_forward_rules[] = {
    {ARG(x),     IN,  FLOAT_T,    MATRIX(STREAMS, SOME(C)),  TO_POINTER(x)},
    {ARG(h_pre), IN,  DTYPE(F32), MATRIX(TOKENS, SOME(HC)),  TO_POINTER(h_pre)},
    {CHECK(whole_tokens)},
    {ARG(y),     OUT, T,          MATRIX(TOKENS, C),         TO_POINTER(y)},
};
#undef DOOR

#define DOOR mhc_pre_backward, mhc_pre_backward_problem
static const struct door_rule pre_backward_rules[] = {
    {ARG(dy),     IN,  FLOAT_T,    MATRIX(TOKENS, SOME(C)), TO_POINTER(dy)},
    {ARG(x),      IN,  T,          MATRIX(STREAMS, C),      TO_POINTER(x)},
    {ARG(h_pre),  IN,  DTYPE(F32), MATRIX(TOKENS, SOME(HC)), TO_POINTER(h_pre)},
    {CHECK(whole_tokens)},
    {ARG(dx),     OUT, T,          LIKE(x),                 TO_POINTER(dx),     OPTIONAL},
    {ARG(dh_pre), OUT, DTYPE(F32), LIKE(h_pre),             TO_POINTER(dh_pre), OPTIONAL},
};
#undef DOOR

#define DOOR mhc_post_res_forward, mhc_post_res_forward_problem
static const struct door_rule post_res_forward_rules[] = {
    {ARG(x),      IN,  FLOAT_T,    MATRIX(STREAMS, SOME(C)),  TO_POINTER(x)},
    {ARG(f),      IN,  T_OR_F32,   MATRIX(TOKENS, C),         TO_POINTER(f), DTYPE_TO(f_dtype)},
    {ARG(h_post), IN,  DTYPE(F32), MATRIX(TOKENS, SOME(HC)),  TO_POINTER(h_post)},
    {CHECK(whole_tokens)},
    {ARG(h_res),  IN,  DTYPE(F32), MATRIX(STREAMS, HC),       TO_POINTER(h_res)},
    {ARG(y),      OUT, T,          LIKE(x),                   TO_POINTER(y)},
};
#undef DOOR

#define DOOR mhc_post_res_backward, mhc_post_res_backward_problem
static const struct door_rule post_res_backward_rules[] = {
    {ARG(dy),      IN,  FLOAT_T,    MATRIX(STREAMS, SOME(C)), TO_POINTER(dy)},
    {ARG(x),       IN,  T,          LIKE(dy),                 TO_POINTER(x)},
    {ARG(f),       IN,  T_OR_F32,   MATRIX(TOKENS, C),        TO_POINTER(f), DTYPE_TO(f_dtype)},
    {ARG(h_post),  IN,  DTYPE(F32), MATRIX(TOKENS, SOME(HC)), TO_POINTER(h_post)},
    {CHECK(whole_tokens)},
    {ARG(h_res),   IN,  DTYPE(F32), MATRIX(STREAMS, HC),      TO_POINTER(h_res)},
    {ARG(dx),      OUT, T,          LIKE(x),                  TO_POINTER(dx),      OPTIONAL},
    {ARG(df),      OUT, DTYPE_OF(f), LIKE(f),                 TO_POINTER(df),      OPTIONAL},
    {ARG(dh_post), OUT, DTYPE(F32), LIKE(h_post),             TO_POINTER(dh_post), OPTIONAL},
    {ARG(dh_res),  OUT, DTYPE(F32), LIKE(h_res),              TO_POINTER(dh_res),  OPTIONAL},
};
#undef DOOR
/* clang-format on */

const struct door mhc_coeffs_forward_door = DOOR_OF(mhc_coeffs_forward, coeffs_forward_rules);
const struct door mhc_coeffs_backward_door = DOOR_OF(mhc_coeffs_backward, coeffs_backward_rules);
const struct door mhc_pre_forward_door = DOOR_OF(mhc_pre_forward, pre_forward_rules);
const struct door mhc_pre_backward_door = DOOR_OF(mhc_pre_backward, pre_backward_rules);
const struct door mhc_post_res_forward_door = DOOR_OF(mhc_post_res_forward, post_res_forward_rules);
const struct door mhc_post_res_backward_door = DOOR_OF(mhc_post_res_backward, post_res_backward_rules);

/* Checks a call and fills the problem, in whose kernel there is something to do unless there are no tokens. */
#define ENTER(function)                                                                                                \
    liger_##function##_args args;                                                                                      \
    struct function##_problem problem;                                                                                 \
    struct door_call call;                                                                                             \
    memset(&problem, 0, sizeof problem);                                                                               \
    LIGER_TRY(door_enter(&call, &function##_door, context, given, &args, &problem));                                   \
    problem.dtype = call.t;                                                                                            \
    problem.tokens = call.size[TOKENS];                                                                                \
    problem.hc = call.size[HC];                                                                                        \
    problem.c = call.size[C]

liger_status liger_mhc_coeffs_forward(liger_context *context, const liger_mhc_coeffs_forward_args *given,
                                      liger_stream stream) {
    ENTER(mhc_coeffs_forward);
    if (problem.tokens == 0) return LIGER_OK;
    return context->kernels->mhc_coeffs_forward(context, &problem, stream);
}

liger_status liger_mhc_coeffs_backward(liger_context *context, const liger_mhc_coeffs_backward_args *given,
                                       liger_stream stream) {
    ENTER(mhc_coeffs_backward);
    const bool summed = problem.dphi || problem.db || problem.dalpha_pre || problem.dalpha_post || problem.dalpha_res;
    if (!summed && (!problem.dx || problem.tokens == 0)) return LIGER_OK;
    return context->kernels->mhc_coeffs_backward(context, &problem, stream);
}

liger_status liger_mhc_coeffs_forward_workspace(liger_context *context, const liger_mhc_coeffs_forward_args *given,
                                                size_t *bytes) {
    liger_mhc_coeffs_forward_args args;
    return door_workspace(&mhc_coeffs_forward_door, context, given, &args, bytes);
}

liger_status liger_mhc_coeffs_backward_workspace(liger_context *context, const liger_mhc_coeffs_backward_args *given,
                                                 size_t *bytes) {
    liger_mhc_coeffs_backward_args args;
    return door_workspace(&mhc_coeffs_backward_door, context, given, &args, bytes);
}

liger_status liger_mhc_pre_forward(liger_context *context, const liger_mhc_pre_forward_args *given,
                                   liger_stream stream) {
    ENTER(mhc_pre_forward);
    if (problem.tokens == 0) return LIGER_OK;
    return context->kernels->mhc_pre_forward(context, &problem, stream);
}

liger_status liger_mhc_pre_backward(liger_context *context, const liger_mhc_pre_backward_args *given,
                                    liger_stream stream) {
    ENTER(mhc_pre_backward);
    if (problem.tokens == 0 || (!problem.dx && !problem.dh_pre)) return LIGER_OK;
    return context->kernels->mhc_pre_backward(context, &problem, stream);
}

liger_status liger_mhc_post_res_forward(liger_context *context, const liger_mhc_post_res_forward_args *given,
                                        liger_stream stream) {
    ENTER(mhc_post_res_forward);
    if (problem.tokens == 0) return LIGER_OK;
    return context->kernels->mhc_post_res_forward(context, &problem, stream);
}

liger_status liger_mhc_post_res_backward(liger_context *context, const liger_mhc_post_res_backward_args *given,
                                         liger_stream stream) {
    ENTER(mhc_post_res_backward);
    const bool asked = problem.dx || problem.df || problem.dh_post || problem.dh_res;
    if (problem.tokens == 0 || !asked) return LIGER_OK;
    return context->kernels->mhc_post_res_backward(context, &problem, stream);
}
