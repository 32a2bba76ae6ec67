"""What distillation losses of others derive from: not built yet, so that deriving works and running does not."""

from __future__ import annotations

from typing import Any

import torch


class LigerFusedLinearDistillationBase(torch.autograd.Function):
    """The base of losses between a student's and a teacher's logits."""

    @classmethod
    def forward(cls, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(
            f"liger_kernel has no LigerFusedLinearDistillationBase yet: {cls.__name__} cannot run"
        )
