"""What the tests of all operators (test_operators*.py, test_disabled.py) need to know of one.

Where an operator's description does not say enough for a valid call, its own test file does, in a list `OWED` of cases; the
older ones stand in test_operators.py.
"""

from __future__ import annotations

import importlib
import pathlib
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

HIDDEN = 24
WITHOUT_GRADIENT = {"int2_matmul"}  # operators on integers, which no Function stands before


WITHOUT_FUNCTION = {  # their own tests check them
    *("scale", "linear_distillation", "mhc_post_res_streams", "mhc_post_res_streams_backward"),
    *("vocab_parallel_logprob", "vocab_parallel_logprob_backward"),
    *("vocab_parallel_cross_entropy", "vocab_parallel_cross_entropy_backward"),
}


@dataclass(frozen=True)
class Case:
    """`make(rows)`: arguments on the CPU, the tensors among them first. `trained`: positions that can have a gradient."""

    name: str
    function: type
    make: Callable[..., list]
    trained: tuple[int, ...]
    results: int = 1  # how many of the results have a gradient

    def __call__(self, *args) -> tuple[Tensor, ...]:
        out = self.function.apply(*args)
        return (out,) if isinstance(out, Tensor) else out[: self.results]


def owed() -> list[Case]:
    """The cases of the operators' own test files."""
    files = sorted(pathlib.Path(__file__).parent.glob("test_*.py"))
    stems = [file.stem for file in files if "\nOWED = " in file.read_text()]
    return [case for stem in stems for case in importlib.import_module(stem).OWED]
