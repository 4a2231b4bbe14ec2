"""Linear probes: logistic regression on activations or on a few latents, and how well they tell a concept.

    score = x · direction + bias, "yes" where it is positive

Columns are standardised before the fit, so that the penalty does not care for units, and both classes weigh the same.
A k-sparse probe (Gurnee et al. 2023, arXiv:2305.01610) is a probe of k latents:

    most_different   the k largest |μ₊ − μ₋| / σ
    forward          one after another, each the best complement of a probe of those before it: the largest
                     Σ (label − predicted) latent / σ, classes weighted alike; of the first it is (μ₊ − μ₋) / 2σ

σ is the latent's deviation over all rows. Without it the choice is not one of directions: a latent times ten, its
decoder row divided by ten, is the same latent, and yet would be chosen for its size (as it is by SAEBench's mean
difference and L1 penalty).
"""

import hashlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from jaxtyping import Bool, Float, Int
from sklearn.linear_model import LogisticRegression

FOLDS = 3
NEIGHBOURS = 20
"""The latents nearest in density, one of which stands in for another."""


class Probe(NamedTuple):
    """Of raw activations: standardisation is folded in."""

    direction: Float[np.ndarray, " d"]
    bias: float

    def scores(self, x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
        """Positive is "yes"."""
        return x @ self.direction + self.bias


def fit(x: Float[np.ndarray, "n d"], labels: Bool[np.ndarray, " n"]) -> Probe:
    """L2-penalised logistic regression of a few columns, each with a unit of its own.

    Raises ValueError unless both labels occur.
    """
    x = x.astype(np.float64)
    mean, deviation = x.mean(0), x.std(0)
    deviation[deviation == 0] = 1
    # with few columns Newton's method needs no more than some ten small systems of equations
    solver = "newton-cholesky" if x.shape[1] <= 32 else "lbfgs"
    regression = LogisticRegression(class_weight="balanced", solver=solver, max_iter=1000)
    regression.fit((x - mean) / deviation, labels)
    direction = np.ravel(regression.coef_) / deviation
    return Probe(direction, float(np.ravel(regression.intercept_)[0] - mean @ direction))


def fit_activations(x: Float[np.ndarray, "n d"], labels: Bool[np.ndarray, " n"]) -> Probe:
    """A logistic regression in the activations' own metric: its penalty sees them with one scale for all dimensions.

    A column of latents has a unit of its own, a dimension of an activation has not: standardised one by one, those in
    which little happens would count as much as the others, and probes be worse.
    """
    mean = x.mean(0, dtype=np.float64)
    scale = np.sqrt(np.square(x - mean).mean())
    regression = LogisticRegression(class_weight="balanced", max_iter=1000).fit((x - mean) / scale, labels)
    direction = np.ravel(regression.coef_) / scale
    return Probe(direction, float(np.ravel(regression.intercept_)[0] - mean @ direction))


def balanced_accuracy(scores: Float[np.ndarray, " n"], labels: Bool[np.ndarray, " n"]) -> float:
    """The mean of the shares of yes and of no that are told rightly: 1/2 without knowledge. NaN unless both occur."""
    if labels.all() or not labels.any():
        return float("nan")
    said = scores > 0
    return float((said[labels].mean() + (~said[~labels]).mean()) / 2)


def auc(scores: Float[np.ndarray, " n"], labels: Bool[np.ndarray, " n"]) -> float:
    """How often a yes scores higher than a no, ties by half. NaN unless both occur."""
    yes, no = int(labels.sum()), int((~labels).sum())
    if not yes or not no:
        return float("nan")
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (counts.cumsum() - (counts - 1) / 2)[place]  # of equal scores the mean of their ranks
    return float((ranks[labels].sum() - yes * (yes + 1) / 2) / (yes * no))


def f1(scores: Float[np.ndarray, " n"], labels: Bool[np.ndarray, " n"]) -> float:
    """2 · right yes / (said yes + true yes); 0 where nothing is either."""
    said = scores > 0
    return float(2 * (said & labels).sum() / max(1, said.sum() + labels.sum()))


def most_different(latents: sp.csr_array, labels: Bool[np.ndarray, " n"], k: int) -> Int[np.ndarray, " chosen"]:
    """The `k` latents, best first, that speak for a concept or against it; fewer where fewer tell anything on these
    rows."""
    strength = np.abs(latents.T @ _residual(np.zeros(len(labels)), labels)) * _inverse_deviations(latents)
    best = np.argsort(-strength, kind="stable")[:k]
    return best[strength[best] > 0]


class Step(NamedTuple):
    """One more latent, and the probe of it and those before."""

    latents: Int[np.ndarray, " chosen"]
    probe: Probe


def forward(latents: sp.csr_array, labels: Bool[np.ndarray, " n"]) -> Iterator[Step]:
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


def take(latents: sp.csr_array, chosen: Int[np.ndarray, " chosen"]) -> Float[np.ndarray, "n chosen"]:
    """The columns of some latents."""
    return latents[:, chosen].toarray()


def _residual(scores: Float[np.ndarray, " n"], labels: Bool[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
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
    fires: Int[np.ndarray, " width"],
    chosen: Int[np.ndarray, " chosen"],
    generator: np.random.Generator,
    neighbours: int = NEIGHBOURS,
) -> Int[np.ndarray, " others"]:
    """For each chosen latent another one of the `neighbours` that fire most nearly as often, as far as there are
    such."""
    left = np.setdiff1d(np.flatnonzero(fires), chosen)
    others = []
    for often in fires[chosen]:
        near = left[np.argsort(np.abs(np.log(fires[left] / often)), kind="stable")[:neighbours]]
        if len(near):
            others.append(generator.choice(near))
            left = left[left != others[-1]]
    return np.array(others, dtype=np.int64)


def folds(groups: Sequence[str], labels: Bool[np.ndarray, " n"]) -> list[Bool[np.ndarray, " n"]]:
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


def f1_left_out(
    latents: sp.csr_array, labels: Bool[np.ndarray, " n"], parts: Sequence[np.ndarray], steps: Sequence[Step]
) -> float:
    """Of all rows, those of each part told by the probe that was fitted to the others."""
    scores = np.zeros(len(labels))
    for part, (chosen, probe) in zip(parts, steps, strict=True):
        scores[part] = probe.scores(take(latents[part], chosen))
    return f1(scores, labels)
