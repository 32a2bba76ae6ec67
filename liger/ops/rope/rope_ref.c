/* rope_ref.c - what RoPE is: double precision, plain loops. */
#include "liger/ops/rope/rope_ref.h"

#include "tests/harness/op_cases.h"

/* Of a column: how many rows behind the first plane's its angles are. */
static int64_t plane_of(const struct rope_ref *r, int64_t i) {
    return r->plane_rows * (i < r->temporal ? 0 : i < r->temporal + r->height ? 1 : 2);
}

static void rotate_head(const struct rope_ref *r, const double *x, const double *cos, const double *sin, double *y) {
    for (int64_t i = 2 * r->half; i < r->dim; i++) y[i] = x[i];
    for (int64_t i = 0; i < r->half; i++) {
        const double low = op_round(r->operand, x[i]), high = op_round(r->operand, x[r->half + i]);
        const double c = cos[plane_of(r, i) * r->cos_cols + i], angle_s = sin[plane_of(r, i) * r->sin_cols + i];
        const double s = r->inverse ? -angle_s : angle_s;
        y[i] = low * c - high * s;
        y[r->half + i] = high * c + low * s;
    }
}

void rope_ref(const struct rope_ref *r, const double *x, const double *cos, const double *sin, double *y) {
    for (int64_t batch = 0; batch < r->batch; batch++)
        for (int64_t head = 0; head < r->heads; head++)
            for (int64_t s = 0; s < r->seq; s++) {
                const int64_t at = ((batch * r->heads + head) * r->seq + s) * r->dim;
                const int64_t row = (r->table_batch == 1 ? 0 : batch) * r->seq + s;
                rotate_head(r, x + at, cos + row * r->cos_cols, sin + row * r->sin_cols, y + at);
            }
}
