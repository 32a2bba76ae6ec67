"""Modules whose interface may still change."""

from liger_kernel.ops.experimental.mm_int8int2 import matmul
from liger_kernel.transformers.experimental.embedding import LigerEmbedding

__all__ = ["LigerEmbedding", "matmul"]
