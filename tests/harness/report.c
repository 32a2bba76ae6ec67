/* report.c - see report.h. */
#include "tests/harness/report.h"

#include <stdarg.h>
#include <stdio.h>

enum { SHOWN_FAILURES = 6 };

void report_begin(struct report *report) {
    report->line_passed = report->line_failed = 0;
    report->line_worst = 0;
    report->line_where[0] = 0;
}

void report_pass(struct report *report) {
    report->passed++;
    report->line_passed++;
}

void report_fail(struct report *report, const char *format, ...) {
    report->failed++;
    report->line_failed++;
    if (report->silent || report->line_failed > SHOWN_FAILURES) return;
    va_list arguments;
    va_start(arguments, format);
    printf("    FAILED ");
    vprintf(format, arguments);
    printf("\n");
    va_end(arguments);
}

void report_error(struct report *report, double worst, const char *where) {
    if (worst <= report->line_worst) return;
    report->line_worst = worst;
    snprintf(report->line_where, sizeof report->line_where, "%s", where);
}

void report_end(struct report *report, const char *op, const char *mode, const char *backend) {
    if (report->silent || report->line_passed + report->line_failed == 0) return;
    printf("%-30s %-12s %-14s %5d passed", op, mode, backend, report->line_passed);
    if (report->line_failed > 0) printf(" %4d FAILED", report->line_failed);
    if (report->line_worst > 0) printf("   worst %.3g of budget: %s", report->line_worst, report->line_where);
    printf("\n");
    fflush(stdout);
}
