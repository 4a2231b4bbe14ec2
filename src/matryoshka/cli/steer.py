"""matryoshka steer: what the model writes with a feature held high, beside what it writes without."""

import argparse
from functools import partial
from typing import TYPE_CHECKING

from rich.text import Text

from matryoshka.cli.flags import add_device, add_run, add_text, add_valued, count
from matryoshka.cli.tables import console, new_table
from matryoshka.defaults import PROMPT, STEERED_TOKENS, STRENGTH, TEMPERATURE
from matryoshka.run import Run

if TYPE_CHECKING:
    from matryoshka.interventions.steering import Steered

SUMMARY = "Let the model write with a feature held high, beside what it writes without."


def define(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    parser.add_argument("feature", type=int, metavar="FEATURE", help="number of a feature")
    add = partial(add_valued, parser)
    add("--strength", float, "X", STRENGTH, "level, in units of its maximum on held-out text")
    add("--prompt", str, "TEXT", PROMPT, "text to go on with")
    add("--tokens", count, "N", STEERED_TOKENS, "tokens to write")
    add("--temperature", float, "X", TEMPERATURE, "0: the likeliest token")
    add("--seed", int, "N", 0, "of the tokens drawn")
    add_text(parser)
    add_device(parser)


def run(arguments: argparse.Namespace) -> None:
    Run.sole(arguments.run)  # refused now if it has several coders

    from matryoshka import api

    _show_steered(api.steer(**vars(arguments)))


def _show_steered(steered: "Steered") -> None:
    """Both continuations side by side, and how far apart the predictions are."""
    from matryoshka.features.feature import printable

    table = new_table(None, "unsteered", f"feature {steered.feature:,} held at {steered.strength:g} × its maximum")
    for column in table.columns:
        column.justify, column.ratio = "left", 1
    table.expand = True
    prompt = (printable(steered.prompt), "dim")
    table.add_row(*(Text.assemble(prompt, printable(text)) for text in (steered.plain, steered.steered)))
    console.print(table)
    unit, kl = steered.unit, sum(steered.kl) / len(steered.kl)
    console.print(
        f"its maximum on {unit.tokens:,} held-out tokens is {unit.maximum:.4g}, so it is held at"
        f" {steered.strength * unit.maximum:.4g} (raw units of the written site)\n"
        f"KL(unsteered ‖ steered) of the next token: {kl:.3g} nats, mean over the steered text",
        soft_wrap=True,
    )
