"""matryoshka features: every feature's evidence, from text it was not trained on."""

import argparse
from typing import TYPE_CHECKING

from matryoshka.cli.flags import add_device, add_runs, add_text, count
from matryoshka.cli.tables import console, show_features
from matryoshka.defaults import FEATURE_TOKENS

if TYPE_CHECKING:
    from matryoshka.features.collection import Needs

SUMMARY = "Collect every feature's evidence from text it was not trained on."


def define(parser: argparse.ArgumentParser) -> None:
    add_runs(parser)
    add = parser.add_argument
    add("--tokens", type=count, default=FEATURE_TOKENS, help=f"tokens to read [{FEATURE_TOKENS / 1e6:g}e6]")
    add_text(parser)
    add("--split", choices=["held_out", "train"], default="held_out", help="which documents of the text [%(default)s]")
    add("--overwrite", action="store_true", help="collect anew; labels, notes and explanations are kept")
    delete = "delete RUN/recording, from which the same features are made again without the language model"
    add("--no-recording", dest="keep_recording", action="store_false", help=delete)
    add_device(parser)


def run(arguments: argparse.Namespace) -> None:
    from matryoshka import api

    stores = api.features(**vars(arguments), announce=_show_needs)
    for store in stores:
        show_features(store)
    if stores:
        print(f"\nlook at them: matryoshka serve {' '.join(str(run.path) for run in arguments.runs)}")


def _show_needs(needed: "Needs") -> None:
    """What collecting features takes."""
    console.print(
        f"collecting takes at most {needed.memory / 1e9:.1f} GB of memory beside the models,"
        f" and {needed.disk / 1e9:.1f} GB of disk for its recording",
        soft_wrap=True,
    )
