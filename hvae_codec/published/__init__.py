"""Checkpoints of published models."""
