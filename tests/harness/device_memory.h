/* device_memory.h - memory where a context computes. On the CPU that is the host's own. */
#ifndef TESTS_HARNESS_DEVICE_MEMORY_H
#define TESTS_HARNESS_DEVICE_MEMORY_H

#include <stdbool.h>
#include <stddef.h>

#include "liger/core/context.h"

bool device_is_host(const liger_context *context);
/* 256-byte aligned; NULL if there is none. */
void *device_allocate(const liger_context *context, size_t bytes);
void device_release(const liger_context *context, void *memory);
bool device_upload(const liger_context *context, void *to, const void *from, size_t bytes);
bool device_download(const liger_context *context, void *to, const void *from, size_t bytes);
/* Waits for all work; NULL, or what went wrong. */
const char *device_synchronize(const liger_context *context);

#endif
