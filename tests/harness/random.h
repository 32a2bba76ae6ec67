/* random.h - numbers for tests: splitmix64, the same on every machine and for every run. */
#ifndef TESTS_HARNESS_RANDOM_H
#define TESTS_HARNESS_RANDOM_H

#include <stdint.h>

struct random_stream {
    uint64_t state;
};

/* A stream of its own for each (seed, index). */
struct random_stream random_start(uint64_t seed, uint64_t index);
uint64_t random_bits(struct random_stream *stream);
double random_uniform(struct random_stream *stream); /* [0, 1) */
double random_normal(struct random_stream *stream);
int64_t random_below(struct random_stream *stream, int64_t bound); /* [0, bound); 0 if bound <= 0 */

/* A seed from a name. */
uint64_t random_seed(const char *name);

#endif
