/* host_memory.c - huge pages for large results on the CPU.
 *
 * Large host memory straight from the system has page faults that cost more than the arithmetic that fills it: pages of 2 MB
 * have 512 times fewer, and a SwiGLU of 90 MB takes half the time. Not so in a virtual machine whose balloon reports free
 * pages: there the hypervisor takes back what has been free for two seconds, in pieces of just that size, and gives it again
 * at 1.2 s per GB, against .22 s for small pages (measured). What is as large as the gradient of a head is made once per
 * step and has lain free for long; what is smaller comes and goes within a step. */
#define _DEFAULT_SOURCE /* madvise */
#include <dirent.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "torch_functions.h"

enum { PAGE = 2 << 20, LEAST = 4 << 20, MOST_IF_TAKEN_BACK = 128 << 20 };

/* Reads the first bytes of a small file; answers whether there are `size` of them. */
static int read_start(const char *folder, const char *device, const char *file, char *text, size_t size) {
    char path[512];
    const int length = snprintf(path, sizeof path, "%s/%s/%s", folder, device, file);
    FILE *stream = length < (int)sizeof path ? fopen(path, "r") : NULL;
    const size_t got = stream == NULL ? 0 : fread(text, 1, size, stream);
    if (stream != NULL) (void)fclose(stream);
    return got == size;
}

/* virtio 1.2, 5.5: device 5 is the balloon, its feature 5 the reporting of free pages. Features are a text of 0 and 1. */
enum { DEVICE_TEXT = 6, REPORTING = 5 };
static int reports_free_pages(const char *folder, const char *device) {
    char number[DEVICE_TEXT], features[REPORTING + 1];
    return read_start(folder, device, "device", number, sizeof number) && memcmp(number, "0x0005", DEVICE_TEXT) == 0 &&
           read_start(folder, device, "features", features, sizeof features) && features[REPORTING] == '1';
}

int host_memory_is_taken_back(const char *virtio_devices) {
    DIR *folder = opendir(virtio_devices);
    int found = 0;
    for (struct dirent *entry; folder != NULL && !found && (entry = readdir(folder)) != NULL;)
        found = reports_free_pages(virtio_devices, entry->d_name);
    if (folder != NULL) (void)closedir(folder);
    return found;
}

static size_t most_bytes(void) {
    static size_t most;
    if (most == 0) most = host_memory_is_taken_back("/sys/bus/virtio/devices") ? MOST_IF_TAKEN_BACK : SIZE_MAX;
    return most;
}

/* A hint: whether it was taken makes no difference to anything but time. */
void host_memory_ask_huge(void *data, size_t bytes) {
    if (data == NULL || bytes < LEAST || bytes > most_bytes()) return;
    const uintptr_t begin = ((uintptr_t)data + PAGE - 1) / PAGE * PAGE, end = ((uintptr_t)data + bytes) / PAGE * PAGE;
    if (begin < end) (void)madvise((void *)begin, end - begin, MADV_HUGEPAGE);
}
