"""Schemes side by side on one problem: what was measured, what theory says, and the page that tells it."""
