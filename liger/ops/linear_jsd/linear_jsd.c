/* linear_jsd.c - a composite: the chunk loop of chunk/linear_loss.c, whose step makes the gradient of the student's logits.
 *
 * The buffer of a chunk holds that gradient, in T; the f32 logits of both models are there for a few rows at a time, a tile. So
 * all rows may be one chunk, whose products are made once, where f32 logits of all rows would be four times that memory. */
#include "liger/ops/linear_jsd/linear_jsd.h"

#include <math.h>

#include "liger/chunk/counted_loss.h"
#include "liger/core/door_rules.h"
#include "liger/ops/gemm/gemm_problem.h"
#include "liger/ops/linear_jsd/linear_jsd_problem.h"

enum { ROWS = 1, VOCAB, HIDDEN, TEACHER_HIDDEN, CHUNK };
static const struct linear_sizes sizes = {ROWS, HIDDEN, VOCAB, CHUNK};

/* What the table fills in. */
struct whole_problem {
    struct counted_loss loss;
    struct linear_jsd_problem rows; /* of the whole batch; a tile's are offset from them */
    struct linear_loss chunks;
    struct linear_head teacher;
    double beta;
    float temperature;
    int32_t raw_gradient;
};

/* ---- scratch -------------------------------------------------------------------------------------------------------- */

/* Rows of a tile in scratch. A GPU's products want 128 rows, and 256 of a large vocabulary before they wait for the weights that
 * each tile reads anew: a quarter of the budget. A CPU's are made at full speed of 64 rows, and 32 MB are about a cache. */
enum { GPU_STEP = 128, CPU_STEP = 16, CPU_ROWS = 64, CPU_BYTES = 32 << 20 };

static int64_t pitch_of(int64_t vocab) { return (vocab + 7) / 8 * 8; }

static int64_t tile_rows(const liger_context *context, int64_t rows, int64_t vocab) {
    const bool cpu = context->device == LIGER_DEVICE_CPU;
    const int64_t budget = linear_budget(context), step = cpu ? CPU_STEP : GPU_STEP;
    const int64_t row_bytes = 2 * (int64_t)sizeof(float) * pitch_of(vocab);
    int64_t fit = (budget ? budget / 4 : CPU_BYTES) / row_bytes / step * step;
    if (!budget && fit < CPU_ROWS) fit = CPU_ROWS;
    if (fit < step) fit = step;
    if (rows <= fit) return rows;
    const int64_t tiles = (rows + fit - 1) / fit;
    return ((rows + tiles - 1) / tiles + step - 1) / step * step;
}

/* Behind what the loss needs: scratch of the products, then the tiles. A student's f32 tile lies where its gradient will. */
struct layout {
    size_t products, tile, bytes;
    bool own_student;
};

static struct layout layout_of(const struct door_call *call, bool gradient) {
    const int64_t rows = tile_rows(call->context, call->size[ROWS], call->size[VOCAB]);
    struct layout layout = {
        .products = call->context->device == LIGER_DEVICE_CPU ? 0 : GEMM_WORKSPACE_BYTES,
        .tile = door_padded((size_t)(rows * pitch_of(call->size[VOCAB])) * sizeof(float)),
        .own_student = call->t != LIGER_F32 || !gradient,
    };
    layout.bytes = layout.products + layout.tile * (layout.own_student ? 2 : 1);
    return layout;
}

/* ---- what the function takes -------------------------------------------------------------------------------------- */

#define DOOR linear_jsd, whole_problem

static liger_status check_dlogits(struct door_call *call) {
    return door_has(call, BITS(dx, dweight)) ? linear_check_chunk(call) : LIGER_OK;
}
static size_t workspace_bytes(const struct door_call *call) {
    return counted_loss_workspace(call->size[ROWS]) + layout_of(call, door_has(call, BITS(dx, dweight))).bytes;
}

