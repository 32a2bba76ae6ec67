/* report.h - counts and the one line per operator, mode and backend. */
#ifndef TESTS_HARNESS_REPORT_H
#define TESTS_HARNESS_REPORT_H

#include <stdbool.h>

enum { REPORT_TEXT = 512, REPORT_REASONS = 128, REPORT_REASON = 120 };

/* Why checks were not made, and how many. */
struct report_reason {
    char text[REPORT_REASON];
    int count;
};

struct report {
    int passed, failed, not_applicable;                /* of the whole run */
    int line_passed, line_failed, line_not_applicable; /* of the current line */
    double line_worst;                                 /* largest error in units of the budget */
    char line_where[REPORT_TEXT];                      /* the case of that error */
    double line_began;                                 /* seconds of processor time */
    struct report_reason reason[REPORT_REASONS];
    int reasons;
    bool silent; /* the self-test provokes failures and wants no text */
    bool times;  /* each line says what processor time it took */
};

void report_begin(struct report *report);
void report_pass(struct report *report);
void report_fail(struct report *report, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* A check that means nothing here: it is counted under its reason, and as nothing that passed. */
void report_not_applicable(struct report *report, const char *reason);
/* Remembers an error that is within its budget. */
void report_error(struct report *report, double worst, const char *where);
void report_end(struct report *report, const char *op, const char *mode, const char *backend);
/* The reasons and their counts. */
void report_reasons(const struct report *report);

#endif
