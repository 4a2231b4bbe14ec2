"""matryoshka train: from text and a language model to trained, measured coders."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from matryoshka.cli.flags import add_flags, overrides
from matryoshka.cli.tables import console, new_table, show_run
from matryoshka.training.recipe import Config

if TYPE_CHECKING:
    from matryoshka.training.memory import Item

SUMMARY = "Train coders on a language model, and measure them on held-out text."


def define(parser: argparse.ArgumentParser) -> None:
    """A recipe, its fields as flags, and the run's folder."""
    parser.usage = "%(prog)s [RECIPE] [--FIELD VALUE ...] [--out FOLDER] [--overwrite] [--dry-run]"
    parser.add_argument("--out", type=Path, help="folder of the run [runs/<sae|transcoder>/<base model>/<name>]")
    parser.add_argument("--overwrite", action="store_true", help="delete the run that lies there")
    parser.add_argument("--dry-run", action="store_true", help="check everything, print the memory it needs, and stop")
    parser.add_argument("recipe", nargs="?", type=Path, help="YAML file of the fields below; flags override it")
    add_flags(parser, Config)


def run(arguments: argparse.Namespace) -> None:
    """Train, or say what it would take."""
    flags = overrides(arguments)
    config = Config.load(arguments.recipe, flags) if arguments.recipe else Config.build(flags)

    from matryoshka import api

    if arguments.dry_run:
        _show_memory(api.memory(config))
    else:
        show_run(api.train(config, arguments.out, arguments.overwrite))


def _show_memory(items: "Sequence[Item]") -> None:
    """What a run will hold in memory."""
    table = new_table("Memory of this run, upper bounds", "", "GB", "")
    table.columns[-1].justify = "left"
    for item in items:
        table.add_row(item.name, f"{item.bytes / 1e9:.2f}", item.detail)
    table.add_section()
    table.add_row("in all", f"{sum(item.bytes for item in items) / 1e9:.2f}", "")
    console.print(table)
