"""The process of test_disabled_by_environment: `disabled_operator_worker.py FILE`, with LIGER_DISABLE in its environment.

FILE holds the cases that run on torch now, and every case's arguments and native results. Here no function of the native
library can be called: what still gives its results runs on torch alone, and whatever was not disabled must fail.
"""

from __future__ import annotations

import sys

import pytest
import torch
from test_operators import CASES, run

from liger_kernel import _native


class CalledNative(Exception):
    pass


def refuse(*_):
    raise CalledNative


def close(a, b, dtype):
    """Up to a few roundings to the operands' dtype, measured against the largest element. torch rounds in between too
    (the logits of a linear loss), so this holds for a loss in f32 as well."""
    budget = 3 * torch.finfo(dtype).eps + 32 * torch.finfo(torch.float32).eps
    return a.dtype is b.dtype and (a - b).abs().max() <= budget * b.abs().max()


def main(file):
    library = _native.load()
    for name in dir(library):
        if callable(getattr(library, name)) and not name.startswith("_"):
            setattr(_native, name, refuse)
    on_torch, native_results = torch.load(file, weights_only=False)
    for name, args, up, expected in native_results:
        if name in on_torch:
            results = run(CASES[name], args, up)
            assert all(close(a, b, args[0].dtype) for a, b in zip(results, expected, strict=True)), name
        else:
            with pytest.raises(CalledNative):
                run(CASES[name], args, up)


if __name__ == "__main__":
    main(*sys.argv[1:])
