/* op_list.h - every function that has a row in ops.def, with its cases. Included by the test and the bench driver.
 *
 * An operator without cases is listed with cases == NULL, which the test driver counts as a failure. An internal kernel
 * may go without: then the cases of the functions that use it must exercise it. */
#ifndef TESTS_HARNESS_OP_LIST_H
#define TESTS_HARNESS_OP_LIST_H

#include "liger/core/kernel_table.h"
#include "tests/harness/op_cases.h"

#define OP_DECLARE(function) extern const struct op_cases function##_cases __attribute__((weak));
#define LIGER_OP(op, room) OP_DECLARE(op##_forward) OP_DECLARE(op##_backward)
#define LIGER_KERNEL(kernel, room) OP_DECLARE(kernel)
#define LIGER_COMPOSITE(op, room) OP_DECLARE(op##_forward) OP_DECLARE(op##_backward)
#include "liger/ops/ops.def"
#undef LIGER_OP
#undef LIGER_KERNEL
#undef LIGER_COMPOSITE
#undef OP_DECLARE

struct op_entry {
    const char *name;
    const struct op_cases *cases;
    bool internal;
    size_t slot; /* where its kernel stands in liger_kernel_table; 0 (the backend's name is there) if it has none */
};

#define OP_SLOT(function) offsetof(liger_kernel_table, function)
#define OP_LIST(function, internal, slot) {#function, &function##_cases, internal, slot},
#define LIGER_OP(op, room)                                                                                             \
    OP_LIST(op##_forward, false, OP_SLOT(op##_forward)) OP_LIST(op##_backward, false, OP_SLOT(op##_backward))
#define LIGER_KERNEL(kernel, room) OP_LIST(kernel, true, OP_SLOT(kernel))
#define LIGER_COMPOSITE(op, room) OP_LIST(op##_forward, false, 0) OP_LIST(op##_backward, false, 0)
static const struct op_entry op_list[] = {
#include "liger/ops/ops.def"
};
#undef LIGER_OP
#undef LIGER_KERNEL
#undef LIGER_COMPOSITE
#undef OP_LIST
#undef OP_SLOT

#endif
