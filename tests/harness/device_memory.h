/* device_memory.h - memory and streams where a context computes. On the CPU that is the host's own memory, and no stream. */
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
bool device_fill(const liger_context *context, void *memory, int byte, size_t bytes);
/* Waits for all work; NULL, or what went wrong. */
const char *device_synchronize(const liger_context *context);

/* A stream that neither waits for the default one nor is waited for by it. */
struct device_stream;
struct device_stream *device_stream_open(const liger_context *context); /* NULL: the CPU, or it cannot be made */
void device_stream_close(struct device_stream *stream);
liger_stream device_stream_handle(const struct device_stream *stream); /* of NULL: NULL */
/* From one location on the device to another, in the stream's order. */
bool device_stream_copy(struct device_stream *stream, void *to, const void *from, size_t bytes);
/* What is queued after it does not begin until the release, or until a few seconds are over: then somebody who must not
 * has waited for the stream, and the hold has given up. */
bool device_stream_hold(struct device_stream *stream);
bool device_stream_gave_up(const struct device_stream *stream);
/* Ends the hold and waits for the stream alone; NULL, or what went wrong. */
const char *device_stream_release(struct device_stream *stream);

#endif
