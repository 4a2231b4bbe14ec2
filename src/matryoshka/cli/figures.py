"""matryoshka figures: figures for papers, beside the run."""

import argparse

from matryoshka.cli.flags import add_run
from matryoshka.run import Run

SUMMARY = "Draw training curves, FVU of each prefix and densities as PNG and SVG."


def define(parser: argparse.ArgumentParser) -> None:
    """The run."""
    add_run(parser)


def run(arguments: argparse.Namespace) -> None:
    """Draw them, and print where they are."""
    drawn = Run.open(arguments.run)

    from matryoshka import api

    for path in api.figures(drawn):
        print(path)
