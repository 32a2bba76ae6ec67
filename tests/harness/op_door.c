/* op_door.c - see op_door.h. */
#include "tests/harness/op_door.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ARGS_BYTES = 8192, ABSENT = -1 };

static int tensor_named(const struct op_cases *op, const struct tensor_spec *spec, const char *name) {
    for (int i = 0; i < op->tensor_count; i++)
        if (strcmp(spec[i].name, name) == 0) return i;
    return ABSENT;
}

static bool is_scalar(const struct door_rule *rule, const char *name) {
    const bool number = rule->kind == DOOR_FLOAT || rule->kind == DOOR_INT32 || rule->kind == DOOR_INT64;
    return number && name != NULL && strcmp(door_name(rule), name) == 0;
}

/* Names are the same in every case. */
static void names_of(const struct op_cases *op, struct tensor_spec *spec) {
    memset(spec, 0, OP_MAX_TENSORS * sizeof *spec);
    op->describe(&op->cases[0], spec);
}

static void has_numbers(const struct op_door *door) {
    const struct door *table = door->entry->door;
    for (int k = 0; k < OP_MAX_SCALARS; k++) {
        bool found = door->scalar[k] == NULL;
        for (int i = 0; i < table->count; i++) found |= is_scalar(&table->rules[i], door->scalar[k]);
        if (found) continue;
        fprintf(stderr, "%s: no number is called %s\n", door->op->name, door->scalar[k]);
        abort();
    }
}

static void find(struct op_door *door) {
    struct tensor_spec spec[OP_MAX_TENSORS];
    names_of(door->op, spec);
    door->entry = door_find(door->op->name);
    if (door->entry == NULL || door->entry->door == NULL || door->entry->door->size > ARGS_BYTES / 2) {
        fprintf(stderr, "%s: no door to call through\n", door->op->name);
        abort();
    }
    for (int i = 0; i < door->entry->door->count; i++) {
        const struct door_rule *rule = &door->entry->door->rules[i];
        if (rule->kind == DOOR_TENSOR) door->tensor[rule->at] = (int8_t)tensor_named(door->op, spec, door_name(rule));
    }
    has_numbers(door);
}

static void set_number(const struct door_rule *rule, double value, unsigned char *field) {
    const float real = (float)value;
    const int64_t wide = (int64_t)(rule->kind == DOOR_FLOAT ? 0 : value);
    const int32_t narrow = (int32_t)wide;
    memset(field, 0, rule->bytes);
    if (rule->kind == DOOR_FLOAT && rule->bytes == sizeof value) memcpy(field, &value, sizeof value);
    else if (rule->kind == DOOR_FLOAT) memcpy(field, &real, sizeof real);
    else if (rule->kind == DOOR_INT64) memcpy(field, &wide, sizeof wide);
    else memcpy(field, &narrow, sizeof narrow);
}

/* `args` is large enough for a struct that claims to be longer than it is. */
static const void *fill(struct op_door *door, const struct op_call *call, unsigned char *args) {
    if (door->entry == NULL) find(door);
    const struct door *table = door->entry->door;
    memset(args, 0, ARGS_BYTES);
    if (door->options) door->options(&call->c, args);
    for (int i = 0; i < table->count; i++) {
        const struct door_rule *rule = &table->rules[i];
        unsigned char *field = args + rule->offset;
        if (rule->kind == DOOR_TENSOR && door->tensor[rule->at] != ABSENT)
            memcpy(field, &call->t[door->tensor[rule->at]], sizeof(liger_tensor));
        if (rule->kind == DOOR_WORKSPACE) {
            memcpy(field, &call->workspace, sizeof call->workspace);
            memcpy(field + sizeof call->workspace, &call->workspace_bytes, sizeof call->workspace_bytes);
        }
        for (int k = 0; k < OP_MAX_SCALARS; k++)
            if (is_scalar(rule, door->scalar[k])) set_number(rule, call->c.scalar[k], field);
        if (rule == call->number) set_number(rule, call->number_is, field);
    }
    const size_t size = call->claims_size ? call->claimed_size : table->size;
    memcpy(args, &size, sizeof size);
    return args;
}

liger_status op_door_call(struct op_door *door, liger_context *context, const struct op_call *call,
                          liger_stream stream) {
    _Alignas(16) unsigned char args[ARGS_BYTES];
    fill(door, call, args);
    if (call->args_to != NULL) memcpy(call->args_to, args, door->entry->door->size);
    return call->args_to != NULL ? LIGER_OK : door->entry->call(context, args, stream);
}

liger_status op_door_workspace(struct op_door *door, liger_context *context, const struct op_call *call,
                               size_t *bytes) {
    _Alignas(16) unsigned char args[ARGS_BYTES];
    fill(door, call, args);
    return door->entry->workspace(context, args, bytes);
}

int op_door_aliases(const struct op_cases *op, struct op_alias *aliases) {
    const struct door_entry *entry = door_find(op->name);
    struct tensor_spec spec[OP_MAX_TENSORS];
    int count = 0;
    if (entry == NULL) {
        for (; count < op->alias_count; count++) aliases[count] = op->aliases[count];
        return count;
    }
    names_of(op, spec);
    for (int i = 0; i < entry->door->count; i++)
        for (int k = 0; k < entry->door->count; k++) {
            const struct door_rule *out = &entry->door->rules[i], *in = &entry->door->rules[k];
            if (out->kind != DOOR_TENSOR || in->kind != DOOR_TENSOR || !(out->may_be >> in->at & 1)) continue;
            const struct op_alias alias = {tensor_named(op, spec, door_name(out)),
                                           tensor_named(op, spec, door_name(in))};
            if (alias.out != ABSENT && alias.in != ABSENT && count < OP_MOST_ALIASES) aliases[count++] = alias;
        }
    return count;
}
