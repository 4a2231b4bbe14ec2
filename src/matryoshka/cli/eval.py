"""matryoshka eval: the suite of evaluations, runs side by side."""

import argparse
import json
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from rich.text import Text

from matryoshka.cli.flags import add_device, add_runs, add_text, add_valued, count
from matryoshka.cli.tables import console, new_table
from matryoshka.defaults import EVALUATION_TOKENS
from matryoshka.evaluation.table import EVERY_EVALUATION

if TYPE_CHECKING:
    from matryoshka.report.cells import Cell
    from matryoshka.scores.comparison import Entry

SUMMARY = "Measure the coders of runs and compare them: a table, and a report beside it."


def define(parser: argparse.ArgumentParser) -> None:
    add_runs(parser)
    add = parser.add_argument
    add("--only", nargs="+", default=[], metavar="NAME", help=f"some of: {', '.join(EVERY_EVALUATION)}")
    add_valued(parser, "--tokens", count, "N", EVALUATION_TOKENS, "held-out tokens, or fresh samples, to measure on")
    add_text(parser)
    add("--labels", type=Path, nargs="+", default=[], metavar="FILE", help="labelled text of yours as well (JSONL)")
    where = "where report.md, scores.json and scores.parquet go [RUN/evaluation; of several runs ./evaluation]"
    add("--out", type=Path, metavar="FOLDER", help=where)
    add("--overwrite", action="store_true", help="measure anew what is measured already")
    add("--json", action="store_true", help="print JSON instead of tables")
    add_device(parser)


def run(arguments: argparse.Namespace) -> None:
    from matryoshka import api
    from matryoshka.scores.comparison import tidy

    options = vars(arguments)
    as_json = options.pop("json")
    evaluated = api.evaluate(**options)
    if as_json:
        print(json.dumps(tidy(evaluated.entries), indent=2))
    else:
        _show_entries(evaluated.entries)
        print(f"\nreport: {evaluated.report}")


def _show_entries(entries: "Sequence[Entry]") -> None:
    """What several coders scored: a row a coder or recipe; then how they differ, or of a single coder its prefixes."""
    from matryoshka.report import cells
    from matryoshka.scores import comparison

    columns = comparison.columns(entries)
    heads = [column.head for column in columns]
    rows = {cells.counted(entry): [_cell(cells.cell(entry.scores(column))) for column in columns] for entry in entries}
    _show_wrapped("", heads, rows)
    if len(entries) > 1:
        _show_differences(entries)
    elif len(widths := entries[0].widths()) > 1:
        prefixes = {n: [cells.cell(entries[0].scores(column, n)) for column in columns] for n in widths}
        rows = {f"first {n:,}": [Text(cell.value) for cell in row] for n, row in prefixes.items()}
        _show_wrapped("prefix", heads, rows)
    for note in comparison.reasons(entries):
        console.print(Text(f"not measured: {note}"), soft_wrap=True)


def _cell(cell: "Cell") -> Text:
    lines = [Text(cell.value, "bold"), *(Text(part, "dim") for part in (cell.spread, cell.null) if part)]
    return Text("\n").join(lines)


def _show_wrapped(corner: str, heads: Sequence[str], rows: Mapping[str, Sequence[Text]]) -> None:
    """One table, in as many blocks of columns as the terminal's width needs."""
    needs = [
        3 + max(len(line) for text in (head, *(row[i].plain for row in rows.values())) for line in text.split("\n"))
        for i, head in enumerate(heads)
    ]
    left = 4 + max(map(len, (corner, *rows)))
    start = 0
    while start < len(heads):
        end, used = start + 1, left + needs[start]
        while end < len(heads) and used + needs[end] < console.width:
            used, end = used + needs[end], end + 1
        table = new_table(None, corner, *heads[start:end])
        for label, cells in rows.items():
            table.add_row(label, *cells[start:end])
        console.print(table)
        start = end


def _show_differences(entries: "Sequence[Entry]") -> None:
    from matryoshka.report import cells
    from matryoshka.scores import comparison

    noise = 0
    for entry, of_entry in groupby(comparison.differences(entries), key=lambda difference: difference.entry):
        title = f"{entry.label}, against {entries[0].label}"
        table = new_table(title, "score", "difference", "detectable", "verdict")
        for difference in of_entry:
            noise += difference.inside_noise
            value, interval, detectable = cells.numbers(difference)
            shown = _cell(cells.Cell(value, interval, ""))
            table.add_row(difference.column.head, shown, detectable, comparison.verdict(difference))
        console.print(table)
    if noise:
        console.print(
            f"{noise} of these differences {'is' if noise == 1 else 'are'} inside the noise: zero lies in the interval."
            " `detectable` is the least difference that such a comparison finds four times in five.",
            soft_wrap=True,
        )
