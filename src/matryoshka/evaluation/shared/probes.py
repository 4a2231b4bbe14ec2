"""Linear probes: logistic regression on activations or on a few latents, and how well they tell a concept.

    score = x · direction + bias, "yes" where it is positive

Columns are standardised before the fit, so that the penalty does not care for units, and both classes weigh the same.
A k-sparse probe (Gurnee et al. 2023, arXiv:2305.01610) is a probe of k latents:

    most_different   the k largest |μ₊ − μ₋| / σ
    forward          one after another, each the best complement of a probe of those before it: the largest
                     Σ (label − predicted) latent / σ, classes weighted alike; of the first it is (μ₊ − μ₋) / 2σ
    main_latents     of those of `forward` the first ones, as long as each helps on children left out

σ is the latent's deviation over all rows. Without it the choice is not one of directions: a latent times ten, its
decoder row divided by ten, is the same latent, and yet would be chosen for its size (as it is by SAEBench's mean
difference and L1 penalty). What is probed for are the concepts of labelled text that a site tells of (`measurable`),
the same for every coder that reads it.
"""

import hashlib
from collections.abc import Iterator, Sequence
from itertools import compress, islice
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from jaxtyping import Bool, Float, Int
from scipy.stats import rankdata
from sklearn.linear_model import LogisticRegression

from matryoshka.evaluation.shared.labelled_rows import LabelledRows
from matryoshka.scores.result import NotMeasurable

Labels = Bool[np.ndarray, " n"]
Scores = Float[np.ndarray, " n"]
Chosen = Int[np.ndarray, " chosen"]
"""Numbers of latents."""

FOLDS = 3
NEIGHBOURS = 20
"""The latents nearest in density, one of which stands in for another."""
F1_JUMP = 0.03
"""What one more latent has to add to F1."""
MAX_MAIN = 10
LEAST_GROUPS = 3
"""Words or documents of a concept, and of its opposite, in each half."""
LEAST_AUC = 0.7
"""Of a dense probe, below which a site does not tell of a concept."""


class Probe(NamedTuple):
    """Of raw activations: standardisation is folded in."""

    direction: Float[np.ndarray, " d"]
    bias: float

    def scores(self, x: Float[np.ndarray, "n d"]) -> Scores:
        """Positive is "yes"."""
        return x @ self.direction + self.bias


def fit(x: Float[np.ndarray, "n d"], labels: Labels) -> Probe:
    """L2-penalised logistic regression of a few columns, each with a unit of its own.

    Raises ValueError unless both labels occur.
    """
    x = x.astype(np.float64)
    deviation = x.std(0)
    deviation[deviation == 0] = 1
    # with few columns Newton's method needs no more than some ten small systems of equations
    return _regression(x, x.mean(0), deviation, labels, "newton-cholesky" if x.shape[1] <= 32 else "lbfgs")


def fit_activations(x: Float[np.ndarray, "n d"], labels: Labels) -> Probe:
    """A logistic regression in the activations' own metric: its penalty sees them with one scale for all dimensions.

    A column of latents has a unit of its own, a dimension of an activation has not: standardised one by one, those in
    which little happens would count as much as the others, and probes be worse.
    """
    mean = x.mean(0, dtype=np.float64)
    return _regression(x, mean, np.sqrt(np.square(x - mean).mean()), labels, "lbfgs")


def _regression(
    x: Float[np.ndarray, "n d"], mean: Float[np.ndarray, " d"], scale: np.ndarray | float, labels: Labels, solver: str
) -> Probe:
    regression = LogisticRegression(class_weight="balanced", solver=solver, max_iter=1000)
    regression.fit((x - mean) / scale, labels)
    direction = np.ravel(regression.coef_) / scale
    return Probe(direction, float(np.ravel(regression.intercept_)[0] - mean @ direction))


def balanced_accuracy(scores: Scores, labels: Labels) -> float:
    """The mean of the shares of yes and of no that are told rightly: 1/2 without knowledge. NaN unless both occur."""
    if labels.all() or not labels.any():
        return float("nan")
    said = scores > 0
    return float((said[labels].mean() + (~said[~labels]).mean()) / 2)


def auc(scores: Scores, labels: Labels) -> float:
    """How often a yes scores higher than a no, ties by half. NaN unless both occur."""
    yes, no = int(labels.sum()), int((~labels).sum())
    if not yes or not no:
        return float("nan")
    return float((rankdata(scores)[labels].sum() - yes * (yes + 1) / 2) / (yes * no))


def f1(scores: Scores, labels: Labels) -> float:
    """2 · right yes / (said yes + true yes); 0 where nothing is either."""
    said = scores > 0
    return float(2 * (said & labels).sum() / max(1, said.sum() + labels.sum()))


def most_different(latents: sp.csr_array, labels: Labels, k: int) -> Chosen:
    """The `k` latents, best first, that speak for a concept or against it; fewer where fewer tell anything here."""
    strength = np.abs(latents.T @ _residual(np.zeros(len(labels)), labels)) * _inverse_deviations(latents)
    best = np.argsort(-strength, kind="stable")[:k]
    return best[strength[best] > 0]


class Step(NamedTuple):
    """One more latent, and the probe of it and those before."""

    latents: Chosen
    probe: Probe


