/* preference_loss_cpu.c - preference losses on the CPU. Threads share out the sequences; one adds up what they found. */
#include "liger/core/kernel_table.h"
#include "liger/cpu/parallel.h"
#include "liger/cpu/simd.h"
#include "liger/ops/preference_loss/preference_loss_formula.h"

static bool counts(const struct preference_loss_problem *p, int64_t i) {
    return index_load(p->target_dtype, p->target, i) != p->ignore_index;
}
static bool counts_for_nll(const struct preference_loss_problem *p, int64_t i) {
    if (p->nll_target == NULL) return counts(p, i);
    return index_load(p->nll_target_dtype, p->nll_target, i) != p->ignore_index;
}

static void sums_chunk(void *argument, int64_t begin, int64_t end) {
    const struct preference_loss_problem *p = argument;
    for (int64_t s = begin; s < end; s++) {
        double log_prob = 0, tokens = 0, nll = 0, nll_tokens = 0;
        for (int64_t i = s * p->tokens; i < (s + 1) * p->tokens; i++) {
            if (counts(p, i)) log_prob += (double)p->log_prob[i], tokens++;
            if (s < p->texts && counts_for_nll(p, i)) nll += (double)p->log_prob[i], nll_tokens++;
        }
        if (p->average && tokens > 0) log_prob /= tokens;
        p->sums[s] = (struct preference_sums){(float)log_prob, (float)tokens, (float)nll, (float)nll_tokens};
    }
}

/* What the chunks of the gradient need besides. */
struct gradient {
    const struct preference_loss_problem *p;
    float upstream, nll; /* nll: nll_slope() */
};

static void gradient_chunk(void *argument, int64_t begin, int64_t end) {
    const struct gradient *g = argument;
    const struct preference_loss_problem *p = g->p;
    for (int64_t s = begin; s < end; s++) {
        const float slope = token_slope(p, s, g->upstream);
        for (int64_t i = s * p->tokens; i < (s + 1) * p->tokens; i++) {
            const float nll = s < p->texts && counts_for_nll(p, i) ? g->nll : 0;
            p->d_log_prob[i] = (counts(p, i) ? slope : 0) + nll;
        }
    }
}

liger_status LIGER_CPU(preference_loss)(liger_context *context, const struct preference_loss_problem *problem,
                                        liger_stream stream) {
    (void)stream;
    struct preference_loss_problem p = *problem;
    const int64_t grain = p.tokens < (16 << 10) ? (16 << 10) / (p.tokens + 1) + 1 : 1;
    double terms = 0, nll = 0, nll_tokens = 0;
    liger_parallel_for(context, p.sequences, grain, sums_chunk, &p);
    for (int64_t i = 0; i < p.terms; i++) terms += (double)term_of(&p, i).loss;
    for (int64_t s = 0; s < p.texts; s++) nll += (double)p.sums[s].nll, nll_tokens += (double)p.sums[s].nll_tokens;
    store_losses(&p, (float)terms, (float)nll, (float)nll_tokens);
    for (int64_t s = 0; s < p.sequences; s++) store_sequence(&p, s);
    if (p.d_log_prob == NULL) return LIGER_OK;
    const float upstream = p.upstream ? *p.upstream : 1.0f;
    struct gradient g = {.p = &p, .upstream = upstream, .nll = nll_slope(&p, (float)nll_tokens, upstream)};
    liger_parallel_for(context, p.sequences, grain, gradient_chunk, &g);
    return LIGER_OK;
}
