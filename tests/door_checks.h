/* door_checks.h - the tables of the doors, and their reader on a made-up one. */
#ifndef TESTS_DOOR_CHECKS_H
#define TESTS_DOOR_CHECKS_H

#include "tests/harness/report.h"

void door_checks(struct report *report);

#endif
