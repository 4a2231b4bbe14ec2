"""matryoshka features: every feature's evidence, from text it was not trained on."""

import argparse
from typing import TYPE_CHECKING

from matryoshka.cli.flags import add_run, count
from matryoshka.cli.tables import console, show_features
from matryoshka.defaults import FEATURE_TOKENS
from matryoshka.run import Run

if TYPE_CHECKING:
    from matryoshka.features.collect import Needs

SUMMARY = "Collect every feature's evidence from text it was not trained on."


def define(parser: argparse.ArgumentParser) -> None:
    """The run, and which text."""
    add_run(parser)
    parser.add_argument(
        "--tokens", type=count, default=FEATURE_TOKENS, help=f"tokens to read [{FEATURE_TOKENS / 1e6:g}e6]"
    )
    parser.add_argument("--text", metavar="SOURCE", help="another text than the run's: a file, folder or data set")
    parser.add_argument(
        "--split", choices=["held_out", "train"], default="held_out", help="which documents of the text [%(default)s]"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="collect anew; labels, notes and explanations are kept"
    )


def run(arguments: argparse.Namespace) -> None:
    """Say what it takes, collect, and show what is there."""
    studied = Run.open(arguments.run)

    from matryoshka import api

    stores = api.features(
        studied, arguments.tokens, arguments.text, arguments.split, arguments.overwrite, announce=_show_needs
    )
    for store in stores:
        show_features(store)
    if stores:
        print(f"\nlook at them: matryoshka serve {arguments.run}")


def _show_needs(needed: "Needs") -> None:
    """What collecting features takes."""
    console.print(
        f"collecting takes at most {needed.memory / 1e9:.1f} GB of memory beside the models,"
        f" and {needed.disk / 1e9:.1f} GB of disk until it is done",
        soft_wrap=True,
    )
