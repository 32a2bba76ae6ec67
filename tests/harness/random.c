/* random.c - splitmix64 (S. Vigna, public domain algorithm) and sums of uniform numbers. */
#include "tests/harness/random.h"

uint64_t random_bits(struct random_stream *stream) {
    uint64_t z = (stream->state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

struct random_stream random_start(uint64_t seed, uint64_t index) {
    struct random_stream stream = {seed};
    const uint64_t mixed = random_bits(&stream);
    stream.state = mixed ^ (index * 0xd1342543de82ef95u);
    random_bits(&stream);
    return stream;
}

double random_uniform(struct random_stream *stream) { return (double)(random_bits(stream) >> 11) * 0x1p-53; }

double random_normal(struct random_stream *stream) {
    const uint64_t even = 0x0000ffff0000ffffu;
    uint64_t sums =
        0; /* of 16 bits each, in two halves: twelve uniform numbers have variance 1, and 16 bits are plenty */
    for (int word = 0; word < 3; word++) {
        const uint64_t bits = random_bits(stream);
        sums += (bits & even) + (bits >> 16 & even);
    }
    return (double)((sums >> 32) + (sums & 0xffffffffu)) * 0x1p-16 - 6;
}

int64_t random_below(struct random_stream *stream, int64_t bound) {
    return bound <= 0 ? 0 : (int64_t)(random_bits(stream) % (uint64_t)bound);
}

uint64_t random_seed(const char *name) {
    uint64_t hash = 0xcbf29ce484222325u; /* FNV-1a */
    for (; *name; name++) hash = (hash ^ (unsigned char)*name) * 0x100000001b3u;
    return hash;
}
