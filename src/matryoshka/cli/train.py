"""matryoshka train: from text and a language model to trained, measured coders."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from matryoshka.cli.flags import add_flags, overrides
from matryoshka.cli.tables import console, new_table, show_run
from matryoshka.training.recipe import Config

if TYPE_CHECKING:
    from matryoshka.training.preview import Preview

SUMMARY = "Train coders on a language model, and measure them on held-out text."


def define(parser: argparse.ArgumentParser) -> None:
    parser.usage = "%(prog)s [RECIPE] [--FIELD VALUE ...] [--out FOLDER] [--overwrite] [--dry-run]"
    add = parser.add_argument
    add("--out", type=Path, help="folder of the run [runs/<sae|transcoder>/<base model>/<name>]")
    add("--overwrite", action="store_true", help="delete the run that lies there")
    add("--dry-run", action="store_true", help="check everything, say what it will make and take, and stop")
    add("recipe", nargs="?", type=Path, help="YAML file of the fields below; flags override it")
    add_flags(parser, Config)


def run(arguments: argparse.Namespace) -> None:
    flags = overrides(arguments)
    config = Config.load(arguments.recipe, flags) if arguments.recipe else Config.build(flags)

    from matryoshka import api

    if arguments.dry_run:
        _show_preview(api.preview(config, arguments.out, arguments.overwrite))
    else:
        show_run(api.train(config, arguments.out, arguments.overwrite))


def _show_preview(shown: "Preview") -> None:
    """Where a run will lie, what it trains, and what it takes."""
    table = new_table(str(shown.path), "coder", "reads", "writes", "latents", "prefixes")
    for coder in shown.coders:
        reads, writes = (" + ".join(map(str, sites)) for sites in (coder.wiring.reads, coder.wiring.writes))
        table.add_row(coder.label, reads, writes, f"{coder.coder.d_sae:,}", " ".join(map(str, coder.coder.widths)))
    console.print(table)
    table = new_table("Memory, upper bounds", "", "GB", "")
    table.columns[-1].justify = "left"
    for item in shown.memory:
        table.add_row(item.name, f"{item.bytes / 1e9:.2f}", item.detail)
    table.add_section()
    table.add_row("in all", f"{sum(item.bytes for item in shown.memory) / 1e9:.2f}", "")
    console.print(table)
    minutes = max(1, round(shown.seconds / 60))
    duration = f"{minutes} min" if minutes < 90 else f"{minutes / 60:.0f} h"
    console.print(
        f"{shown.steps:,} steps of {shown.batch:,} tokens, peak learning rate {shown.lr:g}: roughly {duration} of"
        f" training here, then its evaluation; at most {shown.disk / 1e9:.2f} GB on disk",
        soft_wrap=True,
    )
