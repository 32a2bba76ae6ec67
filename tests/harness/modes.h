/* modes.h - what a driver does with an operator's cases. */
#ifndef TESTS_HARNESS_MODES_H
#define TESTS_HARNESS_MODES_H

#include "tests/harness/call_image.h"
#include "tests/harness/door_list.h"
#include "tests/harness/report.h"

enum { MODE_MAX_TWINS = 6 };

struct mode_setup {
    liger_context *context;
    liger_context *single;                /* the same backend on the calling thread only; NULL on a GPU */
    liger_context *twins[MODE_MAX_TWINS]; /* the same backend with other numbers of threads */
    const char *twin_names[MODE_MAX_TWINS];
    int twin_count;
    bool quick;
};

struct test_mode {
    const char *name;
    void (*run)(const struct mode_setup *setup, const struct op_cases *op, struct report *report);
    bool host_only; /* needs page protection, or is about the CPU's arithmetic */
    bool once;      /* about the reference, not about a backend */
};

extern const struct test_mode test_modes[];
extern const int test_mode_count;

/* ---- for the modes themselves ---- */

typedef void mode_case(const struct mode_setup *setup, struct op_run *run, struct report *report);

/* Calls body for every case that `wanted` accepts, with every choice of dtypes; inputs are drawn, outputs expected. */
void modes_for_each(const struct mode_setup *setup, liger_context *context, const struct op_cases *op,
                    struct report *report, bool (*wanted)(const struct mode_setup *, const struct op_case *),
                    mode_case *body);
bool modes_ordinary(const struct mode_setup *setup, const struct op_case *c); /* neither edge nor large */
bool modes_not_edge(const struct mode_setup *setup, const struct op_case *c); /* with --quick: nor large */

/* One call with the given memory, examined and compared with run->expected. */
void modes_check_call(struct op_run *run, struct report *report, enum placement place, enum spacing spacing,
                      const int *same_as, const char *what);

/* "label f16, weight f32" */
const char *modes_label(const struct op_run *run, char *text, size_t bytes);

/* modes_contract.c: one wrong call, and what the refusal must look like. */
void modes_expect_refusal(struct op_run *run, const struct op_provocation *p, struct report *report);
/* modes_refusals.c: what the rules of a door refuse; a workspace query before there is memory. */
void modes_refuse_rules(struct op_run *run, const struct door *door, struct report *report);
void modes_query_without_memory(struct op_run *run, struct report *report);

void mode_naive(const struct mode_setup *setup, const struct op_cases *op, struct report *report);
void mode_error(const struct mode_setup *setup, const struct op_cases *op, struct report *report);
void mode_gradient(const struct mode_setup *setup, const struct op_cases *op, struct report *report);
void mode_property(const struct mode_setup *setup, const struct op_cases *op, struct report *report);

#endif
