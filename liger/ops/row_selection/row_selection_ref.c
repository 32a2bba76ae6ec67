/* row_selection_ref.c - what the selection of rows is: one loop. */
#include "liger/ops/row_selection/row_selection_ref.h"

void row_select_reference(const struct row_select_ref *p) {
    int64_t count = 0;
    for (int64_t i = 0; i < p->most; i++) p->row_of[i] = -1;
    for (int64_t r = 0; r < p->rows; r++) {
        p->place_of[r] = -1;
        if ((int64_t)p->target[r] == p->ignore_index) continue;
        if (count < p->most) {
            p->place_of[r] = (double)count;
            p->row_of[count] = (double)r;
        }
        count++;
    }
    *p->count = (double)count;
}

void row_move_reference(const struct row_move_ref *p) {
    for (int64_t r = 0; r < p->rows; r++) {
        const int64_t place = p->place_of ? (int64_t)p->place_of[r] : r;
        for (int64_t c = 0; c < p->cols; c++) p->y[r * p->cols + c] = place < 0 ? 0 : p->x[place * p->cols + c];
    }
}
