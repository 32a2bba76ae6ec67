"""Arguments that choose an implementation by its name. There is one, `liger-c`, and what is chosen changes nothing."""

from __future__ import annotations

import functools
import warnings


def accept(operator: str, name: str | None, mode: str | None) -> None:
    """Silent for None, "liger-c" and the mode "default"; any other choice gives a UserWarning, once."""
    if name in (None, "liger-c") and mode in (None, "default"):
        return
    _warn_once(operator, name, mode)


@functools.cache
def _warn_once(operator: str, name: str | None, mode: str | None) -> None:
    warnings.warn(
        f"{operator}: implementation {name!r}, mode {mode!r}: there is one implementation, 'liger-c', which runs instead",
        stacklevel=4,
    )
