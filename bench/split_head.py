"""A head whose vocabulary is split over GPUs against the whole head on one: log-probabilities and their gradients.

    python3 bench/split_head.py [--device cpu|cuda] [--ranks 2] [--shape 16384x4096x131072] [--outputs entropy] [--repeats 20]

Each rank has the hidden states and its slice of the head, as in tensor-parallel training, and ends with its slice's gradient and
the whole gradient of the hidden states. One GPU computes alone, while the others wait; then all do together. A repetition takes as
long as its slowest rank. Both results are held to each other, and the exit status is 1 where they differ.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "python")]

from inputs import IGNORE, normal, targets  # noqa: E402
from measure import summary  # noqa: E402

UNIT = {"float32": 2**-24, "bfloat16": 2**-8}
HEAD_START = 0.1  # seconds that a GPU sleeps, so that the host is ahead of it


class Head:
    """Forward and backward of this rank's part of a head; of the whole head without a group."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: str, outputs: list[str], group=None):
        from liger_kernel.transformers.functional import liger_linear_logprob

        rows, hidden, vocab = shape
        rank, world = (dist.get_rank(group), dist.get_world_size(group)) if group else (0, 1)
        weight = normal((vocab, hidden), dtype, device, 2, hidden**-0.5)  # whole on every rank, and so the same
        begins = [r * vocab // world for r in range(world + 1)]
        self.slice = slice(begins[rank], begins[rank + 1])
        self.x = normal((rows, hidden), dtype, device, 1).requires_grad_()
        self.weight = weight[self.slice].clone().requires_grad_()
        self.target = targets(rows, vocab, device)
        self.upstream = [normal((rows,), torch.float32, device, 3 + i) for i in range(1 + len(outputs))]
        options = dict(ignore_index=IGNORE, outputs=outputs)
        if group:
            options.update(process_group=group, vocab_start_index=begins[rank])
        self.call = lambda: liger_linear_logprob(self.x, self.weight, self.target, **options)

    def run(self) -> list[Tensor]:
        found = self.call()
        found = list(found) if isinstance(found, tuple) else [found]
        return [*(f.detach() for f in found), *torch.autograd.grad(found, [self.x, self.weight], self.upstream)]


def times(run: Callable[[], object], device: str, repeats: int) -> list[float]:
    """Seconds. How often it runs is settled beforehand: all ranks have to run it equally often."""
    for _ in range(3):
        run()
    if device == "cpu":
        found = []
        for _ in range(repeats):
            started = time.perf_counter()
            run()
            found.append(time.perf_counter() - started)
        return found
    torch.cuda.synchronize()
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
    torch.cuda._sleep(int(HEAD_START * 1.98e9))
    for start, end in events:
        start.record()
        run()
        end.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) / 1e3 for start, end in events]


def error(found: Tensor, right: Tensor) -> float:
    """||difference|| / ||expected||."""
    return ((found.float() - right.float()).norm() / right.float().norm()).item()


def worker(rank: int, world: int, store: str, options: argparse.Namespace) -> None:
    on_gpu = options.device == "cuda"
    if on_gpu:
        torch.cuda.set_device(rank)
    else:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // world))
    dist.init_process_group("nccl" if on_gpu else "gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    hosts = dist.new_group(backend="gloo")  # whoever waits here leaves its GPU idle
    given = options.shape, getattr(torch, options.dtype), options.device, options.outputs
    alone, right = [], []
    if rank == 0:
        whole = Head(*given)
        alone, right = times(whole.run, options.device, options.repeats), whole.run()
        del whole
    dist.barrier(hosts)
    part = Head(*given, group=dist.group.WORLD)
    dist.barrier(hosts)
    together, found = times(part.run, options.device, options.repeats), part.run()
    everyone: list = [None] * world
    dist.all_gather_object(everyone, together, group=hosts)
    if rank == 0:  # the first slice's gradient stands for those of all
        expected = [*right[:-1], right[-1][part.slice]]
        errors = [error(f, r) for f, r in zip(found, expected, strict=True)]
        report(options, world, alone, [max(ranks) for ranks in zip(*everyone, strict=True)], errors)
    dist.barrier(hosts)
    dist.destroy_process_group()


def report(
    options: argparse.Namespace, world: int, alone: list[float], together: list[float], errors: list[float]
) -> None:
    one, split = summary(alone), summary(together)
    what = " + ".join(["log p", *options.outputs])
    print(f"{what}, {'x'.join(map(str, options.shape))} {options.dtype}, forward and backward, {options.device}")
    for name, found in (("one rank", one), (f"{world} ranks", split)):
        print(f"  {name:10} {found['ms']:9.3f} ms   ({found['p20']:.3f} to {found['p80']:.3f})")
    print(f"  ratio      {one['ms'] / split['ms']:9.2f}")
    names = ["log p", *options.outputs, "gradient of hidden", "gradient of weight"]
    # float32 sums in another order, and one rounding to the operands' dtype
    tolerance = 4 * math.sqrt(max(options.shape)) * UNIT["float32"] + UNIT[options.dtype]
    right = all(e < tolerance for e in errors)  # NaN is not
    apart = ", ".join(f"{n} {e:.1e}" for n, e in zip(names, errors, strict=True))
    print(f"  apart      {apart}{'' if right else '   WRONG'}", flush=True)
    if not right:
        os._exit(1)


def shape_of(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split("x")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--shape", type=shape_of, help="rows x hidden x vocabulary")
    parser.add_argument("--dtype", choices=UNIT, default="bfloat16")
    parser.add_argument("--outputs", nargs="*", default=[], help="what else linear_logprob is asked for")
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    options.shape = options.shape or ((16384, 4096, 131072) if options.device == "cuda" else (512, 256, 8192))
    if options.device == "cuda" and torch.cuda.device_count() < options.ranks:
        sys.exit(f"split_head: {options.ranks} GPUs are needed, {torch.cuda.device_count()} are here")
    with tempfile.TemporaryDirectory() as folder:
        try:
            mp.spawn(worker, (options.ranks, os.path.join(folder, "store"), options), nprocs=options.ranks)
        except mp.ProcessExitedException as ended:  # after it has said why
            sys.exit(ended.exit_code)


if __name__ == "__main__":
    main()
