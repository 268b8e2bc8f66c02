"""Measures and chooses: rankings, cutoffs, what they cost."""
