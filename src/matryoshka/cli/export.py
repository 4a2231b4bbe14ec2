"""matryoshka export: coders in the files of another program."""

import argparse
from pathlib import Path

from matryoshka.cli.flags import add_runs, count
from matryoshka.interop import WRITTEN

SUMMARY = "Write coders in the files of another program: SAELens, circuit-tracer, sparsify and others."


def define(parser: argparse.ArgumentParser) -> None:
    add_runs(parser)
    add = parser.add_argument
    add("folder", type=Path, metavar="FOLDER", help="new folder for the files")
    add("--format", required=True, metavar="NAME", help=f"one of: {', '.join(WRITTEN)}")
    add("--prefix", type=count, metavar="N", help="the first N latents alone: one of the coder's prefixes")
    add("--overwrite", action="store_true", help="replace the export that lies there")


def run(arguments: argparse.Namespace) -> None:
    from matryoshka import api

    print(api.export(**vars(arguments)))
