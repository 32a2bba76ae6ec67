#!/usr/bin/env python3
"""Writes docs/models.md from the model table: what is patched where, what is left alone, and why.

gen_models_doc.py            writes the page
gen_models_doc.py --check    exit status 1 if the page is not what the table says
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "models.md"
sys.path.insert(0, str(ROOT / "python"))

from liger_kernel.transformers import model_table  # noqa: E402
from liger_kernel.transformers.rows import Head, Kind, Row  # noqa: E402

INTRODUCTION = """\
# Models

What `apply_liger_kernel_to_<family>` patches. Without a model it replaces the names of the family's modelling module, for
models that are built later; with `model=` it changes that one model, and of it only modules of the classes named here whose
forward is still their own. Everything else keeps Hugging Face's code. `AutoLigerKernelForCausalLM`, `_apply_liger_kernel`
and the Trainer's `use_liger_kernel` choose the function by the model type.

This page is written by `tools/gen_models_doc.py` from `python/liger_kernel/transformers/model_table.py`.

* **Paths** lead from the text model; `*` stands for each layer.
* **Rotary embedding** is replaced in the modelling module, so for every model of the family.
* **The loss** is fused with the output projection in training, where logits are then None. With another `loss_function`, a
  hook on the head, an adapter on it or a forward of the model's own, logits are materialised and a warning says why.
* **cross_entropy=True** replaces the plain loss instead, for the whole process; the two exclude each other.
* **Activations** in `ACT2FN` stay as they are. `relu2`, which `LigerReLUSquared` computes, is in no family here: a model that
  has it can be given the module by hand, `mlp.act_fn = LigerReLUSquared()`.
"""

ROPE = {
    "liger_rotary_pos_emb": "halves",
    "liger_rotary_pos_emb_gpt_oss": "halves, one column for each pair",
    "liger_multimodal_rotary_pos_emb": "three planes of angles",
    "liger_rotary_pos_emb_vision": "halves, in the vision tower",
    "rotary_pos_emb_of_images": "halves",
}


def code(*names: str) -> str:
    return ", ".join(f"`{name}`" for name in names)


def bare(name: str) -> str:
    return name.rpartition(".")[2]


def loss(head: Head) -> str:
    notes = []
    if head.softcap:
        notes.append("capped")
    if head.multiplier:
        notes.append(f"logits times {code(head.multiplier)}")
    if head.router_loss:
        notes.append("with the router's loss where router logits are asked for")
    return f" ({', '.join(notes)})" if notes else ""


def where(row: Row, kind: Kind) -> str:
    below = kind.part or row.text
    paths = [f"{below}.{path}" if below else path for path in kind.paths]
    return code(*paths) if paths else f"{code(*(kind.replaced or kind.classes))} of new models"


def lines(row: Row) -> Iterator[tuple[str, str, str, str]]:
    """(flag, what, becomes, where)"""
    for rope in row.rope:
        yield "rope", code(rope.attribute), ROPE[rope.ours], code(row.module)
    for kind in row.kinds:
        for name, ours in kind.classes.items():
            yield kind.flag, code(bare(name)), code(ours.__name__), where(row, kind)
    for name, head in row.heads.items():
        yield "fused_linear_cross_entropy", code(name), "fused loss" + loss(head), "forward"
    for path in row.parts:
        yield "all", code(path), "by the row of its own model type", code(path)


def alone(row: Row) -> Iterator[str]:
    for name, reason in row.alone.items():
        flag = f"{code(name)} (a warning if true)" if name in row.flags else code(bare(name))
        yield f"{flag}: {reason}"
    for flag, reason in row.refused.items():
        yield f"{code(flag)} (NotImplementedError if true): {reason}"
    if row.experts:
        yield f"{code(row.experts)}: ours is not faster than these fused experts (a warning if `swiglu` is given as true)"
    if not row.rope and "rope" in row.flags and "rope" not in (*row.alone, *row.refused) and not row.parts:
        yield "rotary embedding"


def section(row: Row) -> Iterator[str]:
    yield f"## {row.name}"
    yield ""
    defaults = ", ".join(f"{name}={value}" for name, value in row.flags.items())
    yield f"`apply_liger_kernel_to_{row.name}({defaults}, model=None)`; model types {code(*row.types)}"
    yield ""
    yield "| flag | of Hugging Face | becomes | where |"
    yield "| --- | --- | --- | --- |"
    for cells in lines(row):
        yield f"| {' | '.join(cells)} |"
    left = list(alone(row))
    if left:
        yield ""
        yield "Left alone:"
        yield ""
        yield from (f"* {text}" for text in left)
    yield ""


def tower(row: Row) -> str:
    what = "; ".join(f"{code(*map(bare, kind.classes))} at {code(*kind.paths)}" for kind in row.kinds)
    return f"* {code(row.name)}: {what}"


def page() -> str:
    parts = [INTRODUCTION]
    parts += ["\n".join(section(row)) for row in model_table.ROWS]
    towers = "\n".join(tower(row) for row in model_table.TOWERS)
    parts.append(f"## Vision towers\n\nPatched as parts of the models above:\n\n{towers}\n")
    return "\n".join(parts)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    if not parser.parse_args().check:
        PAGE.write_text(page())
        return 0
    if PAGE.read_text() == page():
        return 0
    print("docs/models.md is not what the model table says: run tools/gen_models_doc.py")
    return 1


if __name__ == "__main__":
    sys.exit(main())
