/* parallel.c - chunks on the host's threads, or on a pool of our own.
 *
 * Our workers sleep between loops (a worker that spins takes the core from whoever works next) and are not pinned. Signals
 * are the application's: it chose the threads that take them, and ours are not among them. A pool runs one loop at a time:
 * a second caller meanwhile runs its chunks itself. After fork() the child has no workers, whatever they did in its
 * parent at that moment, so it starts a new pool. */
#define _GNU_SOURCE
#include "liger/cpu/parallel.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <unistd.h>

#include "liger/core/context_state.h"
#include "liger/cpu/cpu_state.h"
#include "liger/cpu/float_mode.h"

/* ---- the loop as tasks ------------------------------------------------------------------------------------------ */

struct loop {
    liger_chunk chunk;
    void *argument;
    int64_t n, grain;
    uint64_t mode; /* float_mode() of the caller */
};

static void run_chunk(void *argument, int64_t index) {
    const struct loop *loop = argument;
    const int64_t begin = index * loop->grain;
    const int64_t end = begin + loop->grain < loop->n ? begin + loop->grain : loop->n;
    const uint64_t own_mode = float_mode();
    if (own_mode != loop->mode) set_float_mode(loop->mode);
    loop->chunk(loop->argument, begin, end);
    if (own_mode != loop->mode) set_float_mode(own_mode);
}

/* ---- our own pool ----------------------------------------------------------------------------------------------- */

struct cpu_pool {
    pthread_mutex_t owner; /* held by the caller whose loop runs */
    pthread_mutex_t lock;  /* guards what follows */
    pthread_cond_t start, finish;
    uint64_t generation;
    bool closing;
    int32_t workers, working;
    liger_task task;
    void *argument;
    int64_t tasks;
    atomic_int_fast64_t next;
    uint64_t forks; /* process_forks when it was opened */
    pthread_t thread[];
};

/* How many forks lie between this process and the one that loaded the library. A pool of another count has its workers in
 * an ancestor; process numbers would not tell, as they come round again. */
static uint64_t process_forks;

static void count_fork(void) { process_forks++; } /* in the child, where there is one thread */

__attribute__((constructor)) static void watch_forks(void) { pthread_atfork(NULL, NULL, count_fork); }

static void drain(struct cpu_pool *pool, liger_task task, void *argument, int64_t tasks) {
    for (int64_t i; (i = atomic_fetch_add(&pool->next, 1)) < tasks;) task(argument, i);
}

static void *worker(void *argument) {
    struct cpu_pool *pool = argument;
    uint64_t seen = 0;
    pthread_mutex_lock(&pool->lock);
    for (;;) {
        while (pool->generation == seen && !pool->closing) pthread_cond_wait(&pool->start, &pool->lock);
        if (pool->closing) break;
        seen = pool->generation;
        const liger_task task = pool->task;
        void *const task_argument = pool->argument;
        const int64_t tasks = pool->tasks;
        pthread_mutex_unlock(&pool->lock);
        drain(pool, task, task_argument, tasks);
        pthread_mutex_lock(&pool->lock);
        if (--pool->working == 0) pthread_cond_signal(&pool->finish);
    }
    pthread_mutex_unlock(&pool->lock);
    return NULL;
}

int32_t cpu_pool_default_threads(void) {
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) return CPU_COUNT(&allowed);
    const long online = sysconf(_SC_NPROCESSORS_ONLN);
    return online > 0 ? (int32_t)online : 1;
}

/* A thread begins with the mask of the one that makes it. Faults of the worker itself stay deliverable: blocked, they end
 * the process without the application's handler (Python's faulthandler, say) having seen them. */
static void start_workers(struct cpu_pool *pool, int32_t workers) {
    static const int faults[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS};
    sigset_t blocked, before;
    sigfillset(&blocked);
    for (size_t i = 0; i < sizeof faults / sizeof faults[0]; i++) sigdelset(&blocked, faults[i]);
    const bool masked = pthread_sigmask(SIG_SETMASK, &blocked, &before) == 0;
    while (pool->workers < workers && pthread_create(&pool->thread[pool->workers], NULL, worker, pool) == 0)
        pool->workers++;
    if (masked) pthread_sigmask(SIG_SETMASK, &before, NULL);
}

