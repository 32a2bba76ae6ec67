"""Trainers over TRL's: none yet."""
