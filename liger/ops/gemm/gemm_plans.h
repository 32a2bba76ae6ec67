/* gemm_plans.h - which place a product has in a table of plans. Internal.
 *
 * A run of packed or padded sequences brings another number of rows with every step, and a linear loss some seven products
 * with each. A place is found in constant time, however many there are; when all are taken the oldest product gives its up,
 * which changes no bits: a plan made again is made from the same key. */
#ifndef LIGER_OPS_GEMM_PLANS_H
#define LIGER_OPS_GEMM_PLANS_H

#include <stdint.h>
#include <string.h>

/* Everything that the choice of an algorithm may depend on. No padding: it is compared and hashed as words. */
struct plan_key {
    int64_t m, n, k, lda, ldb, ldc;
    int32_t dtype, c_dtype, transpose_a, transpose_b, accumulate, alignment_a, alignment_b, alignment_c, workspace,
        reserved;
};

/* 2000 numbers of rows. With what cuBLASLt keeps for each of its four descriptions a place takes some 720 bytes once it is
 * used: 12 MB of the host's memory for all of them. */
enum { PLANS = 16384, NO_PLAN = -1 };

/* All zero: empty. */
struct plan_table {
    int count, oldest;
    int32_t first[PLANS], following[PLANS]; /* chains of places: 1 + the place, 0 ends one */
    struct plan_key key[PLANS];
};

static inline int32_t *plan_chain(struct plan_table *table, const struct plan_key *key) {
    uint64_t words[sizeof *key / sizeof(uint64_t)], hash = 0;
    memcpy(words, key, sizeof words);
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        hash = (hash ^ words[i]) * 0x9e3779b97f4a7c15u;
        hash ^= hash >> 32;
    }
    return &table->first[hash % PLANS];
}

static inline int plan_find(struct plan_table *table, const struct plan_key *key) {
    for (int32_t at = *plan_chain(table, key); at > 0; at = table->following[at - 1])
        if (memcmp(&table->key[at - 1], key, sizeof *key) == 0) return at - 1;
    return NO_PLAN;
}

/* A place for a key that has none. Whose it was, if it was anybody's, has none from now on. */
static inline int plan_place(struct plan_table *table, const struct plan_key *key) {
    const int place = table->oldest;
    if (table->count == PLANS) {
        int32_t *link = plan_chain(table, &table->key[place]);
        while (*link != place + 1) link = &table->following[*link - 1];
        *link = table->following[place];
    } else {
        table->count++;
    }
    int32_t *chain = plan_chain(table, key);
    table->key[place] = *key;
    table->following[place] = *chain;
    *chain = place + 1;
    table->oldest = (place + 1) % PLANS;
    return place;
}

#endif
