"""The programs in examples/ that train in plain torch, run as users run them: what they are about has to grow."""

from __future__ import annotations

import pathlib
import re

import own_process
import pytest

EXAMPLES = pathlib.Path(__file__).resolve().parents[2] / "examples"


@pytest.mark.parametrize(
    ("words", "grow"),
    [
        (["dpo.py", "--steps", "12"], {"margin": 3.0, "held out": 3.0}),
        (["grpo.py", "--rounds", "16"], {"reward": 0.3}),
    ],
    ids=["dpo", "grpo"],
)
def test_it_learns(words, grow):
    said = own_process.output(EXAMPLES / words[0], *words[1:], timeout=120)
    for number, least in grow.items():
        first, *_, last = (float(value) for value in re.findall(rf"{number} +(-?\d+\.\d+)", said))
        assert first < least / 2 and last >= least, said
    assert re.search(r"the logits of a step, never made, would take \d+\.\d MB", said)
