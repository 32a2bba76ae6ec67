"""Modules whose interface may still change."""

from liger_kernel.ops.experimental.mm_int8int2 import matmul

__all__ = ["matmul"]
