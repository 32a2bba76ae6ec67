/* linear_ref.c - what the operator is: double precision, plain loops, never optimised. */
#include "liger/ops/linear/linear_ref.h"

#include <stddef.h>

#ifndef REAL
#define REAL double
#endif

void linear_forward_ref(const struct linear_ref *p) {
    for (int64_t r = 0; r < p->rows; r++)
        for (int64_t j = 0; j < p->vocab; j++) {
            REAL sum = p->bias ? (REAL)p->bias[j] : 0;
            for (int64_t h = 0; h < p->hidden; h++)
                sum += (REAL)p->x[r * p->hidden + h] * (REAL)p->weight[j * p->hidden + h];
            p->y[r * p->vocab + j] = sum;
        }
}

void linear_backward_ref(const struct linear_ref *p) {
    for (int64_t r = 0; p->dx && r < p->rows; r++)
        for (int64_t h = 0; h < p->hidden; h++) {
            REAL sum = 0;
            for (int64_t j = 0; j < p->vocab; j++)
                sum += (REAL)p->dy[r * p->vocab + j] * (REAL)p->weight[j * p->hidden + h];
            p->dx[r * p->hidden + h] = sum;
        }
    for (int64_t j = 0; j < p->vocab; j++) {
        for (int64_t h = 0; p->dweight && h < p->hidden; h++) {
            REAL sum = p->accumulate ? (REAL)p->dweight[j * p->hidden + h] : 0;
            for (int64_t r = 0; r < p->rows; r++) sum += (REAL)p->dy[r * p->vocab + j] * (REAL)p->x[r * p->hidden + h];
            p->dweight[j * p->hidden + h] = sum;
        }
        REAL sum = p->accumulate && p->dbias ? (REAL)p->dbias[j] : 0;
        for (int64_t r = 0; r < p->rows; r++) sum += (REAL)p->dy[r * p->vocab + j];
        if (p->dbias) p->dbias[j] = sum;
    }
}
