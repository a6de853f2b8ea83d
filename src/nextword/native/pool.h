// A few threads that share out the chunks of one job at a time.
//
// Each thread takes chunks from a range of its own (so that it reads memory in order), then from what is left of the
// others' ranges: a thread that the system takes off its core holds up its own chunk and nothing else. Idle threads
// spin briefly, because the next job of a decoding step comes within microseconds, and then sleep.
#pragma once
#include <stddef.h>
#include <stdint.h>

typedef void (*chunk_function)(void *job, int64_t chunk);

// Call work(job, chunk) for every chunk, on several threads, and return when all are done. May be called from any
// thread; callers take turns.
void pool_run(chunk_function work, void *job, int64_t chunks);

// The same on `threads` of torch's own threads (on the pool's where torch does not use GNU OpenMP): training alternates
// with torch's operations, on threads that the pool knows nothing of.
void pool_run_on_torch(chunk_function work, void *job, int64_t chunks, int threads);

// How many threads pool_run uses at most.
int nw_threads(void);

// Memory that this thread keeps for its next call: grows, is never zeroed, and is freed when the thread ends.
// NULL when memory is short.
typedef enum {
    FOR_ACTIVATIONS, FOR_ATTENTION, FOR_PARTIALS, FOR_LAYERS, FOR_EXPERTS, FOR_FORWARD, FOR_SAMPLING, FOR_WEIGHTS,
    SCRATCH_KINDS
} scratch_kind;
void *scratch(scratch_kind kind, size_t bytes);
