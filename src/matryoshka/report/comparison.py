"""What several coders scored, side by side: one entry a coder (or a recipe's seeds), one column a headline score.

    entries → columns, cells → a table on the terminal, Markdown, tidy rows for JSON and Parquet

Two entries are compared with the first one: unit by unit where both are one coder, by their spread where both are
several seeds. A difference that zero may explain is said to be inside the noise.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from matryoshka.evaluation.scores import Comparison, Measure, Result, Score, compare, compare_seeds, over_seeds
from matryoshka.files import write_bytes, write_text

ARROWS = {"lower": " ↓", "higher": " ↑", "neither": ""}


class Entry(NamedTuple):
    """A row: what one coder scored, or the coders of a recipe that differ in their seeds alone."""

    label: str
    seeds: Sequence[Mapping[str, Result]]
    """The results of each coder, by the evaluation's name."""

    def widths(self) -> list[int]:
        """The prefixes that anything was measured of, ascending."""
        scores = (each for results in self.seeds for result in results.values() for each in result.scores)
        return sorted({each.width for each in scores})

    def scores(self, column: "Column", width: int | None = None) -> list[Score]:
        """The score of each seed, of the prefix `width` (default: the whole dictionary); [] where one lacks it."""
        found = []
        for results in self.seeds:
            result = results.get(column.evaluation)
            of = [each for each in (result.scores if result else ()) if each.measure.name == column.measure.name]
            found += [each for each in of if each.width == (width or max(score.width for score in of))]
        return found if len(found) == len(self.seeds) else []


class Column(NamedTuple):
    """A score of one evaluation."""

    evaluation: str
    measure: Measure
    ambiguous: bool
    """Another evaluation has a score of this name."""

    @property
    def head(self) -> str:
        """Its name, and which way is better."""
        name = f"{self.evaluation}: {self.measure.name}" if self.ambiguous else self.measure.name
        return name + ARROWS[self.measure.better]


class Cell(NamedTuple):
    """A number as people read it: its value, how sure it is, and what chance gives."""

    value: str
    spread: str
    null: str


NOTHING = Cell("–", "", "")


def columns(entries: Sequence[Entry], headlines: bool = True) -> list[Column]:
    """The scores that any entry has, in the order of the evaluations; `headlines`: only those for the table."""
    found: dict[tuple[str, str], Measure] = {}
    for results in (results for entry in entries for results in entry.seeds):
        for name, result in results.items():
            found |= {(name, each.measure.name): each.measure for each in result.scores}
    names = [name for _, name in found]
    return [
        Column(evaluation, measure, names.count(name) > 1)
        for (evaluation, name), measure in found.items()
        if measure.headline or not headlines
    ]


def cell(scores: Sequence[Score]) -> Cell:
    """Of one coder its value, interval and null; of several seeds the mean ± standard deviation."""
    if not scores:
        return NOTHING
    measure = scores[0].measure
    nulls = [each.null for each in scores if each.null is not None]
    null = f"null {shown(math.fsum(nulls) / len(nulls), measure)}" if nulls else ""
    if len(scores) > 1:
        spread = over_seeds(scores)
        return Cell(shown(spread.mean, measure), f"± {shown(spread.deviation, measure)}", null)
    low, high = scores[0].interval
    interval = f"{shown(low, measure)} – {shown(high, measure)}" if math.isfinite(low) else ""
    return Cell(shown(scores[0].value, measure), interval, null)


def shown(value: float, measure: Measure) -> str:
    """With as many digits as mean something to people."""
    if not math.isfinite(value):
        return "–"
    if measure.percent:
        return f"{100 * value:.{1 if value == 0 or abs(value) >= 0.01 else 2}f} %"
    if value == 0 or 0.01 <= abs(value) < 10:
        return f"{value:.3f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.4f}"


class Difference(NamedTuple):
    """How far an entry lies from the first one, in one column."""

    column: Column
    entry: Entry
    found: Comparison | None
    reason: str
    """Why they are not compared."""


def differences(entries: Sequence[Entry]) -> Iterator[Difference]:
    """Each entry after the first, held against it, column by column."""
    for entry in entries[1:]:
        for column in columns(entries):
            yield _difference(column, entries[0], entry)


def _difference(column: Column, first: Entry, entry: Entry) -> Difference:
    a, b = entry.scores(column), first.scores(column)
    if not a or not b:
        return Difference(column, entry, None, "not measured of both")
    if (len(a) > 1) != (len(b) > 1):
        return Difference(column, entry, None, f"{len(a)} against {len(b)} seeds")
    try:
        found = compare_seeds(a, b) if len(a) > 1 else compare(a[0], b[0])
    except ValueError as error:
        return Difference(column, entry, None, str(error))
    if not found.known:
        return Difference(column, entry, None, "one number each, of unknown spread: train several seeds")
    return Difference(column, entry, found, "")


