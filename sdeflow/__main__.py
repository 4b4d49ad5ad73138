"""`python -m sdeflow` is the `sdeflow` command."""

from sdeflow.cli import main

main()
