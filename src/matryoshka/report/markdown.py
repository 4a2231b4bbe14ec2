"""The report of an evaluation: report.md for people, scores.json and scores.parquet for their programs."""

import json
import re
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from matryoshka.files import write_bytes, write_text
from matryoshka.report.cells import Cell, cell, counted, numbers
from matryoshka.scores.comparison import Entry, columns, differences, reasons, tidy, verdict

TEXT, WHOLE, REAL = pa.string(), pa.int64(), pa.float64()
TIDY = pa.schema(
    [
        *(("entry", TEXT), ("seed", WHOLE), ("evaluation", TEXT), ("name", TEXT), ("width", WHOLE)),
        *((name, REAL) for name in ("value", "low", "high", "null")),
        *(("unit", TEXT), ("units", WHOLE)),
    ]
)


def write(entries: Sequence[Entry], folder: Path) -> Path:
    """Write report.md, scores.json and scores.parquet on all `entries` into `folder`; the report."""
    folder.mkdir(parents=True, exist_ok=True)
    write_scores(entries, folder)
    write_text(folder / "report.md", markdown(entries))
    return folder / "report.md"


def write_scores(entries: Sequence[Entry], folder: Path) -> None:
    """Write scores.json and scores.parquet on all `entries` into `folder`."""
    write_text(folder / "scores.json", json.dumps(tidy(entries), indent=2) + "\n")
    write_bytes(folder / "scores.parquet", parquet(entries))


def parquet(entries: Sequence[Entry]) -> bytes:
    """`tidy` as a Parquet file."""
    file = BytesIO()
    pq.write_table(pa.Table.from_pylist(tidy(entries), TIDY), file, compression="zstd")
    return file.getvalue()


def markdown(entries: Sequence[Entry]) -> str:
    """The report: the table, the differences, every score of every prefix, what each means, what was not measured."""
    head = ["# Evaluation", "", *table(entries), ""]
    return "\n".join([*head, *body(entries), "## What the scores mean", "", *legend(entries), ""])


def body(entries: Sequence[Entry], level: str = "##") -> list[str]:
    """The same without the table and without what each score means, below headings of this `level`."""
    parts = []
    if notes := reasons(entries):
        parts += [f"{level} Not measured", "", *(f"- {note}" for note in notes), ""]
    if len(entries) > 1:
        parts += [f"{level} Differences from {entries[0].label}", "", *_differences(entries), ""]
    for entry in entries:
        parts += [f"{level} {entry.label}, prefix by prefix", "", *_prefixes(entry), ""]
    return parts


def table(entries: Sequence[Entry], first: str = "") -> list[str]:
    """A row an entry, a column a score; `first` stands above the entries."""
    heads = columns(entries)
    rows = [[counted(entry), *(joined(cell(entry.scores(column))) for column in heads)] for entry in entries]
    return lines([first, *(column.head for column in heads)], rows)


def _differences(entries: Sequence[Entry]) -> list[str]:
    rows = [
        [difference.entry.label, difference.column.head, *numbers(difference), verdict(difference)]
        for difference in differences(entries)
    ]
    return lines(["", "score", "difference", "95 % interval", "detectable", "verdict"], rows)


def _prefixes(entry: Entry) -> list[str]:
    widths = entry.widths()
    rows = [
        [column.head, *(joined(cell(entry.scores(column, width))) for width in widths)]
        for column in columns([entry], headlines=False)
    ]
    return lines(["score", *(f"first {width:,}" for width in widths)], rows)


def legend(entries: Sequence[Entry]) -> list[str]:
    """What every score means, its units and its null."""
    items = []
    for column in columns(entries, headlines=False):
        measure = column.measure
        null = f" Null: {measure.null}." if measure.null else ""
        items.append(f"- **{column.head}** (units: {measure.unit}). {measure.meaning}{null}")
    said = "Intervals hold 95 % of 1,000 resamplings of the units; of several seeds, ± is their standard deviation."
    return [*items, "", said]


def joined(cell: Cell) -> str:
    """Value, interval and null in one line."""
    more = "; ".join(part for part in (cell.spread, cell.null) if part)
    return f"{cell.value} ({more})" if more else cell.value


def plain(text: str) -> str:
    """Text of which Markdown makes no more, whatever stands in it."""
    inline = re.sub(r"[\\`*_\[\]<>&~]", r"\\\g<0>", text)
    return re.sub(r"^(\d*)([#+=.)-]+)(?=\s|$)", r"\1\\\2", inline)


def lines(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table; a name with a bar in it cannot break it."""
    cells = ([text.replace("|", "\\|") for text in row] for row in (heads, ["---"] * len(heads), *rows))
    return [f"| {' | '.join(row)} |" for row in cells]
