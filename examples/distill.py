"""Distillation in plain torch: a tiny teacher reads this project's documentation, and two smaller students learn from the teacher.

    python examples/distill.py [--steps 200]

One student has the teacher beside it, hidden states and head; the other has only lists that were written once, of the teacher's
most probable next bytes. Both begin with the same weights and see the same text; neither has labels. No loss here makes logits
of all tokens.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

import torch
from tiny_lm import TinyLM, megabytes_of_logits, parameters_of
from torch import Tensor

from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss, LigerFusedLinearJSD, LigerTopKKLLoss

ROOT = Path(__file__).resolve().parent.parent
LENGTH, BATCH, MOST_PROBABLE = 64, 8, 16
HELD_OUT = 32  # windows


def read_windows() -> Tensor:
    """The text in pieces of LENGTH bytes and the one that follows, in the same random order on every machine."""
    text = b"".join(path.read_bytes() for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))])
    windows = torch.tensor(list(text)).unfold(0, LENGTH + 1, LENGTH)
    return windows[torch.randperm(len(windows), generator=torch.Generator().manual_seed(0))]


def rows_of(step: int, windows: Tensor) -> Tensor:
    return torch.arange(step * BATCH, (step + 1) * BATCH, device=windows.device) % len(windows)


def train_teacher(windows: Tensor, steps: int) -> TinyLM:
    teacher = TinyLM().to(windows.device)
    optimizer, loss_fn = torch.optim.AdamW(teacher.parameters(), lr=1e-2), LigerFusedLinearCrossEntropyLoss()
    for step in range(steps):
        batch = windows[rows_of(step, windows)]
        loss = loss_fn(teacher.head.weight, teacher(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"the teacher: {parameters_of(teacher)} parameters, loss {loss.item():.3f} after {steps} steps")
    return teacher.requires_grad_(False)


class Lists:
    """Of each token of each window: the teacher's most probable next bytes and their log-probabilities."""

    def __init__(self, teacher: TinyLM, windows: Tensor):
        inputs = windows[:, :-1].split(BATCH)
        parts = [teacher.head(teacher(part)).log_softmax(-1).topk(MOST_PROBABLE) for part in inputs]
        self.ids = torch.cat([part.indices for part in parts]).to(torch.int32)
        self.log_probs = torch.cat([part.values for part in parts])

    def megabytes(self) -> float:
        return sum(t.numel() * t.element_size() for t in (self.ids, self.log_probs)) / 2**20


class Student:
    def __init__(self, model: TinyLM):
        self.model, self.optimizer = model, torch.optim.AdamW(model.parameters(), lr=1e-2)

    def states(self, batch: Tensor) -> Tensor:
        return self.model(batch[:, :-1]).flatten(0, 1)

    def step(self, loss: Tensor) -> None:
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    @torch.no_grad()
    def distance(self, teacher: TinyLM, windows: Tensor) -> float:
        """Mean KL(teacher ‖ student) of a byte."""
        taught = teacher(windows[:, :-1]).flatten(0, 1)
        loss_fn = LigerFusedLinearJSD(jsd_beta=0.0)
        return loss_fn(self.states(windows), self.model.head.weight, taught, teacher.head.weight, None).item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    steps = parser.parse_args().steps
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    windows = read_windows().to(device)
    train, held_out = windows[:-HELD_OUT], windows[-HELD_OUT:]
    teacher = train_teacher(train, 2 * steps)
    train = train[: (steps + 1) * BATCH]  # what the students will read
    lists = Lists(teacher, train)
    whole = megabytes_of_logits(len(train), LENGTH)
    print(f"lists of {MOST_PROBABLE} take {lists.megabytes():.1f} MB; all log-probabilities would take {whole:.1f} MB")
    beside = Student(TinyLM(width=32, layers=1).to(device))
    from_lists = Student(copy.deepcopy(beside.model))
    print(f"a student: {parameters_of(beside.model)} parameters on {device}")
    print(f"the logits of a step, never made, would take {megabytes_of_logits(BATCH, LENGTH):.1f} MB")
    of_states, of_lists = LigerFusedLinearJSD(jsd_beta=0.0), LigerTopKKLLoss()  # both KL(teacher ‖ student)
    for step in range(steps + 1):
        rows = rows_of(step, train)
        batch = train[rows]
        taught = teacher(batch[:, :-1]).flatten(0, 1)
        beside.step(of_states(beside.states(batch), beside.model.head.weight, taught, teacher.head.weight, None))
        taught = (lists.ids[rows].flatten(0, 1), lists.log_probs[rows].flatten(0, 1))
        from_lists.step(of_lists(from_lists.states(batch), from_lists.model.head.weight, *taught))
        if step % max(steps // 6, 1) == 0:
            distances = [student.distance(teacher, held_out) for student in (beside, from_lists)]
            print(f"step {step:3}  held out, KL from states {distances[0]:.4f}  from lists {distances[1]:.4f}")


if __name__ == "__main__":
    main()
