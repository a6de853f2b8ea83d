#define _GNU_SOURCE
#include "pool.h"

#include <dlfcn.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>

#include "cpu.h"

#define MAX_THREADS 64
#define SLOTS 8  // a job's slot is used again only this many jobs later
#define SPIN_NANOSECONDS 150000

typedef struct {
    chunk_function work;
    void *job;
    int64_t chunks, threads;
    _Atomic int64_t done;
} slot_t;

// Each thread takes the chunks of a range of its own, which lie one after the other in memory, then those that are left
// of others' ranges. `next`: number of the job << 32 | the range's next chunk.
typedef struct {
    _Atomic uint64_t next;
} __attribute__((aligned(128))) range_t;

static slot_t slots[SLOTS];
static range_t ranges[MAX_THREADS];
static _Atomic int sleepers, wanted = 1;
static int started;  // workers running, the caller not counted; guarded by `one_job`
static pthread_mutex_t one_job = PTHREAD_MUTEX_INITIALIZER, asleep = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t awake = PTHREAD_COND_INITIALIZER;
static pthread_once_t once = PTHREAD_ONCE_INIT;

// torch's own threads, if it computes with GNU OpenMP. Between torch's large operations training's work goes to them:
// after each the idle ones spin for milliseconds, and a second set of threads would fight them for the cores.
typedef void (*openmp_parallel)(void (*)(void *), void *, unsigned, unsigned);
static openmp_parallel torch_threads;

