"""All that was found of coders, for Python: by coder and question, as tables and figures, and the report on it."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from matryoshka.coder.card import Card
from matryoshka.errors import MatryoshkaError, did_you_mean
from matryoshka.evaluation.suite import target
from matryoshka.features.feature import printable
from matryoshka.features.naming import AUTHOR
from matryoshka.features.store import FeatureStore, required
from matryoshka.report import drawing, markdown
from matryoshka.report.compared import Compared
from matryoshka.report.finding import Finding
from matryoshka.run import Run
from matryoshka.scores.comparison import Entry, columns
from matryoshka.scores.result import Result
from matryoshka.study.opening import read_card

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

LONGEST_NAME = 80
"""Characters of a feature's name in a report."""


@dataclass(frozen=True)
class CoderAnalysis:
    """What one analysis of the catalogue found of one coder."""

    name: str
    """Of the analysis."""
    coder: "AnalysedCoder"
    result: Result

    def table(self) -> "pandas.DataFrame":
        """A row a score: value, interval, null, units."""
        rows = [score.as_json() for score in self._measured.scores]
        return required("pandas").DataFrame(rows).rename(columns={"name": "score"}).set_index("score")

    def plot(self, figure: str | None = None) -> "Figure":
        """One of its figures, by default the first. Raises MatryoshkaError without matplotlib."""
        drawn = self.figures()
        if figure is not None and figure not in drawn:
            raise MatryoshkaError(f"{self.name} has no figure {figure!r}{did_you_mean(figure, drawn)}")
        return drawn[figure or next(iter(drawn))]

    def figures(self) -> "dict[str, Figure]":
        """All of them, by name."""
        with drawing.style():
            return self.report.figures(self._measured)

    def section(self) -> list[str]:
        """What a reader looks at first, as lines of Markdown."""
        return self.report.section(self._measured, self.coder.name_of)

    def findings(self) -> list[Finding]:
        """Sentences."""
        return self.report.findings(self._measured, self.coder.name_of)

    @property
    def report(self) -> ModuleType:
        """How it is shown: `figures`, `section`, `findings`."""
        return import_module(f"matryoshka.report.{self.name}_report")

    @property
    def _measured(self) -> Result:
        if self.result.reason is not None:
            raise MatryoshkaError(f"{self.name} of {self.coder.name}: nothing to show: {self.result.reason}")
        return self.result


@dataclass(frozen=True)
class AnalysedCoder:
    """One coder, and all that was found of it."""

    name: str
    run: Run
    key: int
    """By which it is known to the page that `matryoshka serve` shows of these runs."""
    evaluations: Mapping[str, Result]
    found: Mapping[str, Result]
    """By the name of the analysis; "names" is how many features a rule names."""

    @property
    def analyses(self) -> dict[str, CoderAnalysis]:
        """Those of the catalogue."""
        return {name: CoderAnalysis(name, self, result) for name, result in self.found.items() if name != "names"}

    @cached_property
    def card(self) -> Card:
        return read_card(self.run.coder)

    @cached_property
    def store(self) -> FeatureStore:
        """Its features."""
        return FeatureStore(self.run.features_file)

    def name_of(self, index: int) -> str:
        """A feature's name, of which Markdown makes nothing else: its label, explanation, or top tokens."""
        name = self._names[index]
        return markdown.plain(f"{name[: LONGEST_NAME - 1]}…" if len(name) > LONGEST_NAME else name)

    @cached_property
    def _names(self) -> list[str]:
        rules = {index for index, (_, author) in self.store.explanations().items() if author == AUTHOR}
        known, names = self.store.brief(range(len(self.store))), []
        for index in range(len(self.store)):
            name = known[index].name
            rule, _, _ = name.partition(" (AUC ") if index in rules else (name, "", "")
            names.append(printable(rule) or "never fires")
        return names

    @property
    def entry(self) -> Entry:
        """As a row of a table of scores."""
        return Entry(self.name, [{**self.evaluations, **self.found}], target(self.card))


@dataclass(frozen=True)
class Analysed:
    """All that was found of coders of one language model, and where the report lies."""

    coders: tuple[AnalysedCoder, ...]
    compared: Compared | None
    """Every pair that was compared; None of a single coder."""
    findings: tuple[tuple[str, Finding], ...]
    """Those that stand out most, each with the evaluation or analysis that it is of."""
    report: Path
    """One HTML file; the same as Markdown beside it."""

    def __getitem__(self, key: str | tuple[str, str]) -> CoderAnalysis:
        """An analysis by its name; of several coders by the coder's name and its own: `analysed["layer-8", "map"]`."""
        label, name = (None, key) if isinstance(key, str) else key
        names = [coder.name for coder in self.coders]
        if label is None and len(names) > 1:
            raise MatryoshkaError(f"several coders: give one of {', '.join(names)} too, as in [{names[0]!r}, {name!r}]")
        if label is not None and label not in names:
            raise MatryoshkaError(f"no coder {label!r} here{did_you_mean(label, names)}")
        analyses = self.coders[0 if label is None else names.index(label)].analyses
        if name not in analyses:
            raise MatryoshkaError(f"no analysis {name!r} here{did_you_mean(name, analyses)}")
        return analyses[name]

    def table(self) -> "pandas.DataFrame":
        """A row a coder, a column a score: those of the whole dictionary that stand in tables."""
        entries = [coder.entry for coder in self.coders]
        rows = [
            {"coder": entry.label}
            | {column.head: scores[0].value for column in columns(entries) if (scores := entry.scores(column))}
            for entry in entries
        ]
        return required("pandas").DataFrame(rows).set_index("coder")

    def plot(self, name: str | tuple[str, str], figure: str | None = None) -> "Figure":
        """A figure of an analysis, by default its first one."""
        return self[name].plot(figure)