def forward(latents: sp.csr_array, labels: Labels) -> Iterator[Step]:
    """The best latent that speaks for a concept, the best two …, each time one more, until no further one does."""
    inverse, columns = _inverse_deviations(latents), latents.tocsc()
    chosen, scores = np.empty(0, dtype=np.int64), np.zeros(len(labels))
    while True:
        strength = (latents.T @ _residual(scores, labels)) * inverse
        strength[chosen] = 0
        if strength.max(initial=0) <= 0:
            return
        chosen = np.append(chosen, strength.argmax())
        x = columns[:, chosen].toarray()
        probe = fit(x, labels)
        yield Step(chosen, probe)
        scores = probe.scores(x)


def _residual(scores: Scores, labels: Labels) -> Scores:
    """label − predicted probability, the two classes weighted alike."""
    weights = np.where(labels, 1 / max(1, labels.sum()), 1 / max(1, (~labels).sum()))
    return weights * (labels - 1 / (1 + np.exp(-scores)))


def _inverse_deviations(latents: sp.csr_array) -> Float[np.ndarray, " d_sae"]:
    """1/σ of each latent over these rows, 0 where it does not vary: such a one is never chosen."""
    n = len(latents.indptr) - 1
    mean = latents.sum(0, dtype=np.float64) / n
    variance = latents.multiply(latents).sum(0, dtype=np.float64) / n - mean**2
    varies = variance > 1e-12 * np.maximum(mean**2, np.finfo(np.float64).tiny)
    return np.where(varies, 1 / np.sqrt(np.where(varies, variance, 1)), 0)


def as_dense(
    fires: Int[np.ndarray, " width"], chosen: Chosen, generator: np.random.Generator, neighbours: int = NEIGHBOURS
) -> Int[np.ndarray, " others"]:
    """For each chosen latent another one of the `neighbours` that fire most nearly as often, as far as there are."""
    left = np.setdiff1d(np.flatnonzero(fires), chosen)
    others = []
    for often in fires[chosen]:
        near = left[np.argsort(np.abs(np.log(fires[left] / often)), kind="stable")[:neighbours]]
        if len(near):
            others.append(generator.choice(near))
            left = left[left != others[-1]]
    return np.array(others, dtype=np.int64)


def folds(groups: Sequence[str], labels: Labels) -> list[Labels]:
    """FOLDS parts of these rows, of whole groups; those with a yes and those with a no are spread over all of them."""
    yes, no = (
        {group for group, label in zip(groups, labels, strict=True) if label == which} for which in (True, False)
    )

    def place(group: str) -> tuple[int, bytes]:
        # groups with both stand in the middle: so groups with a yes stand together, and groups with a no
        return (group in yes) - (group in no), hashlib.sha256(group.encode()).digest()

    part = {group: i % FOLDS for i, group in enumerate(sorted(set(groups), key=place))}
    parts = np.array([part[group] for group in groups])
    return [parts == i for i in range(FOLDS)]


def f1_left_out(latents: sp.csr_array, labels: Labels, parts: Sequence[Labels], steps: Sequence[Step]) -> float:
    """Of all rows, those of each part told by the probe that was fitted to the others."""
    scores = np.zeros(len(labels))
    for part, (chosen, probe) in zip(parts, steps, strict=True):
        scores[part] = probe.scores(latents[part][:, chosen].toarray())
    return f1(scores, labels)


def main_latents(latents: sp.csr_array, labels: Labels, children: Sequence[str]) -> Chosen:
    """The latents that are a concept's own, best first: as long as the F1 of a probe of them grows by more than F1_JUMP
    on training rows of CHILDREN that neither they nor the probe were chosen by.

    `children`: what each row is in particular, be it of the concept or not. Empty if no latent fires more with the
    concept than without.
    """
    parts, main, best = folds(children, labels), np.empty(0, dtype=np.int64), np.full(2, -np.inf)
    every = forward(latents, labels)
    others = zip(*(forward(latents[~part], labels[~part]) for part in parts), strict=False)
    for (chosen, _), without in islice(zip(every, others, strict=False), MAX_MAIN):
        # the first says whether as many latents help that were chosen without the children they are to help on, the
        # second whether these very latents do: that of a left-out child would not
        same = [Step(chosen, fit(latents[~part][:, chosen].toarray(), labels[~part])) for part in parts]
        reached = np.array([f1_left_out(latents, labels, parts, steps) for steps in (without, same)])
        if (reached <= best + F1_JUMP).any():
            break
        main, best = chosen, reached
    return main


# --- what is probed for


class Task(NamedTuple):
    """One concept against the rest of its set."""

    name: str
    """set/concept"""
    rows: LabelledRows
    labels: Labels

    @property
    def train_groups(self) -> list[str]:
        """The word or document of each training row."""
        return [example.group for example in compress(self.rows.labelled.examples, ~self.rows.test)]


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
    every = [task for rows in sets for task in _different(rows, opposites)]
    candidates = [task for task in every if _enough_groups(task)]
    aucs = {task.name: _left_out_auc(task) for task in candidates}
    tasks = [task for task in candidates if aucs[task.name] >= LEAST_AUC]
    if not tasks:
        best = f"the best is {max(aucs, key=aucs.__getitem__)} with {max(aucs.values()):.2f}" if aucs else "none"
        raise NotMeasurable(
            f"no concept has {LEAST_GROUPS} words or documents in each half and a dense probe's AUC of {LEAST_AUC} or"
            f" more: of {len(aucs)} with enough of them, {best}"
        )
    return Tasks(tasks, len(every) - len(candidates), [name for name, value in aucs.items() if value < LEAST_AUC])


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
