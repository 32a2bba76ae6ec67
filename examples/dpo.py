"""DPO in plain torch: a tiny model learns to prefer short answers to hedging ones, from the pairs in preferences.jsonl.

    python examples/dpo.py [--steps 30]

The last pairs are held out: what is learned of the others has to reach them. The loss never sees logits of all tokens; it takes
the hidden states, the head's weight and the labels.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from tiny_lm import END, TinyLM, megabytes_of_logits, parameters_of

from liger_kernel.chunked_loss import LigerFusedLinearDPOLoss

HELD_OUT = 4
IGNORED = -100


def read_pairs() -> list[dict[str, str]]:
    return [json.loads(line) for line in Path(__file__).with_name("preferences.jsonl").read_text().splitlines()]


def as_batch(pairs: list[dict[str, str]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and labels [2n, T]: the chosen answers, then the rejected ones. Labels are shifted, the state at t predicts label t,
    and neither prompt nor padding counts."""
    texts = [(p["prompt"].encode(), p[kind].encode() + bytes([END])) for kind in ("chosen", "rejected") for p in pairs]
    length = max(len(prompt) + len(answer) for prompt, answer in texts) - 1
    tokens, labels = torch.full((len(texts), length), END), torch.full((len(texts), length), IGNORED)
    for row, (prompt, answer) in enumerate(texts):
        whole, end = torch.tensor(list(prompt + answer)), len(prompt) + len(answer) - 1
        tokens[row, :end] = whole[:-1]
        labels[row, len(prompt) - 1 : end] = whole[len(prompt) :]
    return tokens.to(device), labels.to(device)


class Preferences:
    """Pairs, and the log-probabilities of their answers under the model before training: they do not change, so that the
    reference model is asked once."""

    def __init__(self, pairs: list[dict[str, str]], model: TinyLM, device: torch.device):
        self.tokens, self.labels = as_batch(pairs, device)
        with torch.no_grad():
            of_model = LigerFusedLinearDPOLoss(use_ref_model=False)
            _, (chosen, rejected, *_) = of_model(model.head.weight, model(self.tokens), self.labels)
        self.reference = dict(ref_chosen_logps=chosen, ref_rejected_logps=rejected)

    def loss(self, model: TinyLM, loss_fn: LigerFusedLinearDPOLoss) -> tuple[torch.Tensor, float]:
        """And the margin: how much further from the reference chosen answers are than rejected ones."""
        loss, (*_, chosen, rejected) = loss_fn(model.head.weight, model(self.tokens), self.labels, **self.reference)
        return loss, (chosen - rejected).mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30)
    steps = parser.parse_args().steps
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    model = TinyLM().to(device)
    pairs = read_pairs()
    train, held_out = (Preferences(part, model, device) for part in (pairs[:-HELD_OUT], pairs[-HELD_OUT:]))
    optimizer, loss_fn = torch.optim.AdamW(model.parameters(), lr=1e-3), LigerFusedLinearDPOLoss(beta=0.1)
    print(f"{parameters_of(model)} parameters on {device}, {len(pairs)} pairs of which {HELD_OUT} are held out")
    print(f"the logits of a step, never made, would take {megabytes_of_logits(*train.tokens.shape):.1f} MB")
    for step in range(steps + 1):
        loss, margin = train.loss(model, loss_fn)
        if step % max(steps // 6, 1) == 0:
            with torch.no_grad():
                other = held_out.loss(model, loss_fn)[1]
            print(f"step {step:3}  loss {loss.item():.4f}  margin {margin:6.3f}  held out {other:6.3f}")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


if __name__ == "__main__":
    main()
