// A file that is cut short while it is mapped: reading its missing pages raises SIGBUS, which kills a process without a
// word. The handler here writes a prepared line first. Everything else goes to the handler that was there before.
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cpu.h"

#define MOST_MAPPINGS 1024  // further ones are not watched

typedef struct {
    _Atomic uintptr_t begin;  // 0: the slot is free
    uintptr_t end;
    const char *line;
} mapping;

static mapping mappings[MOST_MAPPINGS];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct sigaction before;
static int installed;

static void pass_on(int signal, siginfo_t *info, void *context) {
    if (before.sa_flags & SA_SIGINFO)
        before.sa_sigaction(signal, info, context);
    else if (before.sa_handler != SIG_DFL && before.sa_handler != SIG_IGN)
        before.sa_handler(signal);
    else
        sigaction(signal, &before, NULL);  // the instruction is repeated, and fails for good
}

static void on_bus_error(int signal, siginfo_t *info, void *context) {
    const uintptr_t address = (uintptr_t)info->si_addr;
    for (int slot = 0; slot < MOST_MAPPINGS; slot++) {
        const uintptr_t begin = atomic_load_explicit(&mappings[slot].begin, memory_order_acquire);
        if (begin && begin <= address && address < mappings[slot].end) {
            const char *line = mappings[slot].line;
            const ssize_t written = write(STDERR_FILENO, line, strlen(line));
            (void)written;
            _exit(1);
        }
    }
    pass_on(signal, info, context);
}

// Watch `size` bytes from `start`; `line` is what to say. Returns a slot for nw_unwatch_mapping, or -1.
EXPORT int nw_watch_mapping(const void *start, int64_t size, const char *line) {
    char *copy = strdup(line);
    if (!copy)
        return -1;
    pthread_mutex_lock(&lock);
    if (!installed) {
        struct sigaction action = {.sa_sigaction = on_bus_error, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER};
        sigemptyset(&action.sa_mask);
        installed = !sigaction(SIGBUS, &action, &before);
    }
    int slot = 0;
    while (slot < MOST_MAPPINGS && atomic_load(&mappings[slot].begin))
        slot++;
    if (slot < MOST_MAPPINGS) {
        mappings[slot].end = (uintptr_t)start + (uintptr_t)size;
        mappings[slot].line = copy;
        atomic_store_explicit(&mappings[slot].begin, (uintptr_t)start, memory_order_release);
    }
    pthread_mutex_unlock(&lock);
    if (slot == MOST_MAPPINGS)
        free(copy);
    return slot < MOST_MAPPINGS ? slot : -1;
}

// The line is kept: a handler in another thread may be reading it.
EXPORT void nw_unwatch_mapping(int slot) {
    if (slot >= 0)
        atomic_store_explicit(&mappings[slot].begin, 0, memory_order_release);
}
