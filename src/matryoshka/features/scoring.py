"""How well explanations tell where features fire: balanced accuracy, feature by feature, and its mean for each prefix.

A feature's number is (TPR + TNR) / 2 over its test contexts: half for an explanation that always says yes, or no. The
sample has as many features of each ring; each counts for as many living features of its ring as it stands for, so that
a prefix's mean is one over its living features. Answers that never had the right form are counted, not scored.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np

from matryoshka.scores.result import Measure, Score, score

Test = Literal["detection", "fuzzing"]
DETECTION = Measure(
    "detection",
    better="higher",
    meaning="Mean over living features of the (TPR + TNR) / 2 with which a chat model that is given a feature's"
    " explanation tells contexts in which it fires from others, in documents that the explanation was not made of.",
    unit="feature",
    null="the explanation of another feature, judged by the same model on the same contexts",
    paired=False,
)
FUZZING = replace(
    DETECTION,
    name="fuzzing",
    meaning="Mean over living features of the (TPR + TNR) / 2 with which a chat model that is given a feature's"
    " explanation tells contexts with marks on the tokens it fires on from contexts with as many marks on others, in"
    " documents that the explanation was not made of.",
)


class Judged(NamedTuple):
    """What was said of the contexts of one test."""

    right: int = 0
    right_found: int = 0
    wrong: int = 0
    wrong_found: int = 0
    failed: int = 0
    """Contexts without an answer of the right form."""

    def plus(self, truth: Sequence[bool], said: Sequence[bool] | None) -> "Judged":
        """With some more contexts."""
        if said is None:
            return self._replace(failed=self.failed + len(truth))
        counts = Counter(zip(truth, said, strict=True))
        return Judged(
            self.right + counts[True, True] + counts[True, False],
            self.right_found + counts[True, True],
            self.wrong + counts[False, False] + counts[False, True],
            self.wrong_found + counts[False, False],
            self.failed,
        )

    @property
    def balanced_accuracy(self) -> float | None:
        """(TPR + TNR) / 2; None where one of the two is not known."""
        if not self.right or not self.wrong:
            return None
        return (self.right_found / self.right + self.wrong_found / self.wrong) / 2


@dataclass(frozen=True)
class Explained:
    """A feature, its explanation, and how this and another's did."""

    index: int
    ring: int
    text: str
    own: Mapping[Test, Judged | None]
    other: Mapping[Test, Judged | None]


def scores(explained: Sequence[Explained], living: Sequence[int], widths: Sequence[int]) -> tuple[Score, ...]:
    """Both measures for every prefix in which a feature was tested.

    `living`: features that fire, ring by ring, for which the explained ones stand; empty if they stand for themselves.
    """
    tests: tuple[tuple[Test, Measure], ...] = (("detection", DETECTION), ("fuzzing", FUZZING))
    results = []
    for test, measure in tests:
        own = _weighted([(feature, feature.own[test]) for feature in explained], living)
        other = _weighted([(feature, feature.other[test]) for feature in explained], living)
        for width in widths:
            inside, null = ([row for row in rows if row[0] < width] for rows in (own, other))
            if inside:
                units, values, weights = zip(*inside, strict=True)
                results.append(score(measure, width, units, np.multiply(values, weights), weights, _mean(null)))
    return tuple(results)


def _weighted(
    judged: Sequence[tuple[Explained, Judged | None]], living: Sequence[int]
) -> list[tuple[int, float, float]]:
    """(feature, balanced accuracy, weight) where there is one: a ring's weights sum to its living features."""
    accuracies = ((feature, None if of is None else of.balanced_accuracy) for feature, of in judged)
    tested = [(feature, accuracy) for feature, accuracy in accuracies if accuracy is not None]
    in_ring = Counter(feature.ring for feature, _ in tested)
    return [
        (feature.index, accuracy, living[feature.ring] / in_ring[feature.ring] if living else 1.0)
        for feature, accuracy in tested
    ]


def _mean(weighted: Sequence[tuple[int, float, float]]) -> float | None:
    if not weighted:
        return None
    _, values, weights = zip(*weighted, strict=True)
    return float(np.average(values, weights=weights))


def table(explained: Sequence[Explained]) -> list[dict[str, Any]]:
    """A row a feature: its explanation, and how it and another one did."""
    return [
        {
            "feature": feature.index,
            "ring": feature.ring,
            "explanation": feature.text,
            **{test: _row(judged) for test, judged in feature.own.items()},
            **{f"{test} by another explanation": _row(judged) for test, judged in feature.other.items()},
        }
        for feature in explained
    ]


def _row(judged: Judged | None) -> dict[str, Any] | None:
    return None if judged is None else {"balanced accuracy": judged.balanced_accuracy, **judged._asdict()}


def failed(explained: Sequence[Explained]) -> int:
    """Contexts whose judgement never had the right form."""
    return sum(
        j.failed for feature in explained for j in (*feature.own.values(), *feature.other.values()) if j is not None
    )
