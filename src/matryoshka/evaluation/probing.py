"""k-sparse probing: how much of a concept a few latents tell (Gurnee et al. 2023, arXiv:2305.01610; SAEBench).

For each concept of each label set (one against the rest of its set), and each prefix of the dictionary:

1. choose k latents on the training rows by their standardised mean difference
2. fit a logistic regression of these on the training rows
3. report its balanced accuracy and its AUC on the test rows, of other words or documents

The null takes k other latents of the prefix that fire as often, and does 2 and 3 with them: what any latents tell, for
a dense one tells a little of everything. (Shuffled labels would give 1/2, and say nothing about the dictionary.) The
reference is a probe of all of x: what there is to tell.

Concepts that a dense probe of x does not find on training words or documents left out of its fit are not there to be
told; they are left out for every coder of the site alike, and counted. SAEBench (0.6) chooses by the mean difference
without standardising, which prefers latents of large values, and reports plain accuracy, on classes made equal in size.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
from jaxtyping import Bool, Float, Int

from matryoshka.evaluation.concepts import Rows
from matryoshka.evaluation.probes import (
    Probe,
    as_dense,
    auc,
    balanced_accuracy,
    fit,
    fit_activations,
    folds,
    most_different,
    take,
)
from matryoshka.evaluation.scores import Measure, NotMeasurable, Result, Score, score
from matryoshka.progress import Progress, silent

KS = (1, 2, 5)
LEAST_GROUPS = 3
"""Words or documents of a concept, and of its opposite, in each half."""
LEAST_AUC = 0.7
"""Of a dense probe, below which a site does not tell of a concept."""
DRAWS = 10
"""Of other latents for the null."""


def _told(name: str, what: str, of: str, null: str = "", headline: bool = False) -> Measure:
    return Measure(
        name,
        better="higher",
        meaning=f"{what} of {of}, on words or documents that it was not fitted to, mean over concepts",
        unit="concept",
        null=null,
        headline=headline,
    )


_ACCURACY = "Balanced accuracy (true-positive rate + true-negative rate) / 2"
_AUC = "Area under the ROC curve P(score of a yes > score of a no) + P(equal) / 2"
_NULL = "other latents of the prefix that fire as often"
ACCURACY = {
    k: _told(
        f"probe accuracy, k = {k}", _ACCURACY, f"a logistic regression on {k} latents", _NULL, headline=k in (1, 5)
    )
    for k in KS
}
AUC = {k: _told(f"probe AUC, k = {k}", _AUC, f"a logistic regression on {k} latents", _NULL) for k in KS}
DENSE_ACCURACY = _told("probe accuracy, dense", _ACCURACY, "a logistic regression on the activations that are read")
DENSE_AUC = _told("probe AUC, dense", _AUC, "a logistic regression on the activations that are read")
MEASURES = (*ACCURACY.values(), *AUC.values(), DENSE_ACCURACY, DENSE_AUC)


class Task(NamedTuple):
    """One concept against the rest of its set."""

    name: str
    """set/concept"""
    rows: Rows
    labels: Bool[np.ndarray, " n"]

    @property
    def train_groups(self) -> list[str]:
        """The word or document of each training row."""
        examples = zip(self.rows.labelled.examples, self.rows.test, strict=True)
        return [example.group for example, test in examples if not test]


class Tasks(NamedTuple):
    """The concepts that can be probed for at this site, and how many cannot."""

    tasks: list[Task]
    rare: int
    """In fewer than LEAST_GROUPS words or documents of a half, or in all but so few."""
    untold: list[str]
    """Those that a dense probe of x does not find."""


def measurable(sets: Sequence[Rows], opposites: bool = False) -> Tasks:
    """The concepts of these sets that a dense probe finds. Raises NotMeasurable if there is none.

    Of two concepts that are each other's opposite (plural, singular) only the first, unless `opposites`: a probe tells
    both alike, and one observation is not to be counted twice.
    """
    candidates, rare = [], 0
    for rows in sets:
        for task in _different(rows, opposites):
            if enough := _enough_groups(task):
                candidates.append(task)
            rare += not enough
    aucs = {task.name: _left_out_auc(task) for task in candidates}
    found = Tasks(
        [task for task in candidates if aucs[task.name] >= LEAST_AUC],
        rare,
        [name for name, value in aucs.items() if value < LEAST_AUC],
    )
    if not found.tasks:
        best = f"the best is {max(aucs, key=aucs.__getitem__)} with {max(aucs.values()):.2f}" if aucs else "none"
        raise NotMeasurable(
            f"no concept has {LEAST_GROUPS} words or documents in each half and a dense probe's AUC of {LEAST_AUC} or"
            f" more: of {len(aucs)} with enough of them, {best}"
        )
    return found


def _different(rows: Rows, opposites: bool) -> Iterator[Task]:
    """The concepts of a set; of two that hold of the same rows, the first."""
    seen: set[bytes] = set()
    for name, labels in rows.labelled.concepts().items():
        if labels.tobytes() not in seen:
            yield Task(f"{rows.labelled.name}/{name}", rows, labels)
        seen |= {labels.tobytes()} if opposites else {labels.tobytes(), (~labels).tobytes()}


def _enough_groups(task: Task) -> bool:
    groups = [example.group for example in task.rows.labelled.examples]
    sides = [side for _, *side in set(zip(groups, task.rows.test.tolist(), task.labels.tolist(), strict=True))]
    return all(sides.count([test, label]) >= LEAST_GROUPS for test in (False, True) for label in (False, True))


def _left_out_auc(task: Task) -> float:
    """Of a dense probe, on each part of the training rows when fitted to the others."""
    train = ~task.rows.test
    x, labels = task.rows.x[train], task.labels[train]
    scores = np.zeros(len(labels))
    for left_out in folds(task.train_groups, labels):
        scores[left_out] = fit_activations(x[~left_out], labels[~left_out]).scores(x[left_out])
    return auc(scores, labels)


class Told(NamedTuple):
    """How well a probe tells a concept on the test rows."""

    accuracy: float
    auc: float


class Few(NamedTuple):
    """A probe of a few latents, and the mean over probes of as many others."""

    latents: Int[np.ndarray, " chosen"]
    told: Told
    null: Told


class Found(NamedTuple):
    """What is told of one concept: by all of x, by k coordinates of x, and by k latents of each prefix."""

    dense: Told
    coordinates: dict[int, Told]
    prefixes: list[dict[int, Few]]


def probing(sets: Sequence[Rows], widths: Sequence[int], progress: Progress = silent) -> Result:
    """Balanced accuracy and AUC of k-sparse probes for each prefix; `progress(done, total)` counts concepts.

    Raises NotMeasurable if no concept of these sets is one that this site tells of.
    """
    tasks, rare, untold = measurable(sets)
    found = []
    for task in tasks:
        found.append(Found(_dense(task), _coordinates(task), [_few(task, width) for width in widths]))
        progress(len(found), len(tasks))
    details = {
        "concepts": [_row(task, each, widths) for task, each in zip(tasks, found, strict=True)],
        "left_out": {"rare": rare, "not_told_at_the_site": untold},
        "dropped": {rows.labelled.name: rows.dropped for rows in sets},
        "silent": {rows.labelled.name: _silent(rows, widths) for rows in sets},
    }
    return Result(tuple(_scores([task.name for task in tasks], found, widths)), details)


def _dense(task: Task) -> Told:
    return _tell(task, task.rows.x, fit_activations)


def _coordinates(task: Task) -> dict[int, Told]:
    x, train = task.rows.x, ~task.rows.test
    chosen = most_different(sp.csr_array(x[train]), task.labels[train], max(KS))
    return {k: _tell(task, x[:, chosen[:k]]) for k in KS}


def _few(task: Task, width: int) -> dict[int, Few]:
    """For each of KS, with latents below `width`."""
    latents, train = task.rows.latents[:, :width], ~task.rows.test
    chosen = most_different(latents[train], task.labels[train], max(KS))
    fires = np.bincount(latents[train].indices, minlength=width)
    generator = np.random.default_rng([width, *task.name.encode()])
    others = [as_dense(fires, chosen, generator) for _ in range(DRAWS)]
    found = {}
    for k in KS:
        nulls = [_tell(task, take(latents, each[:k])) for each in others]
        null = Told(*(float(np.mean(values)) for values in zip(*nulls, strict=True)))
        found[k] = Few(chosen[:k], _tell(task, take(latents, chosen[:k])), null)
    return found


def _tell(task: Task, x: Float[np.ndarray, "n d"], fit: Callable[..., Probe] = fit) -> Told:
    """On the test rows, of a probe fitted to the training rows; nothing is told by no column."""
    test, labels = task.rows.test, task.labels
    scores = fit(x[~test], labels[~test]).scores(x[test]) if x.shape[1] else np.zeros(int(test.sum()))
    return Told(balanced_accuracy(scores, labels[test]), auc(scores, labels[test]))


# --- what is reported


def _scores(names: Sequence[str], found: Sequence[Found], widths: Sequence[int]) -> Iterator[Score]:
    for i, width in enumerate(widths):
        for k in KS:
            few = [each.prefixes[i][k] for each in found]
            for measure, field in ((ACCURACY[k], "accuracy"), (AUC[k], "auc")):
                null = float(np.mean([getattr(each.null, field) for each in few]))
                yield score(measure, width, names, [getattr(each.told, field) for each in few], null=null)
    yield score(DENSE_ACCURACY, widths[-1], names, [each.dense.accuracy for each in found])
    yield score(DENSE_AUC, widths[-1], names, [each.dense.auc for each in found])


def _row(task: Task, found: Found, widths: Sequence[int]) -> dict[str, Any]:
    """One concept, as JSON."""
    return {
        "concept": task.name,
        "rows": len(task.labels),
        "share": float(task.labels.mean()),
        "test_rows": int(task.rows.test.sum()),
        "dense": found.dense._asdict(),
        "coordinates": {str(k): told._asdict() for k, told in found.coordinates.items()},
        "prefixes": {
            str(width): {
                str(k): {"latents": few.latents.tolist(), **few.told._asdict(), "null": few.null._asdict()}
                for k, few in prefix.items()
            }
            for width, prefix in zip(widths, found.prefixes, strict=True)
        },
    }


def _silent(rows: Rows, widths: Sequence[int]) -> dict[str, int]:
    """Latents of each prefix that fire on no row of a set, and so are in no probe."""
    fired = np.unique(rows.latents.indices)
    return {str(width): width - int(np.searchsorted(fired, width)) for width in widths}
