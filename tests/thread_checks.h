/* thread_checks.h - what a thread and a process bring along: their float mode, and the forks behind them. */
#ifndef TESTS_THREAD_CHECKS_H
#define TESTS_THREAD_CHECKS_H

#include "tests/harness/report.h"

void thread_checks(struct report *report);

#endif
