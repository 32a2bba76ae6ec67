"""GRPO in plain torch: a tiny policy learns to write letters in alphabetical order, from nothing but rewards for what it has sampled.

    python examples/grpo.py [--rounds 40]

Every round samples a group of completions for each prompt, rewards them, and takes two steps on them. In the second the policy
is no longer the one that sampled; the ratio of the two is what the loss clips.
"""

from __future__ import annotations

import argparse

import torch
from tiny_lm import END, TinyLM, megabytes_of_logits, parameters_of

from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss

LETTERS = torch.tensor(list(b"abcdefghijklmnopqrstuvwxyz"))
PROMPTS, GROUP, LENGTH = 8, 16, 4
STEPS_PER_ROUND = 2


def reward(prompts: torch.Tensor, completions: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Of each completion: the part of its LENGTH tokens that are letters, and later in the alphabet than the one before."""
    before = torch.cat((prompts, completions[:, :-1]), 1)
    in_order = (completions > before) & (completions <= LETTERS[-1])
    return (in_order & mask).sum(1) / LENGTH


@torch.no_grad()
def sample(policy: TinyLM, prompts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Completions [B, LENGTH], which of their tokens count (up to the first end, this one too), and the log-probabilities that
    the policy had for them."""
    tokens, log_probs = prompts, []
    for _ in range(LENGTH):
        log_p = policy.head(policy(tokens)[:, -1]).float().log_softmax(-1)
        chosen = torch.multinomial(log_p.exp(), 1)
        tokens = torch.cat((tokens, chosen), 1)
        log_probs.append(log_p.gather(1, chosen))
    completions = tokens[:, prompts.shape[1] :]
    ends = completions == END
    return completions, ends.cumsum(1) - ends.long() == 0, torch.cat(log_probs, 1)


def group_advantages(rewards: torch.Tensor) -> torch.Tensor:
    """How much better a completion is than the others of its prompt, in standard deviations."""
    groups = rewards.view(-1, GROUP)
    return ((groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-4)).flatten()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    rounds = parser.parse_args().rounds
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    policy = TinyLM(layers=1).to(device)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=3e-3)
    loss_fn = LigerFusedLinearGRPOLoss(beta=0.0, use_ref_model=False, loss_type="grpo")
    print(f"{parameters_of(policy)} parameters on {device}, {PROMPTS} prompts a round, {GROUP} completions of each")
    print(f"the logits of a step, never made, would take {megabytes_of_logits(PROMPTS * GROUP, LENGTH):.1f} MB")
    for r in range(rounds + 1):
        starts = LETTERS[torch.randint(len(LETTERS) - LENGTH, (PROMPTS, 1))]  # so that LENGTH letters follow
        prompts = starts.repeat_interleave(GROUP, 0).to(device)
        completions, mask, old = sample(policy, prompts)
        rewards = reward(prompts, completions, mask)
        advantages = group_advantages(rewards)
        inputs = torch.cat((prompts, completions[:, :-1]), 1)  # the state at t predicts completion t
        for _ in range(STEPS_PER_ROUND):
            loss, (clipped,) = loss_fn(
                policy(inputs), policy.head.weight, completions, mask, advantages, old_per_token_logps=old
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if r % max(rounds // 8, 1) == 0:
            print(f"round {r:3}  reward {rewards.mean():.3f}  clipped {clipped:.3f}  tokens {mask.sum().item()}")


if __name__ == "__main__":
    main()
