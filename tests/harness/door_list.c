/* door_list.c - see door_list.h. An args struct goes by its address: here its type has no name. */
#include "tests/harness/door_list.h"

#include <string.h>

/* Weak, because a kernel slot may have no public function, and a function no workspace. */
#define WEAK __attribute__((weak))
#define FUNCTION(function)                                                                                             \
    extern const struct door function##_door WEAK;                                                                     \
    liger_status liger_##function(liger_context *, const void *, liger_stream) WEAK;                                   \
    liger_status liger_##function##_workspace(liger_context *, const void *, size_t *) WEAK;
#define LIGER_OP(op, room) FUNCTION(op##_forward) FUNCTION(op##_backward)
#define LIGER_COMPOSITE(op, room) FUNCTION(op##_forward) FUNCTION(op##_backward)
#define LIGER_KERNEL(kernel, room) FUNCTION(kernel)
#include "liger/ops/ops.def"
#undef FUNCTION

#define FUNCTION(function) {#function, &function##_door, liger_##function, liger_##function##_workspace},
const struct door_entry door_list[] = {
#include "liger/ops/ops.def"
};
const int door_count = sizeof door_list / sizeof door_list[0];

const struct door_entry *door_find(const char *function) {
    for (int k = 0; k < door_count; k++)
        if (door_list[k].call != NULL && strcmp(door_list[k].name, function) == 0) return &door_list[k];
    return NULL;
}

const struct door_rule *door_rule_of(const struct door *door, const char *field) {
    for (int i = 0; i < door->count; i++)
        if (door->rules[i].kind != DOOR_CHECK && strcmp(door_name(&door->rules[i]), field) == 0) return &door->rules[i];
    return NULL;
}
