"""The programs in examples/ that train in plain torch, run as users run them: what they are about has to grow, or to shrink."""

from __future__ import annotations

import pathlib
import re

import own_process
import pytest

EXAMPLES = pathlib.Path(__file__).resolve().parents[2] / "examples"


@pytest.mark.parametrize(
    ("words", "grow", "shrink"),
    [
        (["dpo.py", "--steps", "12"], {"margin": 3.0, "held out": 3.0}, {}),
        (["grpo.py", "--rounds", "16"], {"reward": 0.3}, {}),
        (["distill.py", "--steps", "80"], {}, {"from states": 0.4, "from lists": 0.5}),
    ],
    ids=["dpo", "grpo", "distill"],
)
def test_it_learns(words, grow, shrink):
    said = own_process.output(EXAMPLES / words[0], *words[1:], timeout=120)

    def first_and_last(number):
        found = [float(value) for value in re.findall(rf"{number} +(-?\d+\.\d+)", said)]
        return found[0], found[-1]

    for number, least in grow.items():
        first, last = first_and_last(number)
        assert first < least / 2 and last >= least, said
    for number, most in shrink.items():
        first, last = first_and_last(number)
        assert first > 2 * most and last <= most, said
    assert re.search(r"the logits of a step, never made, would take \d+\.\d MB", said)
