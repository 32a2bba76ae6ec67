/* policy_loss_cpu.c - a policy's loss on the CPU, compiled once per instruction set. Threads share out the sequences. */
#include "liger/core/kernel_table.h"
#include "liger/cpu/isa.h"
#include "liger/cpu/parallel.h"
#include "liger/ops/policy_loss/policy_loss_terms.h"

static void sequences_chunk(void *argument, int64_t begin, int64_t end) {
    const struct policy_loss_problem *p = argument;
    for (int64_t i = begin; i < end; i++) {
        const struct policy_row row = policy_row_of(p, i);
        struct policy_sums *sum = policy_sequences(p) + i;
        *sum = policy_before(p, &row, 0, 1);
        sum->held = policy_held(p, row.advantage, sum);
        policy_add_terms(p, &row, 0, 1, sum);
    }
}

static void gradient_chunk(void *argument, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) policy_gradient(argument, i, 0, 1);
}

liger_status LIGER_CPU(policy_loss)(liger_context *context, const struct policy_loss_problem *problem,
                                    liger_stream stream) {
    (void)stream;
    struct policy_loss_problem p = *problem;
    const int64_t grain = p.tokens < 1024 ? 1024 / (p.tokens + 1) : 1; /* some 20 us of logarithms and powers */
    liger_parallel_for(context, p.sequences, grain, sequences_chunk, &p);
    const struct policy_sums all = policy_add_sequences(&p, 0, 1);
    policy_finish(&p, &all);
    if (p.d_log_prob.data) liger_parallel_for(context, p.sequences, grain, gradient_chunk, &p);
    return LIGER_OK;
}
