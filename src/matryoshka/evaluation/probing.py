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
from jaxtyping import Float, Int

from matryoshka.evaluation.shared.labelled_rows import LabelledRows
from matryoshka.evaluation.shared.probes import (
    Probe,
    as_dense,
    auc,
    balanced_accuracy,
    fit,
    fit_activations,
    most_different,
    take,
)
from matryoshka.evaluation.shared.tasks import Task, measurable
from matryoshka.evaluation.subject import Subject
from matryoshka.progress import Progress, silent
from matryoshka.scores.result import Measure, Result, Score, score

KS = (1, 2, 5)
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
READS_LABELS = True


def evaluate(subject: Subject, progress: Progress = silent) -> Result:
    """Balanced accuracy and AUC of k-sparse probes for each prefix, in all labelled text; `progress` counts concepts.

    Raises NotMeasurable if no concept is one that this site tells of.
    """
    return measure(subject.all_rows(progress), subject.widths, progress)


class Told(NamedTuple):
    """How well a probe tells a concept on the test rows."""

    accuracy: float
    auc: float


class Few(NamedTuple):
    """A probe of a few latents, and the mean over probes of as many others."""

    latents: Int[np.ndarray, " chosen"]
    told: Told
    null: Told


class ProbedConcept(NamedTuple):
    """What is told of one concept: by all of x, by k coordinates of x, and by k latents of each prefix."""

    dense: Told
    coordinates: dict[int, Told]
    prefixes: list[dict[int, Few]]


def measure(sets: Sequence[LabelledRows], widths: Sequence[int], progress: Progress = silent) -> Result:
    """The same of text that has been read."""
    tasks, rare, untold = measurable(sets)
    probed = []
    for task in tasks:
        probed.append(ProbedConcept(_dense(task), _coordinates(task), [_few(task, width) for width in widths]))
        progress(len(probed), len(tasks))
    details = {
        "concepts": [_row(task, concept, widths) for task, concept in zip(tasks, probed, strict=True)],
        "left_out": {"rare": rare, "not_told_at_the_site": untold},
        "dropped": {rows.labelled.name: rows.dropped for rows in sets},
        "silent": {rows.labelled.name: _silent(rows, widths) for rows in sets},
    }
    return Result(tuple(_scores([task.name for task in tasks], probed, widths)), details)


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
    few = {}
    for k in KS:
        nulls = [_tell(task, take(latents, other[:k])) for other in others]
        null = Told(*(float(np.mean(values)) for values in zip(*nulls, strict=True)))
        few[k] = Few(chosen[:k], _tell(task, take(latents, chosen[:k])), null)
    return few


def _tell(task: Task, x: Float[np.ndarray, "n d"], fit: Callable[..., Probe] = fit) -> Told:
    """On the test rows, of a probe fitted to the training rows; nothing is told by no column."""
    test, labels = task.rows.test, task.labels
    scores = fit(x[~test], labels[~test]).scores(x[test]) if x.shape[1] else np.zeros(int(test.sum()))
    return Told(balanced_accuracy(scores, labels[test]), auc(scores, labels[test]))


# --- what is reported


def _scores(names: Sequence[str], probed: Sequence[ProbedConcept], widths: Sequence[int]) -> Iterator[Score]:
    for i, width in enumerate(widths):
        for k in KS:
            few = [concept.prefixes[i][k] for concept in probed]
            for measure, field in ((ACCURACY[k], "accuracy"), (AUC[k], "auc")):
                null = float(np.mean([getattr(probe.null, field) for probe in few]))
                yield score(measure, width, names, [getattr(probe.told, field) for probe in few], null=null)
    yield score(DENSE_ACCURACY, widths[-1], names, [concept.dense.accuracy for concept in probed])
    yield score(DENSE_AUC, widths[-1], names, [concept.dense.auc for concept in probed])


def _row(task: Task, probed: ProbedConcept, widths: Sequence[int]) -> dict[str, Any]:
    """One concept, as JSON."""
    return {
        "concept": task.name,
        "rows": len(task.labels),
        "share": float(task.labels.mean()),
        "test_rows": int(task.rows.test.sum()),
        "dense": probed.dense._asdict(),
        "coordinates": {str(k): told._asdict() for k, told in probed.coordinates.items()},
        "prefixes": {
            str(width): {
                str(k): {"latents": few.latents.tolist(), **few.told._asdict(), "null": few.null._asdict()}
                for k, few in prefix.items()
            }
            for width, prefix in zip(widths, probed.prefixes, strict=True)
        },
    }


def _silent(rows: LabelledRows, widths: Sequence[int]) -> dict[str, int]:
    """Latents of each prefix that fire on no row of a set, and so are in no probe."""
    fired = np.unique(rows.latents.indices)
    return {str(width): width - int(np.searchsorted(fired, width)) for width in widths}
