/* report.c - see report.h. */
#define _XOPEN_SOURCE 500
#include "tests/harness/report.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>

enum { SHOWN_FAILURES = 6 };

/* Of processor time, threads and child processes too: it means something on a machine that has other work as well. */
static double seconds(void) {
    static const int who[] = {RUSAGE_SELF, RUSAGE_CHILDREN};
    double total = 0;
    for (int k = 0; k < 2; k++) {
        struct rusage usage;
        getrusage(who[k], &usage);
        total += (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec);
        total += 1e-6 * (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
    }
    return total;
}

void report_begin(struct report *report) {
    report->line_passed = report->line_failed = report->line_not_applicable = 0;
    report->line_worst = 0;
    report->line_where[0] = 0;
    report->line_began = seconds();
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

void report_not_applicable(struct report *report, const char *reason) {
    int k = 0;
    while (k < report->reasons && strncmp(report->reason[k].text, reason, REPORT_REASON - 1) != 0) k++;
    if (k == REPORT_REASONS) {
        report_fail(report, "there are more than %d reasons why a check does not apply", REPORT_REASONS);
        return;
    }
    if (k == report->reasons) {
        report->reasons++;
        snprintf(report->reason[k].text, REPORT_REASON, "%s", reason);
    }
    report->reason[k].count++;
    report->not_applicable++;
    report->line_not_applicable++;
}

void report_error(struct report *report, double worst, const char *where) {
    if (worst <= report->line_worst) return;
    report->line_worst = worst;
    snprintf(report->line_where, sizeof report->line_where, "%s", where);
}

void report_end(struct report *report, const char *op, const char *mode, const char *backend) {
    if (report->silent || report->line_passed + report->line_failed + report->line_not_applicable == 0) return;
    printf("%-30s %-12s %-14s %5d passed", op, mode, backend, report->line_passed);
    if (report->line_failed > 0) printf(" %4d FAILED", report->line_failed);
    if (report->line_not_applicable > 0) printf(" %4d n/a", report->line_not_applicable);
    if (report->times) printf(" %7.2f s", seconds() - report->line_began);
    if (report->line_worst > 0) printf("   worst %.3g of budget: %s", report->line_worst, report->line_where);
    printf("\n");
    fflush(stdout);
}

void report_reasons(const struct report *report) {
    if (report->not_applicable == 0) return;
    printf("%d checks did not apply:\n", report->not_applicable);
    for (int k = 0; k < report->reasons; k++) printf("%7d  %s\n", report->reason[k].count, report->reason[k].text);
}
