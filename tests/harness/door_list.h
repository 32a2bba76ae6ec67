/* door_list.h - every public function of ops.def with the table of its door (liger/core/door.h): what it takes.
 *
 * The drivers derive refusals and permitted aliases from the rules, the fuzzer calls that are right. */
#ifndef TESTS_HARNESS_DOOR_LIST_H
#define TESTS_HARNESS_DOOR_LIST_H

#include "liger/core/door.h"

struct door_entry {
    const char *name;        /* "rms_norm_forward" */
    const struct door *door; /* its args struct has door->size bytes; NULL with `call` */
    liger_status (*call)(liger_context *context, const void *args, liger_stream stream); /* NULL: a slot, not public */
    liger_status (*workspace)(liger_context *context, const void *args, size_t *bytes);  /* NULL: it needs none */
};

extern const struct door_entry door_list[];
extern const int door_count;

/* The entry of a public function; NULL if there is none of this name. */
const struct door_entry *door_find(const char *function);
/* The rule of a field; NULL if there is none. */
const struct door_rule *door_rule_of(const struct door *door, const char *field);

#endif
