"""Operators whose interface may still change. Their names are in `liger_kernel.ops` too."""
