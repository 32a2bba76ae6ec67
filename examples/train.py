"""A model learns the Python standard library twice: with Hugging Face's own layers, and with Liger's.

`make demo` runs it. The text is the source of this interpreter's standard library; a BPE tokenizer is trained on it; then
the same model, with the same seed and the same batches, takes the same number of AdamW steps in two processes of which the
second calls `apply_liger_kernel_to_llama()` first, or that of another family. Nothing else differs. The results: a table,
build/demo/demo.png and build/demo/demo.json (of another model than a Llama demo-<model>.png and .json).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VOCAB = 32000
SEED = 20
MB = 1 << 20
NAMES = {"stock": "stock Hugging Face", "patched": "with Liger"}

# Families: what they are called, their class, their function `apply_liger_kernel_to_...`, and what their configs need
# beside the sizes below.
HEADS_OF_64 = {"head_dim": 64}
OWN_TOKENS = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
MODELS = {
    "llama": ("Llama", "LlamaForCausalLM", "llama", {}),
    "qwen3": ("Qwen3", "Qwen3ForCausalLM", "qwen3", {**HEADS_OF_64, **OWN_TOKENS}),
    "gemma3": ("Gemma 3", "Gemma3ForCausalLM", "gemma3_text", {**HEADS_OF_64, "query_pre_attn_scalar": 64}),
    "mistral": ("Mistral", "MistralForCausalLM", "mistral", {}),
    "phi3": ("Phi-3", "Phi3ForCausalLM", "phi3", OWN_TOKENS),
}

# What is trained where. The small model is made of the parts of a large one, so that two runs of it fit into a few
# minutes of two cores. The learning rate rises over the first `warmup` steps and then stays.
PRESETS = {
    "cpu": {
        "model": dict(
            hidden_size=192,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=3,
            num_key_value_heads=1,
            max_position_embeddings=512,
        ),
        "dtype": "float32",
        "batch": 4,
        "seq": 512,
        "steps": 50,
        "lr": 1e-3,
        "warmup": 10,
    },
    "cuda": {
        "model": dict(
            hidden_size=2048,
            intermediate_size=8192,
            num_hidden_layers=16,
            num_attention_heads=32,
            num_key_value_heads=8,
            max_position_embeddings=4096,
        ),
        "dtype": "bfloat16",
        "batch": 4,
        "seq": 4096,
        "steps": 40,
        "lr": 1e-4,
        "warmup": 10,
    },
}


# ---- text --------------------------------------------------------------------------------------------------------------


def standard_library(limit_mb: float) -> list[str]:
    """The sources of the running interpreter's standard library, without its tests, in a fixed order."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    apart = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
    texts, size = [], 0
    for path in sorted(folder.rglob("*.py")):
        if apart.isdisjoint(path.relative_to(folder).parts[:-1]) and size < limit_mb * MB:
            texts.append(path.read_text(encoding="utf-8", errors="replace"))
            size += path.stat().st_size
    return texts


def make_tokens(texts: list[str], path: Path) -> int:
    """Trains a byte-level BPE of 32k and stores the text as one line of token numbers; returns how many."""
    import numpy
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=["<end>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer=trainer)
    numbers = numpy.concatenate([[*encoded.ids, 0] for encoded in tokenizer.encode_batch(texts)])
    tokenizer.save(str(path.with_name("tokenizer.json")))
    numpy.save(path, numbers.astype(numpy.int32))
    return len(numbers)


# ---- one run, in a process of its own --------------------------------------------------------------------------------


class PeakOfCpu:
    """Resident memory: the kernel's own high-water mark, set back when the measurement starts."""

    def start(self) -> None:
        import ctypes

        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        self.base = self._status("VmRSS")

    def above(self) -> float:
        return (self._status("VmHWM") - self.base) / 1024

    @staticmethod
    def _status(key: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(key + ":")).split()[1])


