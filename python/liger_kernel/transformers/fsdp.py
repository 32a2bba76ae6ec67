"""Run something else than forward inside an FSDP unit, so that its parameters are gathered while it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn


class _FSDPForwardRedirection:
    """`redirection(wrapper, method, *args, **kwargs)` = `method(*args, **kwargs)`, called by `wrapper`'s own forward.

    FullyShardedDataParallel gathers the parameters of the module it wraps only while that module runs, and gathers them
    again in backward only for what came out of it. So the wrapped module's forward is replaced for one call.
    """

    def __call__(self, wrapper_module: nn.Module, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        from torch.distributed.fsdp import FullyShardedDataParallel

        assert isinstance(wrapper_module, FullyShardedDataParallel), (
            f"_FSDPForwardRedirection needs a FullyShardedDataParallel module, got {type(wrapper_module).__name__}"
        )
        # What the wrapper itself calls: an activation-checkpoint wrapper in between would otherwise run `method` again.
        return instead_of_forward(wrapper_module, wrapper_module._fsdp_wrapped_module, method, *args, **kwargs)


def instead_of_forward(wrapper: nn.Module, inner: nn.Module, method: Callable[..., Any], *args: Any, **kwargs: Any):
    """`method(*args, **kwargs)`, called by `wrapper(...)` in the place of the forward of `inner`, which it is or wraps."""
    own = inner.__dict__.get("forward")

    def restore() -> None:
        if own is None:
            inner.__dict__.pop("forward", None)
        else:
            inner.__dict__["forward"] = own

    def redirected(*inner_args: Any, **inner_kwargs: Any) -> Any:
        restore()  # first, because `method` may call the module
        return method(*inner_args, **inner_kwargs)

    inner.__dict__["forward"] = redirected
    try:
        return wrapper(*args, **kwargs)
    finally:
        restore()
