"""Pixtral is a vision tower: it has no loss to fuse."""