static struct cpu_pool *pool_open(int32_t threads) {
    struct cpu_pool *pool = calloc(1, sizeof *pool + (size_t)(threads - 1) * sizeof pool->thread[0]);
    if (pool == NULL) return NULL;
    pthread_mutex_init(&pool->owner, NULL);
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->start, NULL);
    pthread_cond_init(&pool->finish, NULL);
    pool->forks = process_forks;
    start_workers(pool, threads - 1);
    return pool;
}

void cpu_pool_close(struct cpu_pool *pool) {
    if (pool == NULL || pool->forks != process_forks)
        return; /* a parent's pool: its workers are not here to be joined */
    pthread_mutex_lock(&pool->lock);
    pool->closing = true;
    pthread_cond_broadcast(&pool->start);
    pthread_mutex_unlock(&pool->lock);
    for (int32_t i = 0; i < pool->workers; i++) pthread_join(pool->thread[i], NULL);
    pthread_mutex_destroy(&pool->owner);
    pthread_mutex_destroy(&pool->lock);
    pthread_cond_destroy(&pool->start);
    pthread_cond_destroy(&pool->finish);
    free(pool);
}

/* The pool of a context, made at first use; two threads may race for it, and in a forked child it is made anew. */
static struct cpu_pool *pool_of(liger_context *context) {
    struct cpu_pool *pool = __atomic_load_n(&context->cpu->pool, __ATOMIC_ACQUIRE);
    if (pool != NULL && pool->forks == process_forks) return pool;
    struct cpu_pool *made = pool_open(context->threads);
    if (made == NULL) return NULL;
    if (__atomic_compare_exchange_n(&context->cpu->pool, &pool, made, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
        return made;
    cpu_pool_close(made);
    return pool;
}

static void pool_run(struct cpu_pool *pool, int64_t tasks, liger_task task, void *argument) {
    pthread_mutex_lock(&pool->lock);
    pool->task = task;
    pool->argument = argument;
    pool->tasks = tasks;
    pool->working = pool->workers;
    atomic_store(&pool->next, 0);
    pool->generation++;
    pthread_cond_broadcast(&pool->start);
    pthread_mutex_unlock(&pool->lock);
    drain(pool, task, argument, tasks);
    pthread_mutex_lock(&pool->lock);
    while (pool->working > 0) pthread_cond_wait(&pool->finish, &pool->lock);
    pthread_mutex_unlock(&pool->lock);
}

/* ---- the doors -------------------------------------------------------------------------------------------------- */

int32_t liger_thread_count(liger_context *context) {
    const int32_t count = context->thread_count ? context->thread_count(context->user) : context->threads;
    return count > 1 ? count : 1;
}

static void run_here(struct loop *loop, int64_t tasks) {
    for (int64_t i = 0; i < tasks; i++) run_chunk(loop, i);
}

void liger_parallel_for(liger_context *context, int64_t n, int64_t grain, liger_chunk chunk, void *argument) {
    if (n <= 0) return;
    struct loop loop = {
        .chunk = chunk, .argument = argument, .n = n, .grain = grain < 1 ? 1 : grain, .mode = float_mode()};
    const int64_t tasks = (n + loop.grain - 1) / loop.grain;
    if (tasks == 1 || liger_thread_count(context) == 1) {
        run_here(&loop, tasks);
        return;
    }
    if (context->parallel_for) {
        context->parallel_for(context->user, tasks, run_chunk, &loop);
        return;
    }
    struct cpu_pool *pool = pool_of(context);
    if (pool == NULL || pthread_mutex_trylock(&pool->owner) != 0) {
        run_here(&loop, tasks);
        return;
    }
    pool_run(pool, tasks, run_chunk, &loop);
    pthread_mutex_unlock(&pool->owner);
}
