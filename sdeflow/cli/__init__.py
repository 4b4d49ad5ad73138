"""The command line, above all else."""

from sdeflow.cli.commands import main as main
