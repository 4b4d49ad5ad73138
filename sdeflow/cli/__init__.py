"""The command line, above all else."""

from sdeflow.cli.main import main as main
