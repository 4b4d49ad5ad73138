"""What is measured on trajectories; sub-packages: comparison (runs side by side), studies (runnable)."""

# The studies under their import paths of before, sdeflow.analysis.NAME. Goes with the next release.
__path__.append(f"{__path__[0]}/studies")