class PeakOfGpu:
    """What PyTorch's allocator has handed out."""

    def start(self) -> None:
        import torch

        torch.cuda.reset_peak_memory_stats()
        self.base = torch.cuda.memory_allocated()

    def above(self) -> float:
        import torch

        return (torch.cuda.max_memory_allocated() - self.base) / MB


def tell(**event) -> None:
    print(json.dumps(event), flush=True)


def make_model(family: str, sizes: dict):
    import transformers

    _, name, _, others = MODELS[family]
    cls = getattr(transformers, name)
    return cls(cls.config_class(vocab_size=VOCAB, **sizes, **others, use_cache=False))


def train(which: str, family: str, device: str, preset: dict, tokens: Path, launched: float) -> None:
    """The training loop that both runs share; events go to stdout, one JSON object a line."""
    import gc

    import numpy
    import torch

    if which == "patched":
        import liger_kernel.transformers

        getattr(liger_kernel.transformers, f"apply_liger_kernel_to_{MODELS[family][2]}")()

    torch.manual_seed(SEED)
    dtype = getattr(torch, preset["dtype"])
    with torch.device(device):
        torch.set_default_dtype(dtype)
        model = make_model(family, preset["model"])
        torch.set_default_dtype(torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=preset["lr"], betas=(0.9, 0.95), fused=True)

    data = torch.from_numpy(numpy.load(tokens).astype(numpy.int64))
    window = torch.arange(preset["seq"])
    chooser = torch.Generator().manual_seed(SEED)
    peak = PeakOfGpu() if device == "cuda" else PeakOfCpu()
    tell(event="ready", parameters=sum(p.numel() for p in model.parameters()))
    startup = 0.0
    for step in range(1, preset["steps"] + 1):
        started = time.perf_counter()
        first = torch.randint(len(data) - preset["seq"], (preset["batch"], 1), generator=chooser)
        batch = data[first + window].to(device)
        for group in optimizer.param_groups:
            group["lr"] = preset["lr"] * min(1.0, step / preset["warmup"])
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        value = loss.item()
        seconds = time.perf_counter() - started
        del loss
        if step == 1:
            startup = time.time() - launched
            gc.collect()
            peak.start()
        tell(event="step", step=step, loss=value, seconds=seconds)
    tell(event="end", startup_s=startup, peak_mb_above_model=peak.above())


# ---- both runs, side by side --------------------------------------------------------------------------------------------


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def find_device(wanted: str) -> tuple[str, dict[str, str]]:
    """cpu or cuda, and what there is to say about it."""
    import torch

    from liger_kernel import _native

    facts = _native.report()
    library = facts["library"]
    if "CPU" not in facts:  # then the reason stands in its place
        sys.exit(f"train: {library}")
    usable = torch.cuda.is_available() and "GPU 0" in facts and not facts["GPU 0"].startswith("not usable")
    if wanted == "cuda" and not usable:
        sys.exit(f"train: no usable GPU: {facts.get('GPU 0', facts.get('CUDA', 'torch sees none'))}")
    device = "cuda" if usable and wanted != "cpu" else "cpu"
    label = "GPU 0" if device == "cuda" else "CPU"
    said = {
        "device": torch.cuda.get_device_name(0) if device == "cuda" else processor(),
        "kernels": facts[label],
        "matrix products": facts.get(f"{label} matrix products", ""),
        "threads": str(torch.get_num_threads()) if device == "cpu" else "",
        "library": library.split(" in ")[0],
        "torch": torch.__version__,
    }
    if device == "cpu" and torch.cuda.is_available():
        said["note"] = f"there is a GPU, but it was not used: {facts.get('GPU 0', facts.get('CUDA', 'as asked'))}"
    return device, {key: value for key, value in said.items() if value}


