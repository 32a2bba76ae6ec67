"""One process of one provider: answers one JSON line on stdout for every JSON line on stdin.

    {"row": name, "provider": name, "do": "first" | "check" | "time", "seconds": s}      {"do": "ceilings"}      {"do": "facts"}

All processes of a run live side by side and are asked in turn, so that providers are interleaved row by row.
"""

from __future__ import annotations

import json
import os
import platform
import site
import sys
import time
import traceback
from pathlib import Path

import providers
import torch
from inputs import Inputs
from measure import Cpu, Cuda
from operators import OPERATORS
from rows import Row, all_rows

TOLERANCE = {"bfloat16": 2e-2, "float32": 2e-4, "int8": 1e-12}  # integers are exact
COLD_BYTES = 4 * 60 * 2**20


def _tuple(x: object) -> tuple:
    return tuple(x) if isinstance(x, (tuple, list)) else (x,)


class Cell:
    """A row as computed by one provider."""

    def __init__(self, row: Row, provider: str, device: str):
        self.row, self.provider = row, provider
        self.call = providers.function(provider, row.op, row.dtype, row.sums)
        first = row.inputs(device)
        copies = 1
        if device == "cuda":
            copies = max(1, -(-COLD_BYTES // max(1, first.nbytes()))) if first.nbytes() < COLD_BYTES else 1
            copies = 1 if row.group == "flce" else min(copies, 8)
        self.sets = [first, *(first.with_new_activations() for _ in range(copies - 1))]
        self.overwrites = (provider.split("-")[0], row.op) in providers.OVERWRITES
        self.source = [t.detach().clone() for t in first.diff] if self.overwrites else []
        self.loss_only = row.op == "gemm"
        self.forward_only = self.loss_only or not first.diff

    def forward(self, i: int = 0) -> tuple:
        s = self.sets[i % len(self.sets)]
        return _tuple(self.call(*s.diff, *s.fixed))

    def without_gradient(self, i: int = 0) -> tuple:
        with torch.no_grad():
            s = self.sets[i % len(self.sets)]
            return _tuple(self.call(*(t.detach() for t in s.diff), *s.fixed))

    def full(self, i: int = 0) -> tuple:
        s = self.sets[i % len(self.sets)]
        inputs = [t.view_as(t) for t in s.diff] if self.row.intermediate else s.diff
        out = _tuple(self.call(*inputs, *s.fixed))
        return out, torch.autograd.grad(out, s.diff, s.upstream or None)

    def renew(self, i: int) -> None:
        with torch.no_grad():
            for t, source in zip(self.sets[i % len(self.sets)].diff, self.source, strict=True):
                t.copy_(source)

    # ---- right?

    def errors(self) -> dict[str, float]:
        """||difference|| / ||expected|| of every output and gradient; expected in float32 from the plain formula."""
        s = self.sets[0]
        if not s.diff:
            got, right = (f(*s.fixed).double() for f in (self.call, OPERATORS[self.row.op].plain))
            return {"result": ((got - right).norm() / right.norm()).item()}
        wide = Inputs(
            [t.detach().float().requires_grad_() for t in s.diff],
            [t.float() if t.is_floating_point() else t for t in s.fixed],
            [t.float() for t in s.upstream],
        )
        # the factors of its products are exact in TF32 where they come from bfloat16
        torch.backends.cuda.matmul.allow_tf32 = self.row.dtype == "bfloat16"
        expected = _tuple(OPERATORS[self.row.op].plain(*wide.diff, *wide.fixed))
        if self.loss_only:
            return self.product_error(wide, expected[0])
        expected_gradients = torch.autograd.grad(expected, wide.diff, wide.upstream or None)
        expected = [t.detach() for t in expected]
        del wide
        torch.backends.cuda.matmul.allow_tf32 = False
        got, gradients = self.full()
        names = [f"output {i}" for i in range(len(got))] + [f"gradient {i}" for i in range(len(gradients))]
        found = {}
        for name, a, b in zip(names, [*got, *gradients], [*expected, *expected_gradients], strict=True):
            scale = b.norm().item()
            found[name] = (a.detach().float() - b).norm().item() / (scale or 1.0)
        return found

    def product_error(self, wide: Inputs, product: torch.Tensor) -> dict[str, float]:
        """A provider of the GEMM row answers the product, or the fused loss of it."""
        got = self.without_gradient()[0].detach().float()
        if got.shape != product.shape:
            product = _tuple(OPERATORS["linear_cross_entropy"].plain(*wide.diff, *wide.fixed))[0]
        return {"result": (got - product.detach()).norm().item() / product.detach().norm().item()}

    def first(self, meter) -> dict:
        started = time.perf_counter()
        if self.forward_only:
            self.without_gradient()
        else:
            self.full()
        meter.synchronize()
        seconds = time.perf_counter() - started
        meter.clear()
        return {"first_call_s": seconds}

    def check(self, meter) -> dict:
        if self.overwrites:
            self.renew(0)
        errors = self.errors()
        meter.clear()
        found = {
            "errors": errors,
            "right": all(e < TOLERANCE[self.row.dtype] for e in errors.values()),  # NaN is not
            "forward_mb": meter.peak(self.without_gradient if self.forward_only else self.forward),
        }
        if not self.forward_only:
            found["full_mb"] = meter.peak(self.full)
        meter.clear()
        return found

    # ---- fast?

    def time(self, meter, seconds: float) -> dict:
        before = self.renew if self.overwrites else None
        found: dict = {"forward": meter.times(self.without_gradient, seconds / 2, before)}
        if not self.forward_only:
            found["full"] = meter.times(self.full, seconds, before)
            found["wall"] = meter.wall(self.full, seconds / 2) if meter.name == "cuda" else None
        if not self.loss_only:
            found["host"] = meter.host(self.forward)
        meter.clear()
        return found


def facts(device: str) -> dict:
    found = {"torch": torch.__version__, "python": platform.python_version()}
    if device == "cuda":
        found["device"] = torch.cuda.get_device_name(0)
    else:
        lines = open("/proc/cpuinfo").read().splitlines()
        found["device"] = next((x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")), "CPU")
        flags = next((x for x in lines if x.startswith("flags")), "")
        wanted = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
        found["has"] = ", ".join(f for f in wanted if f" {f}" in flags)
        found["threads"] = torch.get_num_threads()
    return found


def package() -> dict:
    """What our library says of itself."""
    which = os.environ.get("BENCH_PROCESS", "")
    if which == "liger":
        from liger_kernel import _native

        said = {k: v.split(" in ")[0].split(" (")[0] for k, v in _native.report().items()}  # without folders
        return {f"liger {key}": value for key, value in said.items()}
    return {}


def main() -> None:
    device = sys.argv[1]
    for folder in os.environ["PYTHONPATH"].split(os.pathsep):
        if any(Path(folder).glob("*.pth")):
            site.addsitedir(folder)  # PYTHONPATH alone does not read these
    reply = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a package prints is no answer
    meter = Cuda() if device == "cuda" else Cpu()
    by_name = {row.name: row for row in all_rows(device)}
    cells: dict[tuple[str, str], Cell] = {}
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if request["do"] == "facts":
                answer = {**facts(device), **package()}
            elif request["do"] == "ceilings":
                answer = meter.ceilings()
            elif request["do"] == "drop":
                cells.clear()
                meter.clear()
                answer = {}
            else:
                key = (request["row"], request["provider"])
                if key not in cells:
                    cells[key] = Cell(by_name[key[0]], key[1], device)
                cell = cells[key]
                if request["do"] == "time":
                    answer = cell.time(meter, request["seconds"])
                else:
                    answer = cell.first(meter) if request["do"] == "first" else cell.check(meter)
        except providers.Missing as error:
            answer = {"missing": str(error)}
        except Exception as error:
            traceback.print_exc()
            answer = {"failed": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:300]}
            cells.pop((request.get("row", ""), request.get("provider", "")), None)
            meter.clear()
        reply.write(json.dumps(answer) + "\n")
        reply.flush()


if __name__ == "__main__":
    main()
