"""matryoshka compare: what matches what between coders, two at a time."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from rich.text import Text

from matryoshka.cli.flags import add_device, add_runs, add_text, add_valued, count
from matryoshka.cli.tables import console, new_table
from matryoshka.defaults import COMPARED_TOKENS

if TYPE_CHECKING:
    from matryoshka.report.compared import Compared
    from matryoshka.scores.result import Score

SUMMARY = "Match the features of coders on the same text: what is kept, processed, vanished, newborn."
SHOWN = ("kept", "processed", "vanished", "newborn", "Pearson", "Jaccard", "cosine")
"""Rows of the table, a column a side; what is of both sides follows."""


def define(parser: argparse.ArgumentParser) -> None:
    add_runs(parser)
    add = parser.add_argument
    add_valued(
        parser, "--tokens", count, "N", COMPARED_TOKENS, "held-out tokens to read, once for all coders of a model"
    )
    add_text(parser)
    add(
        "--consecutive",
        action="store_true",
        help="each coder with the next one alone, and chains over all, such as layers",
    )
    where = "where report.md, scores and figures go [RUN/comparison; of several runs ./comparison]"
    add("--out", type=Path, metavar="FOLDER", help=where)
    add_device(parser)


def run(arguments: argparse.Namespace) -> None:
    from matryoshka import api

    compared = api.compare(**vars(arguments))
    _show(compared)
    _show_chains(compared)
    print(f"\nreport: {compared.report}")


def _show(compared: "Compared") -> None:
    """A table a pair: what was found of A's latents and of B's, its interval, and what chance gives."""
    for pair in compared.pairs:
        if pair.result.reason is not None:
            console.print(Text(f"{pair.label}: not measured: {pair.result.reason}"), soft_wrap=True)
            continue
        scores = {score.measure.name: score for score in pair.result.scores}
        table = new_table(pair.label, "", "A", "B")
        for name in SHOWN:
            cells = [scores.pop(f"{name} of {side}", None) for side in "AB"]
            alone = scores.pop(name, None)
            if alone is not None:
                cells[name == "newborn"] = alone
            if any(cells):
                table.add_row(name, *map(_cell, cells))
        for name, score in scores.items():
            if not name.startswith("lift"):
                table.add_row(name, _cell(score), "")
        console.print(table)


def _show_chains(compared: "Compared") -> None:
    """What is of all coders together: how far features go on, and what removing them does."""
    from matryoshka.report.cells import cell

    if compared.chains is None:
        return
    result = compared.chains.result
    if result.reason is not None:
        console.print(Text(f"chains: not measured: {result.reason}"), soft_wrap=True)
        return
    table = new_table("chains", "", "value", "95 % interval", "null")
    for score in result.scores:
        if score.measure.headline:
            value, spread, null = cell([score])
            table.add_row(score.measure.name, value, spread, null.removeprefix("null "))
    console.print(table)


def _cell(score: "Score | None") -> Text:
    from matryoshka.report.cells import cell

    if score is None:
        return Text("")
    value, spread, null = cell([score])
    return Text.assemble((value, "bold"), (f"  {spread}\n{null}", "dim"))
