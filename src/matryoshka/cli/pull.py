"""matryoshka pull: coders of a repository on the hub as a run."""

import argparse
from pathlib import Path

from matryoshka.cli.tables import show_imported

SUMMARY = "Fetch coders in SAELens' files from the hub, several at once, as a run."


def define(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("source", metavar="REPO", help="user/repo[@revision], or a release of matryoshka releases")
    add(
        "names", nargs="*", metavar="CODER", help="its coders, such as blocks.8.hook_resid_post [all of the repository]"
    )
    add("--out", type=Path, metavar="FOLDER", help="folder of the run [runs/imported/MODEL/NAME]")
    add("--overwrite", action="store_true", help="delete the run that lies there")


def run(arguments: argparse.Namespace) -> None:
    from matryoshka import api

    show_imported(api.pull(**vars(arguments)))
