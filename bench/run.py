"""Times of the operators against peers, each provider in processes of its own, interleaved row by row.

    python3 bench/run.py [--device cpu|cuda] [--rows TEXT ...] [--providers NAME ...] [--reference DIR] [--quack DIR]
                         [--cute DIR] [--end-to-end] [--seconds S] [--rounds N] [--out FILE]

Results go to bench/results/<device>.json, row by row into what is there; bench/table.py makes the README's table of them.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(HERE))


class Process:
    """A provider's process, asked one question at a time."""

    def __init__(self, name: str, device: str, paths: list[str], variables: dict[str, str] | None = None):
        self.name, self.paths = name, paths
        self.errors = tempfile.TemporaryFile("w+")
        environment = {**os.environ, "BENCH_PROCESS": name, "PYTHONPATH": os.pathsep.join([str(HERE), *paths])}
        environment.update(variables or {})
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "worker.py"), device],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env=environment,
        )

    def ask(self, **request) -> dict:
        self.send(**request)
        return self.answer()

    def send(self, **request) -> None:
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # the answer says so

    def answer(self) -> dict:
        line = self.process.stdout.readline()
        if line:
            return json.loads(line)
        self.errors.seek(0)
        tail = " | ".join(self.errors.read().strip().splitlines()[-3:])
        return {"failed": f"the process ended: {tail[-300:]}"}

    def end(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def start(options, device: str) -> tuple[dict[str, Process], dict[str, str]]:
    """The processes that there can be, and why the others are not."""
    import providers

    inherited = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    own = str(ROOT / "python")
    others = [p for p in inherited if Path(p).resolve() != Path(own).resolve()]
    paths = {"liger": [own, *others], "torch": others, "compile": others, "trl": others}
    missing = {}
    folders = {"reference": options.reference, "quack": options.quack, "cute": options.cute}
    for name, needed in (("reference", ["reference"]), ("reference-cute", ["reference", "cute"]), ("quack", ["quack"])):
        absent = [f"no folder given (--{n} DIR)" for n in needed if not folders[n]]
        absent += [f"no such folder: {folders[n]}" for n in needed if folders[n] and not Path(folders[n]).is_dir()]
        if absent:
            missing[name] = absent[0]
        else:
            paths[name] = [*(str(Path(folders[n]).resolve()) for n in needed), *others]
    processes = {}
    for name, search in paths.items():
        if any(p in options.providers for p in providers.PROCESSES[name]):
            processes[name] = Process(name, device, search)
    return processes, missing


def merge(answers: list[dict]) -> dict:
    """Several rounds of one cell as one record."""
    from measure import summary

    record = {k: v for k, v in answers[0].items()}
    rounds = [a for a in answers[1:] if "forward" in a]
    for a in answers:
        if "failed" in a:
            return {"failed": a["failed"]}
    for key in ("forward", "full"):
        samples = [x for a in rounds for x in a.get(key) or []]
        if samples:
            record[key] = summary(samples)
    for key, unit, factor in (("wall", "wall_ms", 1e3), ("host", "host_us", 1e6)):
        values = sorted(a[key] for a in rounds if a.get(key))
        if values:
            record[unit] = values[(len(values) - 1) // 2] * factor
    return record


def measure_row(row, processes: dict[str, Process], options) -> dict:
    """Of every provider, one record. A row that sets variables of the environment has a process of ours for itself."""
    import providers

    own = None
    if row.environment and "liger" in processes:
        own = Process("liger", options.device, processes["liger"].paths, dict(row.environment))
        processes = {**processes, "liger": own}
    answers: dict[str, list[dict]] = {}
    asked = [
        (process, provider)
        for process in processes.values()
        for provider in providers.PROCESSES[process.name]
        if provider in options.providers
    ]
    # First calls compile, for seconds with some peers: all at once where there are cores enough.
    at_once = options.device == "cuda"
    for process, provider in asked:
        process.send(do="first", row=row.name, provider=provider)
        answers[provider] = [] if at_once else [process.answer()]
    if at_once:
        for process, provider in asked:
            answers[provider].append(process.answer())
    for process, provider in asked:
        if not {"missing", "failed"} & answers[provider][0].keys():
            answers[provider][0].update(process.ask(do="check", row=row.name, provider=provider))
    for _ in range(options.rounds):
        for process, provider in asked:
            if not {"missing", "failed"} & answers[provider][0].keys():
                seconds = options.seconds / options.rounds
                answers[provider].append(process.ask(do="time", row=row.name, provider=provider, seconds=seconds))
    for process in processes.values():
        process.ask(do="drop")
    if own is not None:
        own.end()
    return {provider: merge(answers[provider]) for provider in providers.NAMES if provider in answers}


def show(name: str, record: dict) -> None:
    print(f"\n{name}")
    for provider, r in record.items():
        reason = r.get("missing") or r.get("failed")
        if reason:
            print(f"  {provider:14} {'missing' if 'missing' in r else 'FAILED'}: {reason[:110]}")
            continue
        text = f"  {provider:14} forward {r['forward']['ms']:9.3f} ms"
        if "full" in r:
            f = r["full"]
            text += f"   full {f['ms']:9.3f} ({f['p20']:.3f}..{f['p80']:.3f})   {r['full_mb']:8.1f} MB"
        else:
            text += f"   {r['forward_mb']:8.1f} MB"
        text += f"   wall {r['wall_ms']:8.3f}" if "wall_ms" in r else ""
        text += f"   host {r['host_us']:6.1f} us" if "host_us" in r else ""
        text += f"   first call {r['first_call_s']:6.3f} s   error {max(r['errors'].values(), key=lambda e: (e != e, e)):.1e}"
        print(text + ("" if r["right"] else "   WRONG"), flush=True)


def main() -> None:
    import providers
    import torch
    from rows import all_rows

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rows", nargs="*", default=[""], help="parts of names or groups of rows; none: no operators")
    parser.add_argument("--providers", nargs="+", default=list(providers.NAMES))
    parser.add_argument("--reference", help="the folder site-packages that holds the reference package")
    parser.add_argument("--quack", help="the folder site-packages that holds QuACK")
    parser.add_argument("--cute", help="the folder site-packages that holds nvidia-cutlass-dsl, for the reference")
    parser.add_argument("--seconds", type=float, help="per cell and measure, all rounds together")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--end-to-end", action="store_true", help="whole models' steps besides (GPU)")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    device = options.device
    options.seconds = options.seconds or (0.25 if device == "cuda" else 3.0)
    out = options.out or HERE / "results" / f"{device}.json"
    result = json.loads(out.read_text()) if out.exists() else {}
    result.setdefault("rows", {})

    def save() -> None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result, indent=1) + "\n")

    chosen = [
        r for r in all_rows(device) if any(part.lower() in f"{r.group} {r.name}".lower() for part in options.rows)
    ]
    if chosen:
        processes, missing = start(options, device)
        for process in processes.values():
            result.setdefault("facts", {}).update(process.ask(do="facts"))
        result["missing"] = missing
        ceilings = next(iter(processes.values())).ask(do="ceilings")
        result["ceilings"] = ceilings
        for provider, reason in missing.items():
            print(f"{provider}: missing: {reason}")
        for key, value in {**result["facts"], **ceilings}.items():
            print(f"{key:44} {value if isinstance(value, (str, int)) else format(value, '.4g')}")
        for row in chosen:
            record = measure_row(row, processes, options)
            moved, flops = row.work()
            result["rows"][row.name] = {
                "op": row.op,
                "group": row.group,
                "dtype": row.dtype,
                "shape": row.shape,
                "bytes": moved,
                "flop": flops,
                "bar_ms": row.bar_ms,
                "bar_mb": row.bar_mb,
                "ceilings": ceilings,
                "date": datetime.date.today().isoformat(),
                "providers": record,
            }
            show(row.name, record)
            save()
        for process in processes.values():
            process.end()
    if options.end_to_end:
        import end_to_end

        result["end_to_end"] = end_to_end.compare(options, device)
    save()
    print(f"\n{out}")


if __name__ == "__main__":
    main()