def run(which: str, family: str, device: str, preset: dict, tokens: Path, progress, task) -> dict:
    """Starts one process and follows it; returns what demo.json holds of it."""
    command = [sys.executable, __file__, "--run", which, "--model", family, "--device", device, "--tokens", str(tokens)]
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}
    losses, seconds, ended = [], [], {}
    with tempfile.TemporaryFile("w+") as errors:
        launched = time.time()
        process = subprocess.Popen(
            [*command, "--preset", json.dumps(preset), "--launched", repr(launched)],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment,
        )
        for line in process.stdout:
            if not line.startswith("{"):
                continue
            event = json.loads(line)
            if event["event"] == "ready":
                ended["parameters"] = event["parameters"]
            elif event["event"] == "step":
                losses.append(event["loss"])
                seconds.append(event["seconds"])
                speed = preset["batch"] * preset["seq"] / event["seconds"]
                progress.update(task, advance=1, state=f"loss {event['loss']:7.4f}   {speed:9,.0f} tokens/s")
                if not progress.console.is_terminal and event["step"] % 10 == 0:
                    print(
                        f"{which:8} step {event['step']:4}  loss {event['loss']:.4f}  {speed:,.0f} tokens/s", flush=True
                    )
            else:
                ended.update(event)
        if process.wait() or "startup_s" not in ended:
            errors.seek(0)
            sys.exit(f"train: the {which} run failed ({process.returncode}):\n{errors.read()[-4000:]}")
    later = sorted(seconds[1:])
    return {
        "tokens_per_s": preset["batch"] * preset["seq"] / later[len(later) // 2],
        "peak_mb_above_model": ended["peak_mb_above_model"],
        "losses": losses,
        "startup_s": ended["startup_s"],
        "parameters": ended["parameters"],
        "step_s": seconds,
    }


def show_table(console, result: dict) -> None:
    from rich.table import Table

    stock, patched = result["stock"], result["patched"]
    steps = len(stock["losses"])
    table = Table(title=result["title"], title_style="bold", title_justify="left")
    for heading in ("", "stock", "patched", "patched against stock"):
        table.add_column(heading, justify="left" if not heading else "right")
    for step in sorted({1, steps // 4, steps // 2, 3 * steps // 4, steps} - {0}):
        a, b = stock["losses"][step - 1], patched["losses"][step - 1]
        table.add_row(f"loss at step {step}", f"{a:.4f}", f"{b:.4f}", f"{b - a:+.5f}")
    table.add_section()
    for label, key, form in (
        ("tokens/s (median step)", "tokens_per_s", ",.0f"),
        ("peak memory above the model (MB)", "peak_mb_above_model", ",.0f"),
        ("start-up to the end of step 1 (s)", "startup_s", ".1f"),
    ):
        a, b = stock[key], patched[key]
        table.add_row(label, format(a, form), format(b, form), f"x {b / a:.2f}")
    console.print(table)
    console.print(f"largest difference of the two losses over {steps} steps: {result['largest_loss_difference']:.5f}")


def draw(result: dict, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    grey, blue = "#9aa3ad", "#1f6fd6"
    plt.rcParams.update({"font.size": 13, "axes.spines.top": False, "axes.spines.right": False})
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(15, 6.2), width_ratios=[2.2, 1, 1])
    steps = range(1, len(result["stock"]["losses"]) + 1)
    left.plot(steps, result["stock"]["losses"], color=grey, linewidth=7, label=NAMES["stock"], solid_capstyle="round")
    left.plot(steps, result["patched"]["losses"], color=blue, linewidth=2, label=NAMES["patched"])
    left.set(xlabel="step", ylabel="loss", title="Loss\n")
    left.legend(frameon=False)
    left.grid(axis="y", alpha=0.3)
    left.text(
        0.97,
        0.76,
        f"largest difference {result['largest_loss_difference']:.1g}",
        transform=left.transAxes,
        ha="right",
        color="#555",
    )
    for axes, key, title, unit in (
        (middle, "peak_mb_above_model", "Peak memory above\nthe model", "MB"),
        (right, "tokens_per_s", "Speed of the\nmedian step", "tokens/s"),
    ):
        values = [result[name][key] for name in NAMES]
        bars = axes.bar(["stock", "Liger"], values, color=[grey, blue], width=0.62)
        axes.bar_label(bars, [f"{value:,.0f} {unit}" for value in values], padding=4, fontsize=14, fontweight="bold")
        axes.set(title=f"{title}: {values[1] / values[0]:.2f} times", ylim=(0, max(values) * 1.12), yticks=[])
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="x", length=0, labelsize=14)
    figure.suptitle(result["title"], fontsize=16, fontweight="bold", x=0.01, ha="left")
    figure.text(0.01, 0.01, result["subtitle"], color="#555", fontsize=11)
    figure.tight_layout(rect=(0, 0.04, 1, 0.97), w_pad=3)
    figure.savefig(path, dpi=120)


def demo(options) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console()
    started = time.time()
    device, facts = find_device(options.device)
    preset = dict(PRESETS[device])
    for name in ("steps", "batch", "seq", "lr"):
        if getattr(options, name) is not None:
            preset[name] = getattr(options, name)
    console.print(f"[bold]Runs on {'the GPU' if device == 'cuda' else 'the CPU'}.[/bold]")
    for key, value in facts.items():
        console.print(f"  {key:16} {value}", highlight=False)

    folder = Path(options.out)
    folder.mkdir(parents=True, exist_ok=True)
    tokens = folder / "tokens.npy"
    with console.status("reading the standard library, training a tokenizer of 32k"):
        texts = standard_library(options.text_mb)
        count = make_tokens(texts, tokens)
    size = sum(len(text) for text in texts) / MB
    console.print(f"  {'text':16} {len(texts)} files, {size:.1f} MB, {count:,} tokens", highlight=False)

    columns = (
        TextColumn("{task.description:20}"), BarColumn(40), MofNCompleteColumn(), TextColumn("{task.fields[state]:36}"),
        TimeElapsedColumn(),
    )  # fmt: skip
    result: dict = {"device": f"{facts['device']}, {facts['kernels']}", "facts": facts, "settings": preset}
    with Progress(*columns, console=console) as progress:
        tasks = {
            which: progress.add_task(text, total=preset["steps"], state="waiting", start=False)
            for which, text in NAMES.items()
        }
        for which, task in tasks.items():
            progress.start_task(task)
            progress.update(task, state="starting")
            result[which] = run(which, options.model, device, preset, tokens, progress, task)
            progress.stop_task(task)

    pairs = zip(result["stock"]["losses"], result["patched"]["losses"], strict=True)
    result["largest_loss_difference"] = max(abs(a - b) for a, b in pairs)
    millions = result["stock"]["parameters"] / 1e6
    result["title"] = (
        f"{MODELS[options.model][0]}, {millions:,.0f} M parameters, {preset['dtype']}, on {facts['device']} ({facts['kernels']})"
    )
    result["subtitle"] = (
        f"{preset['steps']} AdamW steps of {preset['batch']} x {preset['seq']} tokens of the Python standard library's "
        f"source; vocabulary {VOCAB:,}; torch {facts['torch']}; liger {facts['library']}"
    )
    stem = "demo" if options.model == "llama" else f"demo-{options.model}"
    draw(result, folder / f"{stem}.png")
    (folder / f"{stem}.json").write_text(json.dumps(result, indent=1) + "\n")
    show_table(console, result)
    console.print(f"{folder / stem}.png and {stem}.json written; {time.time() - started:.0f} s in all")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS, default="llama")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--seq", type=int)
    parser.add_argument("--lr", type=float)
    parser.add_argument("--text-mb", type=float, default=12.0, help="at most so much of the standard library")
    parser.add_argument("--out", default=str(ROOT / "build" / "demo"))
    for name in ("--run", "--preset", "--tokens", "--launched"):  # a run's own process
        parser.add_argument(name, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        train(
            options.run,
            options.model,
            options.device,
            json.loads(options.preset),
            Path(options.tokens),
            float(options.launched),
        )
    else:
        demo(options)


if __name__ == "__main__":
    main()
