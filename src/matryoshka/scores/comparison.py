"""What several coders scored, side by side: one entry a coder (or a recipe's seeds), one column a score.

    entries → columns; entries after the first → differences from it → verdicts

Two entries are compared unit by unit where both are one coder, by their spread where both are several seeds. A
difference that zero may explain is said to be inside the noise. A measure that depends on what is written
(`Measure.of_target`) is of another thing at another site or in another model: there nobody is better or worse.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from matryoshka.scores.differences import Comparison, compare, compare_seeds
from matryoshka.scores.result import Measure, Result, Score

ARROWS = {"lower": " ↓", "higher": " ↑", "neither": ""}


class Target(NamedTuple):
    """What a coder's reconstruction is of."""

    model: str
    sites: tuple[str, ...]
    """Those that it writes."""


class Entry(NamedTuple):
    """A row: what one coder scored, or the coders of a recipe that differ in their seeds alone."""

    label: str
    seeds: Sequence[Mapping[str, Result]]
    """The results of each coder, by the evaluation's name."""
    target: Target

    def widths(self) -> list[int]:
        """The prefixes that anything was measured of, ascending."""
        scores = (score for results in self.seeds for result in results.values() for score in result.scores)
        return sorted({score.width for score in scores})

    def scores(self, column: "ScoreColumn", width: int | None = None) -> list[Score]:
        """The score of each seed, of the prefix `width` (default: the whole dictionary); [] where one lacks it."""
        of_seeds = []
        for results in self.seeds:
            result = results.get(column.evaluation)
            of = [score for score in (result.scores if result else ()) if score.measure.name == column.measure.name]
            of_seeds += [score for score in of if score.width == (width or max(other.width for other in of))]
        return of_seeds if len(of_seeds) == len(self.seeds) else []


class ScoreColumn(NamedTuple):
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


def columns(entries: Sequence[Entry], headlines: bool = True) -> list[ScoreColumn]:
    """The scores that any entry has, in the order of the evaluations; `headlines`: only those for the table."""
    measures: dict[tuple[str, str], Measure] = {}
    for results in (results for entry in entries for results in entry.seeds):
        for evaluation, result in results.items():
            measures |= {(evaluation, score.measure.name): score.measure for score in result.scores}
    names = [name for _, name in measures]
    return [
        ScoreColumn(evaluation, measure, names.count(name) > 1)
        for (evaluation, name), measure in measures.items()
        if measure.headline or not headlines
    ]


class Difference(NamedTuple):
    """How far an entry lies from the first one, in one column."""

    column: ScoreColumn
    entry: Entry
    comparison: Comparison | None
    reason: str
    """Why they are not compared."""

    @property
    def inside_noise(self) -> bool:
        """Whether they are compared, and nobody can tell them apart."""
        return self.comparison is not None and self.comparison.inside_noise


def differences(entries: Sequence[Entry]) -> Iterator[Difference]:
    """Each entry after the first, held against it, column by column."""
    for entry in entries[1:]:
        for column in columns(entries):
            yield _difference(column, entries[0], entry)


def _difference(column: ScoreColumn, first: Entry, entry: Entry) -> Difference:
    a, b = entry.scores(column), first.scores(column)
    if not a or not b:
        return Difference(column, entry, None, "not measured of both")
    if column.measure.of_target and (reason := _other_target(first.target, entry.target)):
        return Difference(column, entry, None, reason)
    if (len(a) > 1) != (len(b) > 1):
        return Difference(column, entry, None, f"{len(a)} against {len(b)} seeds")
    try:
        comparison = compare_seeds(a, b) if len(a) > 1 else compare(a[0], b[0])
    except ValueError as error:
        return Difference(column, entry, None, str(error))
    if not comparison.known:
        return Difference(column, entry, None, "one number each, of unknown spread: train several seeds")
    return Difference(column, entry, comparison, "")


def _other_target(first: Target, other: Target) -> str:
    """Why what depends on the target is not comparable; "" where it is."""
    if first.model != other.model:
        return f"they are of different models: {first.model}, {other.model}"
    if set(first.sites) != set(other.sites):
        return f"they write different sites: {' + '.join(first.sites)}, {' + '.join(other.sites)}"
    return ""


def verdict(difference: Difference) -> str:
    """In words: which is better, or that nobody can tell."""
    comparison, measure = difference.comparison, difference.column.measure
    if comparison is None:
        return f"not compared ({difference.reason})"
    if comparison.inside_noise:
        return "inside the noise"
    if measure.better == "neither":
        return "differs"
    return "better" if (comparison.difference > 0) == (measure.better == "higher") else "worse"


def reasons(entries: Sequence[Entry]) -> list[str]:
    """Why evaluations found nothing, each once."""
    labels: dict[str, list[str]] = {}
    for entry in entries:
        for name, result in (item for results in entry.seeds for item in results.items()):
            if result.reason:
                labels.setdefault(f"{name}: {result.reason}", []).append(entry.label)
    return [f"{reason} ({', '.join(dict.fromkeys(whose))})" for reason, whose in labels.items()]


def tidy(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """One row a score: its entry, seed (a number), evaluation, prefix, value, interval and null."""
    return [
        {"entry": entry.label, "seed": seed, "evaluation": name, **score.as_json()}
        for entry in entries
        for seed, results in enumerate(entry.seeds)
        for name, result in results.items()
        for score in result.scores
    ]