/* clang-format off */
static const struct door_rule rules[] = {
    {ARG(x),              IN,      FLOAT_T,    DIMS(2, ROWS, HIDDEN),  TO_PITCHED(chunks.head.x), PITCH_TO(chunks.head.x_stride)},
    {CHECK(linear_check_weight)},
    {ARG(weight),         IN,      T,          DIMS(2, VOCAB, HIDDEN), TO_POINTER(chunks.head.weight)},
    {ARG(teacher_x),      IN,      ANY_FLOAT,  DIMS(2, ROWS, SOME(TEACHER_HIDDEN)), TO_PITCHED(teacher.x), PITCH_TO(teacher.x_stride), DTYPE_TO(teacher.dtype)},
    {ARG(teacher_weight), IN,      DTYPE_OF(teacher_x), DIMS(2, VOCAB, TEACHER_HIDDEN), TO_POINTER(teacher.weight)},
    {ARG(labels),         IN,      INDEX,      VECTOR(ROWS),           TO_POINTER(loss.rows.labels), DTYPE_TO(loss.rows.label_dtype), OPTIONAL},
    {ARG(dlogits),        SCRATCH, T,          DIMS(2, CHUNK, VOCAB),  TO_PITCHED(chunks.head.logits), PITCH_TO(chunks.head.logits_stride), OPTIONAL},
    {ARG(loss),           OUT,     DTYPE(F32), ELEMENT,                TO_POINTER(loss.loss), OPTIONAL},
    {ARG(dx),             OUT,     T,          LIKE(x),                TO_PITCHED(chunks.dx), PITCH_TO(chunks.dx_stride), OPTIONAL},
    {ARG(dweight),        OUT,     T_OR_F32,   LIKE(weight),           TO_POINTER(chunks.dweight), DTYPE_TO(chunks.dweight_dtype), OPTIONAL},
    {CHECK(check_dlogits)},
    {INT64(ignore_index), TO(loss.rows.ignore_index)},
    {FLOAT(beta),         BETWEEN(0, 1), TO(beta)},
    {FLOAT(temperature),  FINITE, TO(temperature)},
    {CHECK(linear_check_temperature)},
    {INT32(raw_gradient), BETWEEN(0, 1), TO(raw_gradient)},
    {WORKSPACE(workspace_bytes, x, weight), TO(loss.workspace)},
};
/* clang-format on */

const struct door linear_jsd_door = DOOR_OF(linear_jsd, rules);

WORKSPACE_QUERY(linear_jsd)

liger_status liger_linear_jsd_chunk_rows(liger_context *context, const liger_linear_jsd_args *given, size_t *rows) {
    liger_linear_jsd_args args;
    return linear_advise_chunk(context, &linear_jsd_door, given, &args, BITS(x, weight), BIT(dweight), false, sizes,
                               rows);
}

/* ---- the run ------------------------------------------------------------------------------------------------------ */

/* A chunk, tile by tile. */
struct tiles {
    const struct whole_problem *whole;
    struct linear_head student, teacher; /* of f32 logits */
    char *
        scratch; /* for the teacher's logits of `rows` rows, and then the student's; or for more of the teacher's alone */
    int64_t rows, scratch_bytes;
    bool own_student;
};

/* Where the logits of a tile are. Of f32 the student's lie where their gradient will. */
struct tile {
    int64_t rows;
    char *student, *teacher;
};

/* The largest tile of the `left` rows from `here` on. Gradients of rows behind it are still to come: their memory, if there are no
 * gaps in it, holds logits meanwhile, of both models or of one beside what fits into scratch. At 4096 x 1024 and 2048 x 128256
 * the weights are read 10 times and not 16. */
static struct tile largest_tile(const liger_context *context, const struct tiles *tiles, char *here, int64_t left,
                                int64_t stride) {
    const int64_t gradient_bytes = stride * (int64_t)liger_dtype_size(tiles->whole->rows.dtype);
    const int64_t row_bytes = tiles->teacher.logits_stride * (int64_t)sizeof(float);
    const int64_t scratch = tiles->rows < left ? tiles->rows : left;
    struct tile best = {scratch, tiles->scratch + tiles->rows * row_bytes, tiles->scratch};
    if (!tiles->own_student) best.student = here;
    if (context->device == LIGER_DEVICE_CPU || here == NULL || scratch == left) return best;
    if (stride != tiles->whole->rows.vocab) return best;
    const int64_t bytes = left * gradient_bytes - (int64_t)door_padded(1), places = tiles->own_student ? 2 : 1;
    const int64_t of_both = bytes / (gradient_bytes + places * row_bytes) / GPU_STEP * GPU_STEP;
    const int64_t in_scratch = tiles->scratch_bytes / row_bytes, beside = bytes / (gradient_bytes + row_bytes);
    const int64_t of_one = (beside < in_scratch ? beside : in_scratch) / GPU_STEP * GPU_STEP;
    if (tiles->own_student && of_one > best.rows && of_one >= of_both) {
        best.rows = of_one;
        best.student = (char *)door_padded((size_t)(here + of_one * gradient_bytes));
        best.teacher = tiles->scratch;
    } else if (of_both > best.rows) {
        best.rows = of_both;
        best.teacher = (char *)door_padded((size_t)(here + of_both * gradient_bytes));
        if (tiles->own_student) best.student = best.teacher + of_both * row_bytes;
    }
    return best;
}

