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
    struct device_stream *stream; /* a GPU's, beside the default one; NULL on the CPU */
    bool quick;
};

struct test_mode {
    const char *name;
    void (*run)(const struct mode_setup *setup, const struct op_cases *op, struct report *report);
    const char *not_on_gpu, *not_on_cpu; /* why the mode does not apply there; NULL: it does */
    bool once;                           /* about the reference, not about a backend */
};

extern const struct test_mode test_modes[];
extern const int test_mode_count;

/* Runs the mode, or reports why it does not apply. */
void modes_run(const struct test_mode *mode, const struct mode_setup *setup, const struct op_cases *op,
               struct report *report);

/* ---- history: the one mode about all functions together ---- */

struct history_backend {
    const char *name;
    /* Makes context number `which` anew: 0 is the plain one, the others differ in threads or pool. NULL: failed. */
    liger_context *(*open)(const void *how, int which);
    const void *how;
    int contexts; /* how many `which` there are */
    bool on_host;
    bool quick;
};

/* All cases of all functions backwards and in two shuffled orders, contexts coming and going in between: each call's
 * outputs must have the bits that they have in a process of its own which runs the cases as they stand. Call it before anything else runs on this backend: what outlives a call must not be there yet. */
void mode_history(const struct history_backend *backend, const struct op_cases *const *ops, int op_count,
                  struct report *report);

/* ---- for the modes themselves ---- */

typedef void mode_case(const struct mode_setup *setup, struct op_run *run, struct report *report);

/* The choices of dtypes for a case: choice / 2 is T, choice % 2 makes weights and indices the other kind. False: this one
 * is none, or the same as another. */
enum { MODE_CHOICES = 6 };
bool modes_types(const struct op_cases *op, const struct op_case *c, int choice, struct op_types *types);
uint64_t modes_case_seed(const struct op_cases *op, const struct op_case *c);

/* Calls body for every case that `wanted` accepts, with every choice of dtypes; inputs are drawn, outputs expected. */
void modes_for_each(const struct mode_setup *setup, liger_context *context, const struct op_cases *op,
                    struct report *report, bool (*wanted)(const struct mode_setup *, const struct op_case *),
                    mode_case *body);
/* Likewise, but outputs are not expected: the reference is what takes the time. */
void modes_for_each_drawn(const struct mode_setup *setup, const struct op_cases *op, struct report *report,
                          bool (*wanted)(const struct mode_setup *, const struct op_case *), mode_case *body);
bool modes_ordinary(const struct mode_setup *setup, const struct op_case *c); /* neither edge nor large */
bool modes_not_edge(const struct mode_setup *setup, const struct op_case *c); /* with --quick: nor large */

/* One call with the given memory, examined and compared with run->expected. */
void modes_check_call(struct op_run *run, struct report *report, enum placement place, enum spacing spacing,
                      const int *same_as, const char *what);
/* Likewise on a stream; `held`: until the call has returned. */
void modes_check_on(struct device_stream *stream, bool held, struct op_run *run, struct report *report);

/* The bits of all outputs of one call; NULL if it failed. */
unsigned char *modes_bits(struct op_run *run, liger_context *context, struct device_stream *stream, size_t *bytes);

/* True if there is a reason, which is reported; with neither `thing` nor a reason the cases are incomplete, and with both
 * they contradict themselves. */
bool modes_excused(bool thing, const char *reason, const char *what, struct report *report);

/* "label f16, weight f32" */
const char *modes_label(const struct op_run *run, char *text, size_t bytes);

/* modes_contract.c: one wrong call, and what the refusal must look like. */
void modes_expect_refusal(struct op_run *run, const struct op_provocation *p, struct report *report);
/* modes_refusals.c: what the rules of a door refuse; a workspace query before there is memory. */
void modes_refuse_rules(struct op_run *run, const struct door *door, struct report *report);
void modes_query_without_memory(struct op_run *run, struct report *report);

void mode_range(const struct mode_setup *setup, const struct op_cases *op, struct report *report);
void mode_stream(const struct mode_setup *setup, const struct op_cases *op, struct report *report);
void mode_naive(const struct mode_setup *setup, const struct op_cases *op, struct report *report);
void mode_error(const struct mode_setup *setup, const struct op_cases *op, struct report *report);
void mode_gradient(const struct mode_setup *setup, const struct op_cases *op, struct report *report);
void mode_property(const struct mode_setup *setup, const struct op_cases *op, struct report *report);

#endif
