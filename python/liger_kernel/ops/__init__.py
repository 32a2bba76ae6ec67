"""Autograd Functions and their `x_forward` / `x_backward` helpers, one module per operator.

The names are those of `liger_kernel._exports`; each operator is imported when one of them is first asked for.
"""

from __future__ import annotations

from typing import Any

from liger_kernel import _exports

_OFFERED = _exports.homes(__name__, "ops")
__all__ = sorted(_OFFERED)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    return _exports.find(__name__, name, _OFFERED)


def __dir__() -> list[str]:
    return sorted({*globals(), *_OFFERED})
