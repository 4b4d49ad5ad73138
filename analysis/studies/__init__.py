"""Runnable studies, python -m sdeflow.analysis.studies.NAME, and what they share."""
