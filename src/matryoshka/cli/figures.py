"""matryoshka figures: figures for papers, beside the run."""

import argparse

from matryoshka.cli.flags import add_run

SUMMARY = "Draw training curves, FVU of each prefix and densities as PNG and SVG."
define = add_run


def run(arguments: argparse.Namespace) -> None:
    from matryoshka import api

    for path in api.figures(arguments.run):
        print(path)
