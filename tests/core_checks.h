/* core_checks.h - what of the library belongs to no operator: views that overlap, contexts, the pool's threads. */
#ifndef TESTS_CORE_CHECKS_H
#define TESTS_CORE_CHECKS_H

#include "tests/harness/report.h"

void core_checks(struct report *report);

#endif
