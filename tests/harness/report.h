/* report.h - counts and the one line per operator, mode and backend. */
#ifndef TESTS_HARNESS_REPORT_H
#define TESTS_HARNESS_REPORT_H

#include <stdbool.h>

enum { REPORT_TEXT = 512 };

struct report {
    int passed, failed;           /* of the whole run */
    int line_passed, line_failed; /* of the current line */
    double line_worst;            /* largest error in units of the budget */
    char line_where[REPORT_TEXT]; /* the case of that error */
    bool silent;                  /* the self-test provokes failures and wants no text */
};

void report_begin(struct report *report);
void report_pass(struct report *report);
void report_fail(struct report *report, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Remembers an error that is within its budget. */
void report_error(struct report *report, double worst, const char *where);
void report_end(struct report *report, const char *op, const char *mode, const char *backend);

#endif
