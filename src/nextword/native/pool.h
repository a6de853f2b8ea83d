// A few threads that share out the chunks of one job at a time.
//
// Chunks are handed out by an atomic ticket (generation in the upper half, next chunk in the lower), so a thread
// that the system takes off its core holds up its own chunk and nothing else. Idle threads spin briefly,
// because the next job of a decoding step comes within microseconds, and then sleep.
#pragma once
#include <stdint.h>

typedef void (*chunk_function)(void *job, int64_t chunk);

void pool_run(chunk_function work, void *job, int64_t chunks);
void nw_set_threads(int threads);
int nw_threads(void);
