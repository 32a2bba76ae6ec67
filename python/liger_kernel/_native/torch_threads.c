/* torch_threads.c - CPU kernels on the threads that torch already has.
 *
 * Torch's OpenMP team spins for milliseconds after each of its operators. A second pool would fight with it for the
 * cores, so under torch the library borrows the team: the OpenMP runtime that is already loaded is found and called
 * through its C interface, never linked and never loaded anew. torch.set_num_threads is obeyed, because the number of
 * threads is asked at each call. Without such a runtime the library's own pool serves.
 *
 * A team does not survive fork(): in the child everything runs on the calling thread. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <link.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "binding.h"

static struct {
    void (*parallel)(void (*work)(void *), void *data, unsigned threads, unsigned flags); /* GOMP_parallel */
    int (*thread_number)(void);
    int (*team_size)(void);
    int (*max_threads)(void);
    int (*torch_threads)(void); /* at::get_num_threads: also right on a thread that torch has not seen yet */
    char path[1024];
} team;
static volatile int forked; /* written between fork and the child's first instruction: there is one thread then */

static void after_fork(void) { forked = 1; }

/* From the start, because a team dies in a fork that comes before our first call, too. What cannot be watched is not lent. */
__attribute__((constructor)) static void watch_forks(void) { forked = pthread_atfork(NULL, NULL, after_fork) != 0; }

struct loop {
    int64_t tasks;
    liger_task task;
    void *argument;
};

/* Every member of the team takes each n-th task. */
static void take_share(void *data) {
    const struct loop *loop = data;
    const int64_t step = team.team_size();
    for (int64_t i = team.thread_number(); i < loop->tasks; i += step) loop->task(loop->argument, i);
}

static int32_t team_thread_count(void *user) {
    (void)user;
    if (forked) return 1;
    const int threads = team.torch_threads ? team.torch_threads() : team.max_threads();
    return threads > 1 ? threads : 1;
}

static void team_parallel_for(void *user, int64_t tasks, liger_task task, void *argument) {
    const int64_t threads = team_thread_count(user);
    if (threads == 1 || tasks == 1) {
        for (int64_t i = 0; i < tasks; i++) task(argument, i);
        return;
    }
    struct loop loop = {.tasks = tasks, .task = task, .argument = argument};
    team.parallel(take_share, &loop, (unsigned)(tasks < threads ? tasks : threads), 0);
}

struct found {
    char openmp[1024]; /* torch's own copy, or else the first */
    char torch[1024];
};

static int look_at(struct dl_phdr_info *info, size_t size, void *data) {
    (void)size;
    struct found *found = data;
    const char *path = info->dlpi_name;
    const char *file = strrchr(path, '/');
    file = file ? file + 1 : path;
    if (strlen(path) >= sizeof found->openmp) return 0;
    if (strncmp(file, "libgomp", 7) == 0 && (!*found->openmp || strstr(path, "torch") != NULL))
        strcpy(found->openmp, path);
    if (strncmp(file, "libtorch_cpu.so", 15) == 0) strcpy(found->torch, path);
    return 0;
}

static void find_team(void) {
    struct found found = {0};
    dl_iterate_phdr(look_at, &found);
    if (!*found.openmp || !*found.torch) return; /* no torch, or not on libgomp */
    void *openmp = dlopen(found.openmp, RTLD_NOLOAD | RTLD_LAZY);
    void *torch = dlopen(found.torch, RTLD_NOLOAD | RTLD_LAZY);
    if (openmp == NULL) return;
    *(void **)&team.thread_number = dlsym(openmp, "omp_get_thread_num");
    *(void **)&team.team_size = dlsym(openmp, "omp_get_num_threads");
    *(void **)&team.max_threads = dlsym(openmp, "omp_get_max_threads");
    if (torch != NULL) *(void **)&team.torch_threads = dlsym(torch, "_ZN2at15get_num_threadsEv");
    void *parallel = dlsym(openmp, "GOMP_parallel");
    if (!team.thread_number || !team.team_size || !team.max_threads || !parallel) return;
    *(void **)&team.parallel = parallel;
    strcpy(team.path, found.openmp);
}

/* torch's libraries are loaded, but not for everybody to see. */
static int look_for_c10(struct dl_phdr_info *info, size_t size, void *data) {
    (void)size;
    const char *file = strrchr(info->dlpi_name, '/');
    if (file == NULL || strncmp(file, "/libc10.so", 10) != 0) return 0;
    *(void **)data = dlopen(info->dlpi_name, RTLD_NOLOAD | RTLD_LAZY);
    return 1;
}

void *torch_variable(const char *name) {
    void *library = NULL;
    dl_iterate_phdr(look_for_c10, &library);
    return library == NULL ? NULL : dlsym(library, name);
}

void torch_threads_lend(liger_context_options *options) {
    if (team.parallel == NULL) find_team();
    if (team.parallel == NULL) return;
    options->parallel_for = team_parallel_for;
    options->thread_count = team_thread_count;
}

const char *torch_threads_describe(void) {
    static char text[1200];
    if (team.parallel == NULL) return "the library's own pool (torch's OpenMP team was not found)";
    snprintf(text, sizeof text, "torch's OpenMP team, %d now (%s)", (int)team_thread_count(NULL), team.path);
    return text;
}
