"""Sweeps: many runs of one problem, in folders side by side."""
