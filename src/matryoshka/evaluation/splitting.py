"""Feature splitting: into how many latents a concept has come apart (Chanin et al. 2024, arXiv:2409.14507; SAEBench).

For each concept that `probing` would probe for, and each prefix of the dictionary:

1. latents are added to a probe one after another, each the best complement of those before it
2. while a further latent lifts F1 by more than JUMP it counts as a part of the concept
3. splitting = parts − 1

F1 in 2 is of training words or documents left out of the choice and the fit, in FOLDS turns; the test half only says,
afterwards, how good the probe of the parts is. (SAEBench takes the first latents of an L1 probe, and stops by the F1
on its test words.)

The null does the same with all latents but the best shuffled among words or documents: the parts that chance adds to
one latent. A concept that a prefix tells no better than if all latents were shuffled would have a fine score, no
splitting, for the wrong reason: at that prefix it is left out and counted.
"""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
from jaxtyping import Int

from matryoshka.evaluation.shared.labelled_rows import LabelledRows
from matryoshka.evaluation.shared.probes import Labels, Task, f1, f1_left_out, folds, forward, measurable
from matryoshka.evaluation.subject import Subject
from matryoshka.progress import Progress, silent
from matryoshka.scores.result import Measure, NotMeasurable, Result, Score, score

JUMP = 0.03
MOST = 10
"""Parts that are looked for."""
SHUFFLES = 5
SplitConcepts = dict[str, dict[int, tuple[dict[str, Any], list[float]]]]
"""Of each concept and prefix the row that is reported, and the test F1 of latents shuffled in training."""

SPLITTING = Measure(
    "splitting",
    better="lower",
    meaning=f"Latents beyond the first that each lift a k-sparse probe's F1 by more than {JUMP}, mean over concepts",
    unit="concept",
    null="all latents but the best shuffled among words or documents",
)
PARTS_F1 = Measure(
    "F1 of the parts",
    better="higher",
    meaning="F1 = 2 · right / (said + true) on test rows of the probe of a concept's parts, mean over concepts",
    unit="concept",
    null="latents shuffled among words or documents in training",
    headline=False,
)
MEASURES = (SPLITTING, PARTS_F1)
READS_LABELS = True
VERSION = 1


def evaluate(subject: Subject, progress: Progress = silent) -> Result:
    """Parts beyond the first of each concept of all labelled text, for each prefix; `progress` counts concepts.

    Raises NotMeasurable if no concept is one that this site, or any prefix, tells of.
    """
    return measure(subject.all_rows(progress), subject.widths, progress)


class Split(NamedTuple):
    """Into what a concept has come apart."""

    curve: list[float]
    """F1 on left-out rows of the first part, the first two …"""
    latents: Int[np.ndarray, " parts"]
    test_f1: float

    @property
    def reached(self) -> float:
        """F1 of all parts, on left-out rows."""
        return self.curve[-1] if self.curve else 0.0


def measure(sets: Sequence[LabelledRows], widths: Sequence[int], progress: Progress = silent) -> Result:
    """The same of text that has been read."""
    # the latents that speak for a concept and those that speak for its opposite are not the same
    tasks, rare, untold = measurable(sets, opposites=True)
    concepts: SplitConcepts = {}
    for task in tasks:
        concepts[task.name] = {width: _of_prefix(task, width) for width in widths}
        progress(len(concepts), len(tasks))
    scores = tuple(_scores(widths, concepts))
    if not scores:
        raise NotMeasurable(f"none of {len(tasks)} concepts is told by this coder's latents better than by chance")
    rows = {name: {str(width): row for width, (row, _) in prefixes.items()} for name, prefixes in concepts.items()}
    return Result(scores, {"concepts": rows, "left_out": {"rare": rare, "not_told_at_the_site": untold}})


def _of_prefix(task: Task, width: int) -> tuple[dict[str, Any], list[float]]:
    labels, groups = task.labels[~task.rows.test], task.train_groups
    latents = task.rows.latents[~task.rows.test][:, :width]
    generator = np.random.default_rng([width, *task.name.encode()])
    shuffled = [latents[_shuffle(groups, labels, generator)] for _ in range(SHUFFLES)]
    first = next(forward(latents, labels), None)
    best = np.isin(np.arange(width), first.latents if first else [])
    beside_best = [others.multiply(~best) + latents.multiply(best) for others in shuffled]
    split, nulls = _split(task, latents), [_split(task, others) for others in shuffled]
    row = {
        "told": split.reached > max(null.reached for null in nulls),
        "latents": split.latents.tolist(),
        "f1": split.curve,
        "test_f1": split.test_f1,
        "shuffled_f1": [null.reached for null in nulls],
        "splitting_by_chance": [_splitting(f1_curve(others, labels, groups)) for others in beside_best],
    }
    return row, [null.test_f1 for null in nulls]


def _split(task: Task, latents: sp.csr_array) -> Split:
    """With these latents on the training rows, and the true ones on the test rows."""
    test = task.rows.test
    labels = task.labels[~test]
    curve = f1_curve(latents, labels, task.train_groups)
    steps = list(islice(forward(latents, labels), len(curve)))
    if not steps:
        return Split(curve, np.empty(0, dtype=np.int64), 0.0)
    parts, probe = steps[-1]
    return Split(curve, parts, f1(probe.scores(task.rows.latents[test][:, parts].toarray()), task.labels[test]))


def f1_curve(latents: sp.csr_array, labels: Labels, groups: Sequence[str], most: int = MOST) -> list[float]:
    """F1 of one latent, two … up to `most`, while it grows by more than JUMP, by probes not fitted to the row."""
    parts = folds(groups, labels)
    curve: list[float] = []
    for steps in islice(zip(*(forward(latents[~part], labels[~part]) for part in parts), strict=False), most):
        value = f1_left_out(latents, labels, parts, steps)
        if value <= (curve[-1] if curve else 0.0) + JUMP:
            break
        curve.append(value)
    return curve


def _splitting(curve: Sequence[float]) -> int:
    return max(0, len(curve) - 1)


def _shuffle(groups: Sequence[str], labels: Labels, generator: np.random.Generator) -> Int[np.ndarray, " n"]:
    """For each row one of another word or document.

    The rows of one group and label get those of one other: they are alike, and stay so.
    """
    cells: dict[tuple[str, bool], list[int]] = {}
    for i, cell in enumerate(zip(groups, labels.tolist(), strict=True)):
        cells.setdefault(cell, []).append(i)
    rows, source = list(cells.values()), np.empty(len(labels), dtype=np.int64)
    for own, other in zip(rows, generator.permutation(len(rows)), strict=True):
        source[own] = np.resize(rows[other], len(own))
    return source


def _scores(widths: Sequence[int], concepts: SplitConcepts) -> Iterator[Score]:
    for width in widths:
        told = {name: prefixes[width] for name, prefixes in concepts.items() if prefixes[width][0]["told"]}
        if told:
            rows = [row for row, _ in told.values()]
            chance = np.mean([row["splitting_by_chance"] for row in rows])
            shuffled = np.mean([test_f1 for _, test_f1 in told.values()])
            yield score(SPLITTING, width, told, [_splitting(row["f1"]) for row in rows], null=float(chance))
            yield score(PARTS_F1, width, told, [row["test_f1"] for row in rows], null=float(shuffled))
