"""matryoshka export-page: the page as a folder that opens without a server."""

import argparse
from pathlib import Path

from matryoshka.cli.flags import add_run
from matryoshka.run import Run

SUMMARY = "Write the same page as a folder that opens without a server."


def define(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="new folder for the page")
    parser.add_argument("--overwrite", action="store_true", help="replace the page that lies there")


def run(arguments: argparse.Namespace) -> None:
    Run.sole(arguments.run)  # refused now if it has several coders

    from matryoshka import api

    print(api.export_page(**vars(arguments)))
