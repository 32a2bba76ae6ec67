"""Clocks and memory meters: one class per kind of device with the same methods.

`times` runs call(i) again and again and answers seconds; `peak` answers the MB that a call holds at most above what was
there before it.
"""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

MB = 1 << 20


def summary(seconds: list[float]) -> dict[str, float]:
    """Median and the 20th and 80th percentile, in milliseconds."""
    ordered = sorted(seconds)

    def at(part: float) -> float:
        return 1e3 * ordered[min(len(ordered) - 1, int(part * len(ordered)))]

    return {"ms": 1e3 * statistics.median(ordered), "p20": at(0.2), "p80": at(0.8), "n": len(ordered)}


class Cuda:
    name = "cuda"
    CYCLES_PER_SECOND = 1.98e9

    def __init__(self) -> None:
        # What a process pays once for CUDA and for torch's autograd on it belongs to no provider's first call.
        x = torch.ones(1024, device="cuda", requires_grad=True)
        (x * 2).backward(torch.ones_like(x))  # with a gradient: torch then imports sympy, for 1 to 3 s
        torch.cuda.synchronize()

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def clear(self) -> None:
        gc.collect()
        torch.cuda.empty_cache()

    def times(
        self, call: Callable[[int], object], seconds: float, before: Callable[[int], None] | None = None
    ) -> list[float]:
        """Device time between two events. The device sleeps first, so that the host is ahead of it all the time."""
        for i in range(3):
            if before:
                before(i)
            call(i)
        torch.cuda.synchronize()
        started = time.perf_counter()
        call(3)
        host = time.perf_counter() - started
        torch.cuda.synchronize()
        once = time.perf_counter() - started
        n = max(5, min(40, int(seconds / once)))
        events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(n)]
        torch.cuda._sleep(int(min(0.2, 2 * n * (host + 3e-5)) * self.CYCLES_PER_SECOND))
        for i, (start, end) in enumerate(events):
            if before:
                before(i)
            start.record()
            call(i)
            end.record()
        torch.cuda.synchronize()
        return [start.elapsed_time(end) / 1e3 for start, end in events]

    def wall(self, call: Callable[[int], object], seconds: float) -> float:
        """Seconds per call in an unbroken stream of calls."""
        torch.cuda.synchronize()
        started = time.perf_counter()
        call(0)
        torch.cuda.synchronize()
        n = max(5, min(40, int(seconds / (time.perf_counter() - started))))
        started = time.perf_counter()
        for i in range(n):
            call(i)
        torch.cuda.synchronize()
        return (time.perf_counter() - started) / n

    def host(self, call: Callable[[int], object]) -> float:
        """Seconds until a call returns, with an idle device and a short queue."""
        samples = []
        batch = 10
        for _ in range(12):
            torch.cuda.synchronize()
            started = time.perf_counter()
            for i in range(batch):
                call(i)
            samples.append((time.perf_counter() - started) / batch)
            if samples[-1] > 2e-3:
                batch = 1
        torch.cuda.synchronize()
        return sorted(samples)[len(samples) // 2]

    def peak(self, call: Callable[[], object]) -> float:
        call()
        self.clear()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        base = torch.cuda.memory_allocated()
        held = call()
        torch.cuda.synchronize()
        above = (torch.cuda.max_memory_allocated() - base) / MB
        del held
        return above

    def ceilings(self) -> dict[str, float]:
        """What copies and matrix products of the head's shapes reach in this run."""
        source = torch.empty(2 << 30, dtype=torch.bfloat16, device="cuda").normal_()
        target = torch.empty_like(source)
        copy = summary(self.times(lambda i: target.copy_(source), 0.05))["ms"]
        found = {"copy 4 GiB TB/s": 2 * source.numel() * 2 / copy / 1e9}
        source = target = None
        self.clear()
        for n, h, v in ((4096, 4096, 128256), (16384, 4096, 128256), (16384, 2048, 32000), (1024, 2048, 128256)):
            x, w, d = (
                torch.empty(shape, dtype=torch.bfloat16, device="cuda").normal_() for shape in ((n, h), (v, h), (n, v))
            )
            total = 0.0
            for name, product in (("logits", lambda: x @ w.t()), ("dX", lambda: d @ w), ("dW", lambda: d.t() @ x)):  # noqa: B023
                ms = summary(self.times(lambda i: product(), 0.1))["ms"]  # noqa: B023
                total += ms
                found[f"GEMM {n}x{h}x{v} {name} TFLOP/s"] = 2.0 * n * h * v / ms / 1e9
            found[f"GEMM {n}x{h}x{v} TFLOP/s"] = 6.0 * n * h * v / total / 1e9
            x = w = d = None
            self.clear()
        return found


class Cpu:
    name = "cpu"

    def __init__(self) -> None:
        # A training step has torch's thread team awake all the time; before every timed call some work of torch wakes it.
        self._busy = torch.empty(1 << 19).normal_()
        self._out = torch.empty_like(self._busy)

    def synchronize(self) -> None: ...

    def clear(self) -> None:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)

    def times(
        self, call: Callable[[int], object], seconds: float, before: Callable[[int], None] | None = None
    ) -> list[float]:
        samples = []
        ends = time.perf_counter() + seconds
        # The first call after clear() pays for memory that the process has given back: it is not counted.
        while len(samples) < 4 or (time.perf_counter() < ends and len(samples) < 400):
            if before:
                before(len(samples))
            torch.tanh(self._busy, out=self._out)
            started = time.perf_counter()
            held = call(len(samples))
            samples.append(time.perf_counter() - started)
            del held
        return samples[1:]

    def wall(self, call: Callable[[int], object], seconds: float) -> float:
        samples = self.times(call, seconds)
        return sum(samples) / len(samples)

    def host(self, call: Callable[[int], object]) -> float | None:
        return None  # the call is the work

    def peak(self, call: Callable[[], object]) -> float:
        call()
        self.clear()
        Path("/proc/self/clear_refs").write_text("5")
        base = self._status("VmRSS")
        held = call()
        above = self._status("VmHWM") - base
        del held
        return above / 1024

    @staticmethod
    def _status(key: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(key + ":")).split()[1])

    def ceilings(self) -> dict[str, float]:
        source = torch.empty(64 << 20).normal_()
        target = torch.empty_like(source)
        copy = summary(self.times(lambda i: target.copy_(source), 0.5))["ms"]
        found = {"copy 256 MB GB/s": 2 * source.numel() * 4 / copy / 1e6}
        for dtype, name in ((torch.float32, "fp32"), (torch.bfloat16, "bf16")):
            a, b = (torch.empty(2048, 2048).normal_().to(dtype) for _ in range(2))
            ms = summary(self.times(lambda i: a @ b, 1.0))["ms"]  # noqa: B023
            found[f"torch matmul 2048^3 {name} GFLOP/s"] = 2 * 2048.0**3 / ms / 1e6
        return found
