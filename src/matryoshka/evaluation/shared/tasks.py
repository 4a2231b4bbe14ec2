"""The concepts of labelled text that a site tells of: what is probed for, the same for every coder that reads it."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from matryoshka.evaluation.shared.labelled_rows import LabelledRows
from matryoshka.evaluation.shared.probes import auc, fit_activations, folds
from matryoshka.scores.result import NotMeasurable

LEAST_GROUPS = 3
"""Words or documents of a concept, and of its opposite, in each half."""
LEAST_AUC = 0.7
"""Of a dense probe, below which a site does not tell of a concept."""


class Task(NamedTuple):
    """One concept against the rest of its set."""

    name: str
    """set/concept"""
    rows: LabelledRows
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


def measurable(sets: Sequence[LabelledRows], opposites: bool = False) -> Tasks:
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
    tasks = Tasks(
        [task for task in candidates if aucs[task.name] >= LEAST_AUC],
        rare,
        [name for name, value in aucs.items() if value < LEAST_AUC],
    )
    if not tasks.tasks:
        best = f"the best is {max(aucs, key=aucs.__getitem__)} with {max(aucs.values()):.2f}" if aucs else "none"
        raise NotMeasurable(
            f"no concept has {LEAST_GROUPS} words or documents in each half and a dense probe's AUC of {LEAST_AUC} or"
            f" more: of {len(aucs)} with enough of them, {best}"
        )
    return tasks


def _different(rows: LabelledRows, opposites: bool) -> Iterator[Task]:
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
