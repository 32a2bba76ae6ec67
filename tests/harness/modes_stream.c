/* modes_stream.c - every ordinary case on a stream other than the default one: right values, all of the work in that
 * stream's order, and nobody waits for it. */
#include "tests/harness/modes.h"

/* First on a stream that runs: a kernel's first launch may wait for the device until its code is loaded. */
static void stream_case(const struct mode_setup *setup, struct op_run *run, struct report *report) {
    modes_check_on(setup->stream, false, run, report);
    modes_check_on(setup->stream, true, run, report);
}

void mode_stream(const struct mode_setup *setup, const struct op_cases *op, struct report *report) {
    if (setup->stream == NULL) report_fail(report, "no stream could be made");
    else modes_for_each(setup, setup->context, op, report, modes_ordinary, stream_case);
}
