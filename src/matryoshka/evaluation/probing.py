"""k-sparse probing: how much of a concept a few latents tell (Gurnee et al. 2023, arXiv:2305.01610; SAEBench).

For each concept of each label set (one against the rest of its set), and each prefix of the dictionary:

1. choose k latents on the training rows by their standardised mean difference
2. fit a logistic regression of these on the training rows
3. report its balanced accuracy and its AUC on the test rows, of other words or documents

The null takes k other latents of the prefix that fire as often, and does 2 and 3 with them: what any latents tell, for
a dense one tells a little of everything. (Shuffled labels would give 1/2, and say nothing about the dictionary.) The
reference is a probe of all of x: what there is to tell.

Concepts that a dense probe of x does not find on training words or documents left out of its fit are not there to be
told; they are left out for every coder of the site alike, and counted. SAEBench (0.6) chooses by the bare mean
difference, which prefers latents of large values, and reports plain accuracy, on classes made equal in size.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float

from matryoshka.evaluation.shared.labelled_rows import LabelledRows
from matryoshka.evaluation.shared.probes import (
    Probe,
    Task,
    as_dense,
    auc,
    balanced_accuracy,
    fit,
    fit_activations,
    measurable,
    most_different,
)
from matryoshka.evaluation.subject import Subject
from matryoshka.progress import Progress, silent
from matryoshka.scores.result import Measure, Result, Score, score

KS = (1, 2, 5)
DRAWS = 10
"""Of other latents for the null."""


def _of_probe(name: str, what: str, of: str, null: str = "", headline: bool = False) -> Measure:
    where = "on words or documents that it was not fitted to, mean over concepts"
    meaning = f"{what} of a logistic regression on {of}, {where}"
    return Measure(name, "higher", meaning, unit="concept", null=null, headline=headline)


_ACCURACY = "Balanced accuracy (true-positive rate + true-negative rate) / 2"
_AUC = "Area under the ROC curve P(score of a yes > score of a no) + P(equal) / 2"
_NULL = "other latents of the prefix that fire as often"
ACCURACY = {k: _of_probe(f"probe accuracy, k = {k}", _ACCURACY, f"{k} latents", _NULL, k in (1, 5)) for k in KS}
AUC = {k: _of_probe(f"probe AUC, k = {k}", _AUC, f"{k} latents", _NULL) for k in KS}
DENSE_ACCURACY = _of_probe("probe accuracy, dense", _ACCURACY, "the activations that are read")
DENSE_AUC = _of_probe("probe AUC, dense", _AUC, "the activations that are read")
MEASURES = (*ACCURACY.values(), *AUC.values(), DENSE_ACCURACY, DENSE_AUC)
READS_LABELS = True
VERSION = 1


def evaluate(subject: Subject, progress: Progress = silent) -> Result:
    """Balanced accuracy and AUC of k-sparse probes for each prefix, in all labelled text; `progress` counts concepts.

    Raises NotMeasurable if no concept is one that this site tells of.
    """
    return measure(subject.all_rows(progress), subject.widths, progress)


def measure(sets: Sequence[LabelledRows], widths: Sequence[int], progress: Progress = silent) -> Result:
    """The same of text that has been read."""
    tasks, rare, untold = measurable(sets)
    concepts = []
    for task in tasks:
        concepts.append(_row(task, widths))
        progress(len(concepts), len(tasks))
    details = {
        "concepts": concepts,
        "left_out": {"rare": rare, "not_told_at_the_site": untold},
        "dropped": {rows.labelled.name: rows.dropped for rows in sets},
        "silent": {rows.labelled.name: rows.silent(widths) for rows in sets},
    }
    return Result(tuple(_scores(concepts, widths)), details)


def _row(task: Task, widths: Sequence[int]) -> dict[str, Any]:
    """What is told of one concept by all of x, by k coordinates of x, and by k latents of each prefix, as JSON."""
    x, train = task.rows.x, ~task.rows.test
    chosen = most_different(sp.csr_array(x[train]), task.labels[train], max(KS))
    return {
        "concept": task.name,
        "rows": len(task.labels),
        "share": float(task.labels.mean()),
        "test_rows": int(task.rows.test.sum()),
        "dense": _told(task, x, fit_activations),
        "coordinates": {str(k): _told(task, x[:, chosen[:k]]) for k in KS},
        "prefixes": {str(width): _by_few(task, width) for width in widths},
    }


def _by_few(task: Task, width: int) -> dict[str, dict[str, Any]]:
    """For each of KS, with latents below `width`, and the mean over probes of as many others."""
    latents, train = task.rows.latents[:, :width], ~task.rows.test
    chosen = most_different(latents[train], task.labels[train], max(KS))
    fires = np.bincount(latents[train].indices, minlength=width)
    generator = np.random.default_rng([width, *task.name.encode()])
    others = [as_dense(fires, chosen, generator) for _ in range(DRAWS)]
    few = {}
    for k in KS:
        nulls = [_told(task, latents[:, other[:k]].toarray()) for other in others]
        null = {name: float(np.mean([told[name] for told in nulls])) for name in nulls[0]}
        told = _told(task, latents[:, chosen[:k]].toarray())
        few[str(k)] = {"latents": chosen[:k].tolist(), **told, "null": null}
    return few


def _told(task: Task, x: Float[np.ndarray, "n d"], fit: Callable[..., Probe] = fit) -> dict[str, float]:
    """How well a probe fitted to the training rows tells the test rows; by no column nothing is told."""
    test, labels = task.rows.test, task.labels
    scores = fit(x[~test], labels[~test]).scores(x[test]) if x.shape[1] else np.zeros(int(test.sum()))
    return {"accuracy": balanced_accuracy(scores, labels[test]), "auc": auc(scores, labels[test])}


def _scores(concepts: Sequence[dict[str, Any]], widths: Sequence[int]) -> Iterator[Score]:
    names = [concept["concept"] for concept in concepts]
    for width, k in product(widths, KS):
        few = [concept["prefixes"][str(width)][str(k)] for concept in concepts]
        for measure, name in ((ACCURACY[k], "accuracy"), (AUC[k], "auc")):
            null = float(np.mean([told["null"][name] for told in few]))
            yield score(measure, width, names, [told[name] for told in few], null=null)
    for measure, name in ((DENSE_ACCURACY, "accuracy"), (DENSE_AUC, "auc")):
        yield score(measure, widths[-1], names, [concept["dense"][name] for concept in concepts])
