"""Whole training steps of Hugging Face's Llama on a GPU: stock, ours and the reference, one process each.

Random weights, bfloat16, fused AdamW, the same seed and batches. A step's time is that of an unbroken stream of steps.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
VOCAB = 128256
ONE_B = dict(
    hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32, num_key_value_heads=8,
    tie_word_embeddings=True,
)  # fmt: skip
SLICE_8B = dict(
    hidden_size=4096, intermediate_size=14336, num_hidden_layers=4, num_attention_heads=32, num_key_value_heads=8,
    tie_word_embeddings=False,
)  # fmt: skip
# name: model, batch, sequence, gradient checkpointing, steps that are timed, bars in ms and GB
MODELS = {
    "1B, 4x4096": (ONE_B, 4, 4096, False, 6, 245, 25),
    "8B slice (4 layers), 4x4096": (SLICE_8B, 4, 4096, False, 6, 240, 22),
    "1B, 1x1024": (ONE_B, 1, 1024, False, 20, 33, None),
    "1B, 1x16384, checkpointing": (ONE_B, 1, 16384, True, 5, 430, 10),
}
PROVIDERS = ("stock", "liger", "reference")


def steps(name: str) -> dict:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    shape, batch, seq, checkpointing, count, _ms, _gb = MODELS[name]
    torch.manual_seed(1)
    with torch.device("cuda"):
        torch.set_default_dtype(torch.bfloat16)
        config = LlamaConfig(vocab_size=VOCAB, max_position_embeddings=seq, use_cache=False, **shape)
        model = LlamaForCausalLM(config)
        torch.set_default_dtype(torch.float32)
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    chooser = torch.Generator(device="cuda").manual_seed(2)
    batches = torch.randint(VOCAB, (4, batch, seq), generator=chooser, device="cuda")
    losses = []

    def step(i: int) -> None:
        loss = model(input_ids=batches[i % 4], labels=batches[i % 4]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.detach())

    started = time.perf_counter()
    step(0)
    torch.cuda.synchronize()
    first = time.perf_counter() - started
    for i in range(1, 3):
        step(i)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    rounds = []
    for _ in range(2):
        started = time.perf_counter()
        for _i in range(count):
            step(len(losses))
        torch.cuda.synchronize()
        rounds.append((time.perf_counter() - started) / count)
    return {
        "ms": min(rounds) * 1e3,
        "rounds_ms": [r * 1e3 for r in rounds],
        "peak_gb": torch.cuda.max_memory_allocated() / 2**30,
        "first_step_s": first,
        "losses": [x.item() for x in losses],
    }


def worker(provider: str) -> None:
    import gc

    import torch

    if provider != "stock":
        from liger_kernel.transformers import apply_liger_kernel_to_llama

        apply_liger_kernel_to_llama()
    for name in MODELS:
        try:
            answer = steps(name)
            gc.collect()
            torch.cuda.empty_cache()
        except Exception as error:
            answer = {"failed": f"{type(error).__name__}: {error}"[:300]}
        print("RESULT " + json.dumps({"model": name, **answer}), flush=True)


def compare(options, device: str) -> dict:
    if device != "cuda":
        print("end to end: missing: needs a GPU")
        return {}
    others = [
        p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p and Path(p).resolve() != ROOT / "python"
    ]
    paths = {
        "stock": [],
        "liger": [str(ROOT / "python")],
        "reference": [options.reference] if options.reference else None,
    }
    result: dict = {name: {"bar_ms": bars[-2], "bar_gb": bars[-1]} for name, bars in MODELS.items()}
    for provider in PROVIDERS:
        if paths[provider] is None:
            print(f"end to end: {provider}: missing: no folder given (--reference DIR)")
            continue
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), *paths[provider], *others])}
        done = subprocess.run(
            [sys.executable, str(HERE / "end_to_end.py"), provider], env=environment, text=True, capture_output=True
        )
        lines = [json.loads(x[7:]) for x in done.stdout.splitlines() if x.startswith("RESULT ")]
        for line in lines:
            result[line.pop("model")][provider] = line
        if len(lines) < len(MODELS):
            print(f"end to end: {provider}: FAILED: {done.stderr[-500:]}")
    for name, record in result.items():
        print(f"\n{name}    (bars: {record['bar_ms']} ms, {record['bar_gb']} GB)")
        for provider in PROVIDERS:
            r = record.get(provider, {"failed": "did not run"})
            if "failed" in r:
                print(f"  {provider:10} FAILED: {r['failed'][:120]}")
                continue
            apart = max(abs(a - b) for a, b in zip(r["losses"], record["stock"]["losses"], strict=False))
            r["largest_loss_difference"] = apart
            print(
                f"  {provider:10} {r['ms']:8.1f} ms   {r['peak_gb']:6.2f} GB   first step {r['first_step_s']:5.1f} s"
                f"   loss {r['losses'][-1]:.4f}, at most {apart:.4f} from stock"
            )
    return result


if __name__ == "__main__":
    worker(sys.argv[1])
