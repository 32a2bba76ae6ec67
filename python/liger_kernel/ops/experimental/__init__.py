"""Operators whose interface may still change."""