static inline void pause_briefly(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static int64_t nanoseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static int64_t range_start(const slot_t *slot, int64_t thread) { return slot->chunks * thread / slot->threads; }

// Run chunks of the range until none is left, or another job has begun.
static void run_range(uint64_t number, int64_t thread) {
    _Atomic uint64_t *next = &ranges[thread].next;
    uint64_t t = atomic_load(next);
    while (t >> 32 == number) {
        slot_t *slot = &slots[number % SLOTS];
        int64_t chunk = (uint32_t)t;
        chunk_function work = slot->work;
        void *job = slot->job;
        if (chunk >= range_start(slot, thread + 1)) return;
        // Success proves that the job has not changed since its slot was read.
        if (atomic_compare_exchange_weak(next, &t, t + 1)) {
            work(job, chunk);
            atomic_fetch_add(&slot->done, 1);
            t = atomic_load(next);
        }
    }
}

static void run_chunks(uint64_t number, int64_t mine) {
    int64_t threads = slots[number % SLOTS].threads;
    for (int64_t i = 0; i < threads; i++) run_range(number, (mine + i) % threads);
}

static void run_slot(void *pointer) {
    slot_t *slot = pointer;
    for (;;) {
        int64_t chunk = atomic_fetch_add(&slot->done, 1);
        if (chunk >= slot->chunks) return;
        slot->work(slot->job, chunk);
    }
}

static void *worker(void *number) {
    int mine = (int)(intptr_t)number;
    _Atomic uint64_t *next = &ranges[mine].next;
    uint64_t seen = 0;
    for (;;) {
        int64_t until = nanoseconds() + SPIN_NANOSECONDS;
        for (int turns = 1; atomic_load(next) >> 32 == seen; turns++) {
            pause_briefly();
            if (turns % 64) continue;
            if (nanoseconds() < until) continue;
            pthread_mutex_lock(&asleep);
            atomic_fetch_add(&sleepers, 1);
            while (atomic_load(next) >> 32 == seen) pthread_cond_wait(&awake, &asleep);
            atomic_fetch_sub(&sleepers, 1);
            pthread_mutex_unlock(&asleep);
        }
        seen = atomic_load(next) >> 32;
        if (mine < slots[seen % SLOTS].threads) run_chunks(seen, mine);
    }
    return NULL;
}

static void lock_all(void) {
    pthread_mutex_lock(&one_job);
    pthread_mutex_lock(&asleep);
}

static void unlock_all(void) {
    pthread_mutex_unlock(&asleep);
    pthread_mutex_unlock(&one_job);
}

static void forget_threads(void) {  // in a forked child the workers are gone, and torch's too
    started = 0;
    torch_threads = NULL;
    for (int i = 1; i < MAX_THREADS; i++) atomic_store(&ranges[i].next, 0);
    atomic_store(&sleepers, 0);
    pthread_cond_init(&awake, NULL);
    unlock_all();
}

static void prepare(void) {
    pthread_atfork(lock_all, unlock_all, forget_threads);
    torch_threads = (openmp_parallel)dlsym(RTLD_DEFAULT, "GOMP_parallel");
}

static void start_workers(int threads) {
    while (started + 1 < threads) {
        pthread_t thread;
        pthread_attr_t detached;
        pthread_attr_init(&detached);
        pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
        int failed = pthread_create(&thread, &detached, worker, (void *)(intptr_t)(started + 1));
        pthread_attr_destroy(&detached);
        if (failed) return;  // fewer threads: slower, and still right
        started++;
    }
}

EXPORT void nw_set_threads(int threads) {
    atomic_store(&wanted, threads < 1 ? 1 : threads > MAX_THREADS ? MAX_THREADS : threads);
}

EXPORT int nw_threads(void) { return atomic_load(&wanted); }

void pool_run(chunk_function work, void *job, int64_t chunks) {
    int threads = atomic_load(&wanted);
    if (threads == 1 || chunks <= 1) {
        for (int64_t chunk = 0; chunk < chunks; chunk++) work(job, chunk);
        return;
    }
    pthread_once(&once, prepare);
    pthread_mutex_lock(&one_job);
    start_workers(threads);
    uint64_t number = (atomic_load(&ranges[0].next) >> 32) + 1;
    slot_t *slot = &slots[number % SLOTS];
    slot->work = work;
    slot->job = job;
    slot->chunks = chunks;
    slot->threads = threads < started + 1 ? threads : started + 1;
    atomic_store(&slot->done, 0);
    // All that have started, so that none is left with the range of an old job.
    for (int i = started; i >= 0; i--)
        atomic_store(&ranges[i].next, number << 32 | (uint64_t)(i < slot->threads ? range_start(slot, i) : chunks));
    if (atomic_load(&sleepers)) {
        pthread_mutex_lock(&asleep);
        pthread_cond_broadcast(&awake);
        pthread_mutex_unlock(&asleep);
    }
    run_chunks(number, 0);
    for (int turns = 0; atomic_load(&slot->done) < chunks; turns++) {
        if (turns < 2000) pause_briefly();
        else sched_yield();
    }
    pthread_mutex_unlock(&one_job);
}

void pool_run_on_torch(chunk_function work, void *job, int64_t chunks, int threads) {
    if (threads <= 1 || chunks <= 1) {
        for (int64_t chunk = 0; chunk < chunks; chunk++) work(job, chunk);
        return;
    }
    pthread_once(&once, prepare);
    if (!torch_threads) {
        pool_run(work, job, chunks);
        return;
    }
    slot_t shared = {work, job, chunks, threads, 0};
    torch_threads(run_slot, &shared, (unsigned)threads, 0);
}

// ---- scratch memory

typedef struct {
    void *held[SCRATCH_KINDS];
    size_t size[SCRATCH_KINDS];
} thread_memory;

static pthread_key_t memory_key;
static pthread_once_t memory_once = PTHREAD_ONCE_INIT;
static _Thread_local thread_memory *memory;

static void free_memory(void *pointer) {
    thread_memory *mine = pointer;
    for (int kind = 0; kind < SCRATCH_KINDS; kind++) free(mine->held[kind]);
    free(mine);
}

static void make_key(void) { pthread_key_create(&memory_key, free_memory); }

void *scratch(scratch_kind kind, size_t bytes) {
    if (!memory) {
        pthread_once(&memory_once, make_key);
        memory = calloc(1, sizeof *memory);
        if (!memory || pthread_setspecific(memory_key, memory)) {
            free(memory);
            return memory = NULL;
        }
    }
    if (memory->size[kind] < bytes || !memory->held[kind]) {
        free(memory->held[kind]);
        memory->held[kind] = NULL;
        memory->size[kind] = 0;
        if (posix_memalign(&memory->held[kind], 64, bytes + 64)) return memory->held[kind] = NULL;
        memory->size[kind] = bytes;
    }
    return memory->held[kind];
}
