"""Checkpoints and the predictions that they make."""
