/* row_selection_ref.h - what the selection of rows is. For the test driver. */
#ifndef LIGER_OPS_ROW_SELECTION_REF_H
#define LIGER_OPS_ROW_SELECTION_REF_H

#include <stdint.h>

struct row_select_ref {
    int64_t rows, most, ignore_index;
    const double *target;
    double *row_of, *place_of, *count;
};
struct row_move_ref {
    int64_t rows, cols;
    const double *x, *place_of; /* place_of NULL: the row itself */
    double *y;
};

void row_select_reference(const struct row_select_ref *p);
/* Both gather and scatter. */
void row_move_reference(const struct row_move_ref *p);

#endif