def numbers(difference: Difference) -> tuple[str, str, str]:
    """The difference, its interval and what is detectable, as people read them."""
    if (found := difference.found) is None:
        return "–", "–", "–"
    measure = difference.column.measure
    low, high = shown(found.low, measure), shown(found.high, measure)
    return shown(found.difference, measure), f"{low} to {high}", shown(found.detectable, measure)


def verdict(difference: Difference) -> str:
    """In words: which is better, or that nobody can tell."""
    found, measure = difference.found, difference.column.measure
    if found is None:
        return f"not compared ({difference.reason})"
    if found.inside_noise:
        return "inside the noise"
    if measure.better == "neither":
        return "differs"
    return "better" if (found.difference > 0) == (measure.better == "higher") else "worse"


def reasons(entries: Sequence[Entry]) -> list[str]:
    """Why evaluations found nothing, each once."""
    found: dict[str, list[str]] = {}
    for entry in entries:
        for name, result in (item for results in entry.seeds for item in results.items()):
            if result.reason:
                found.setdefault(f"{name}: {result.reason}", []).append(entry.label)
    return [f"{reason} ({', '.join(dict.fromkeys(labels))})" for reason, labels in found.items()]


def tidy(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """One row a score: its entry, seed (a number), evaluation, prefix, value, interval and null."""
    return [
        {"entry": entry.label, "seed": seed, "evaluation": name, **each.as_json()}
        for entry in entries
        for seed, results in enumerate(entry.seeds)
        for name, result in results.items()
        for each in result.scores
    ]


def parquet(entries: Sequence[Entry]) -> bytes:
    """`tidy` as a Parquet file."""
    file = BytesIO()
    pq.write_table(pa.Table.from_pylist(tidy(entries), TIDY), file, compression="zstd")
    return file.getvalue()


TIDY = pa.schema(
    {
        "entry": pa.string(),
        "seed": pa.int64(),
        "evaluation": pa.string(),
        "name": pa.string(),
        "width": pa.int64(),
        "value": pa.float64(),
        "low": pa.float64(),
        "high": pa.float64(),
        "null": pa.float64(),
        "unit": pa.string(),
        "units": pa.int64(),
    }
)


def write(entries: Sequence[Entry], folder: Path) -> Path:
    """Write report.md, scores.json and scores.parquet on all `entries` into `folder`; the report."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "scores.json", json.dumps(tidy(entries), indent=2) + "\n")
    write_bytes(folder / "scores.parquet", parquet(entries))
    write_text(folder / "report.md", markdown(entries))
    return folder / "report.md"


def markdown(entries: Sequence[Entry]) -> str:
    """The report: the table, the differences, every score of every prefix, what each means, what was not measured."""
    parts = ["# Evaluation", "", *_table(entries), ""]
    if notes := reasons(entries):
        parts += ["## Not measured", "", *(f"- {note}" for note in notes), ""]
    if len(entries) > 1:
        parts += [f"## Differences from {entries[0].label}", "", *_differences(entries), ""]
    for entry in entries:
        parts += [f"## {entry.label}, prefix by prefix", "", *_prefixes(entry), ""]
    return "\n".join([*parts, "## What the scores mean", "", *_legend(entries), ""])


def _table(entries: Sequence[Entry]) -> list[str]:
    heads = columns(entries)
    rows = [[_escaped(counted(entry)), *(_joined(cell(entry.scores(column))) for column in heads)] for entry in entries]
    return _lines(["", *(column.head for column in heads)], rows)


def _differences(entries: Sequence[Entry]) -> list[str]:
    rows = [
        [_escaped(each.entry.label), each.column.head, *numbers(each), verdict(each)] for each in differences(entries)
    ]
    return _lines(["", "score", "difference", "95 % interval", "detectable", "verdict"], rows)


def _prefixes(entry: Entry) -> list[str]:
    widths = entry.widths()
    rows = [
        [column.head, *(_joined(cell(entry.scores(column, width))) for width in widths)]
        for column in columns([entry], headlines=False)
    ]
    return _lines(["score", *(f"first {width:,}" for width in widths)], rows)


def _legend(entries: Sequence[Entry]) -> list[str]:
    lines = []
    for column in columns(entries, headlines=False):
        measure = column.measure
        null = f" Null: {measure.null}." if measure.null else ""
        lines.append(f"- **{column.head}** (units: {measure.unit}). {measure.meaning}{null}")
    return [
        *lines,
        "",
        "Intervals hold 95 % of 1,000 resamplings of the units; of several seeds, ± is their standard deviation.",
    ]


def counted(entry: Entry) -> str:
    """Its label, and how many seeds."""
    return f"{entry.label} ({len(entry.seeds)} seeds)" if len(entry.seeds) > 1 else entry.label


def _joined(found: Cell) -> str:
    more = "; ".join(part for part in (found.spread, found.null) if part)
    return f"{found.value} ({more})" if more else found.value


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


def _lines(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    cells = [heads, ["---"] * len(heads), *rows]
    return [f"| {' | '.join(row)} |" for row in cells]
