"""Modules whose interface may still change."""

from liger_kernel.transformers.experimental.embedding import LigerEmbedding

__all__ = ["LigerEmbedding"]
