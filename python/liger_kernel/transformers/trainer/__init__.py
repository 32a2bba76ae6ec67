"""Trainers over TRL's."""

from __future__ import annotations

import importlib.util

if importlib.util.find_spec("trl") is None:
    raise ImportError("liger_kernel.transformers.trainer derives its trainers from TRL's: install trl")

from liger_kernel.transformers.trainer.orpo_trainer import LigerORPOTrainer  # noqa: E402

__all__ = ["LigerORPOTrainer"]