static liger_status one_tile(liger_context *context, struct tiles *tiles, const struct tile *tile, int64_t first,
                             void *dlogits, int64_t stride, liger_stream stream) {
    struct linear_jsd_problem problem = tiles->whole->rows;
    const struct linear_part part = {first, tile->rows, 0, problem.vocab};
    tiles->student.logits = tile->student, tiles->teacher.logits = tile->teacher;
    if (!tiles->own_student) tiles->student.logits_stride = stride;
    LIGER_TRY(linear_head_logits(context, &tiles->student, &part, stream));
    LIGER_TRY(linear_head_logits(context, &tiles->teacher, &part, stream));
    problem.rows = tile->rows;
    problem.student = tiles->student.logits, problem.student_stride = tiles->student.logits_stride;
    problem.teacher = tiles->teacher.logits, problem.teacher_stride = tiles->teacher.logits_stride;
    problem.counted = counted_rows_from(problem.counted, first);
    if (problem.loss) problem.loss += first;
    problem.dlogits = dlogits, problem.dlogits_stride = stride;
    return context->kernels->linear_jsd(context, &problem, stream);
}

static liger_status step(liger_context *context, void *state, int64_t first, int64_t rows, void *dlogits,
                         int64_t stride, liger_stream stream) {
    struct tiles *tiles = state;
    const int64_t element = (int64_t)liger_dtype_size(tiles->whole->rows.dtype);
    int64_t done = 0;
    while (done < rows) {
        char *const here = dlogits ? (char *)dlogits + done * stride * element : NULL;
        const struct tile tile = largest_tile(context, tiles, here, rows - done, stride);
        LIGER_TRY(one_tile(context, tiles, &tile, first + done, here, stride, stream));
        done += tile.rows;
    }
    return LIGER_OK;
}

static void complete(const struct door_call *call, struct whole_problem *whole) {
    struct linear_loss *chunks = &whole->chunks;
    const bool gradient = chunks->dx || chunks->dweight;
    counted_loss_sized(call, sizes, &whole->loss, chunks);
    if (!gradient) chunks->chunk_rows = chunks->rows;
    whole->rows.dtype = call->t;
    whole->teacher.hidden = call->size[TEACHER_HIDDEN];
    whole->teacher.vocab = whole->rows.vocab = chunks->head.vocab;
    chunks->step_makes_logits = true;
    if (!gradient) chunks->head.logits = NULL;
    whole->rows.mixture = mixture_of(whole->beta);
    whole->loss.mean = true;
    whole->loss.share = 1;
    whole->rows.inverse = 1 / whole->temperature;
    whole->rows.raw_gradient = whole->raw_gradient != 0;
}

static struct tiles tiles_of(const struct door_call *call, const struct whole_problem *whole) {
    const struct layout layout = layout_of(call, whole->chunks.head.logits != NULL);
    struct tiles tiles = {
        .whole = whole,
        .student = whole->chunks.head,
        .teacher = whole->teacher,
        .rows = tile_rows(call->context, call->size[ROWS], call->size[VOCAB]),
        .own_student = layout.own_student,
    };
    tiles.teacher.workspace = tiles.student.workspace;
    tiles.student.product_bytes = tiles.teacher.product_bytes = layout.products;
    tiles.student.logits_dtype = tiles.teacher.logits_dtype = LIGER_F32;
    tiles.student.logits_stride = tiles.teacher.logits_stride = pitch_of(call->size[VOCAB]);
    tiles.scratch = (char *)tiles.student.workspace + layout.products;
    tiles.scratch_bytes = (int64_t)(layout.bytes - layout.products);
    return tiles;
}

liger_status liger_linear_jsd(liger_context *context, const liger_linear_jsd_args *given, liger_stream stream) {
    liger_linear_jsd_args args;
    struct whole_problem whole = {.raw_gradient = 0};
    struct door_call call;
    LIGER_TRY(door_enter(&call, &linear_jsd_door, context, given, &args, &whole));
    complete(&call, &whole);
    struct tiles tiles = tiles_of(&call, &whole);
    whole.chunks.step = step;
    whole.chunks.state = &tiles;
    return counted_loss_run(context, &whole.loss, &whole.chunks, &whole.rows.counted, &whole.rows.loss, stream);
}
