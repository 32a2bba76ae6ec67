"""The README's tables of measurements, from bench/results/*.json.

python3 bench/table.py              prints them
python3 bench/table.py README.md    puts them between `<!-- bench -->` and `<!-- /bench -->`
"""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "results"
PEERS = (
    "eager",
    "eager-bf16",
    "compile",
    "torch-chunked",
    "reference",
    "reference-f32",
    "reference-cute",
    "quack",
    "trl",
)


def number(x: float | None) -> str:
    if x is None:
        return "-"
    return f"{x:.3f}" if x < 1 else f"{x:.2f}" if x < 10 else f"{x:.1f}" if x < 100 else f"{x:,.0f}"


def time_of(record: dict | None) -> float | None:
    """Forward and backward; forward alone where there is no more."""
    if not record or "forward" not in record or not record.get("right", True):
        return None
    return (record.get("full") or record["forward"])["ms"]


def memory_of(record: dict) -> float | None:
    """Of forward and backward; of forward where there is no more."""
    return record.get("full_mb", record.get("forward_mb"))


def floor_ms(row: dict) -> float | None:
    """What this run's own ceilings allow."""
    ceilings = row["ceilings"]
    if row["bytes"]:
        speed = ceilings.get("copy 4 GiB TB/s", 0) * 1e12 or ceilings.get("copy 256 MB GB/s", 0) * 1e9
        return 1e3 * row["bytes"] / speed if speed else None
    key = "GEMM " + "x".join(str(n) for n in row["shape"]) + " TFLOP/s"
    return 1e3 * row["flop"] / ceilings[key] / 1e12 if key in ceilings else None


def table(result: dict, device: str) -> list[str]:
    rows = result["rows"]
    shown = [p for p in PEERS if any(time_of(row["providers"].get(p)) for row in rows.values())]
    head = ["op, shape", "liger ms", *(f"{p} ms" for p in shown), "against the best", "liger MB", "least MB of a peer"]
    if device == "cuda":
        head[2:2] = ["of the floor"]
        head += ["host us"]
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    ratios = []
    for name, row in rows.items():
        ours = row["providers"].get("liger", {})
        mine = time_of(ours)
        peers = {p: time_of(row["providers"].get(p)) for p in shown}
        best = min((t for t in peers.values() if t), default=None)
        if mine and peers.get("eager"):
            ratios.append(peers["eager"] / mine)
        floor = floor_ms(row)
        cells = [name, f"**{number(mine)}**"]
        if device == "cuda":
            cells.append(f"{100 * floor / mine:.0f} %" if floor and mine else "-")
        cells += [number(peers[p]) for p in shown]
        memory = [mb for p in shown if (mb := memory_of(row["providers"].get(p, {}))) is not None]
        cells.append(f"x {best / mine:.2f}" if best and mine else "-")
        cells += [number(memory_of(ours)), number(min(memory, default=None))]
        if device == "cuda":
            cells.append(number(ours.get("host_us")))
        lines.append("| " + " | ".join(cells) + " |")
    if ratios:
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
        lines += ["", f"Geometric mean over {len(ratios)} rows: {mean:.2f} times as fast as eager."]
    return lines


def end_to_end(result: dict) -> list[str]:
    lines = [
        "| training step | stock ms / GB | reference ms / GB | **liger ms / GB** | loss differs from stock by at most |"
    ]
    lines.append("|---|---:|---:|---:|---:|")
    for name, record in result.items():
        cells = [name]
        for provider in ("stock", "reference", "liger"):
            r = record.get(provider, {})
            cells.append(f"{r['ms']:.1f} / {r['peak_gb']:.1f}" if "ms" in r else "-")
        lines.append("| " + " | ".join([*cells, number(record.get("liger", {}).get("largest_loss_difference"))]) + " |")
    return lines


def render() -> str:
    parts = []
    for device, title in (("cuda", "GPU"), ("cpu", "CPU")):
        path = RESULTS / f"{device}.json"
        if not path.exists():
            continue
        result = json.loads(path.read_text())
        facts = result.get("facts", {})
        threads = f", {facts['threads']} threads" if device == "cpu" and "threads" in facts else ""
        kernels = facts.get("liger CPU" if device == "cpu" else "liger GPU 0", "")
        parts += [f"**{title}: {facts.get('device')}**{threads} ({kernels}), torch {facts.get('torch')}.", ""]
        parts += ["Milliseconds of forward and backward, medians; memory above inputs and parameters.", ""]
        parts += [*table(result, device), ""]
        if result.get("end_to_end"):
            parts += [*end_to_end(result["end_to_end"]), ""]
    return "\n".join(parts).rstrip() + "\n"


def main() -> None:
    text = render()
    if len(sys.argv) < 2:
        print(text, end="")
        return
    path = Path(sys.argv[1])
    old = path.read_text()
    new, found = re.subn(r"(<!-- bench -->\n).*?(<!-- /bench -->)", lambda m: m[1] + text + m[2], old, flags=re.DOTALL)
    if not found:
        sys.exit(f"{path} has no <!-- bench --> ... <!-- /bench -->")
    path.write_text(new)


if __name__ == "__main__":
    main()
