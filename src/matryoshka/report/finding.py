"""One sentence of what was found, and how far it stands out from chance."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from matryoshka.report.cells import shown
from matryoshka.scores.comparison import Entry, columns
from matryoshka.scores.result import Score

OUTSTANDING, MOST_OF_ONE = 5, 2
"""Findings that open a report, and how many of them one source may have."""


class Finding(NamedTuple):
    """A sentence with its number, interval and null; the strongest of all analyses open a report."""

    sentence: str
    """Markdown."""
    strength: float
    """Distance of the value from its null in half widths of its interval."""


def strength(score: Score) -> float:
    """|value − null| / (half the interval's width); 0 where there is no null or no interval."""
    low, high = score.interval
    if score.null is None or not high > low:
        return 0.0
    return abs(score.value - score.null) / ((high - low) / 2)


def score_findings(entry: Entry) -> Iterator[tuple[str, Finding]]:
    """(evaluation, sentence) of each headline of one coder's evaluations that has a null: the score of the whole
    dictionary."""
    for column in columns([entry]):
        for score in entry.scores(column)[:1]:
            measure = score.measure
            if score.null is not None:
                value, low, high, null = (shown(x, measure) for x in (score.value, *score.interval, score.null))
                sentence = (
                    f"{measure.name} is **{value}** (95 % interval {low} – {high}) against {null} by chance"
                    f" ({measure.null}). {measure.meaning}"
                )
                yield column.evaluation, Finding(sentence, strength(score))


def outstanding(findings: Mapping[str, Sequence[Finding]]) -> list[tuple[str, Finding]]:
    """The OUTSTANDING strongest of all, at most MOST_OF_ONE a source, the strongest first; each with its
    source. One that chance may as well give is none."""
    ranked = sorted(_tagged(findings), key=lambda found: -found[1].strength)
    taken: list[tuple[str, Finding]] = []
    for source, finding in ranked:
        if finding.strength > 1 and [other for other, _ in taken].count(source) < MOST_OF_ONE:
            taken.append((source, finding))
    return taken[:OUTSTANDING]


def _tagged(findings: Mapping[str, Iterable[Finding]]) -> Iterator[tuple[str, Finding]]:
    return ((source, finding) for source, of_source in findings.items() for finding in of_source)
