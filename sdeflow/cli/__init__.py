"""The command line, which calls all other rooms and is called by none."""

from sdeflow.cli.main import main as main
