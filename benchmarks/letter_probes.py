"""Probes of which letter a word begins with, all letters and penalties at once, with the penalty tuned.

A probe is the one that absorption takes (`probes.fit_activations`): one letter against the rest, both weighing the
same, L2-penalised logistic regression in the activations' own metric, "yes" where the score is positive. There its
strength C is 1; here

1. probes of every C of GRID are fitted to four fifths of the training words; the C with the best macro-F1 on the last
   fifth is taken, one for all letters
2. with that C, and with 1, they are fitted to all training words, and judged by the test words

One regression a letter by scikit-learn would take minutes a layer. Here a layer's rows are rotated once onto their
principal axes, where the Hessian is nearly diagonal: each axis gets about its Newton step, and some tens of steps of
L-BFGS over all letters at once reach the same optimum, those of the next C from where the last one ended. The optimum
is scikit-learn's (tests/test_benchmarks.py).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Bool, Float
from torch import Tensor

GRID = (1.0, 10.0, 100.0, 1000.0)
HOUSE_C = 1.0
"""What `probes.fit_activations` has."""
MAX_STEPS = 300
TOLERANCE = 1e-6
"""Of the gradient, of a loss that is a mean over rows; scikit-learn's is 1e-4, on axes that are not scaled."""


class Probes(NamedTuple):
    """One a letter, of raw activations."""

    directions: Float[Tensor, "d letters"]
    biases: Float[Tensor, " letters"]

    def f1(self, x: Float[Tensor, "rows d"], labels: Bool[Tensor, "rows letters"]) -> Float[Tensor, " letters"]:
        """2 · right yes / (said yes + true yes)."""
        said = x @ self.directions + self.biases > 0
        return 2 * (said & labels).sum(0) / (said.sum(0) + labels.sum(0)).clamp(min=1)


def fit(
    x: Float[Tensor, "rows d"], labels: Bool[Tensor, "rows letters"], grid: tuple[float, ...]
) -> dict[float, Probes]:
    """Probes of every C of `grid`, ascending. Each letter has to be among the labels of some rows and not of others."""
    mean = x.double().mean(0)
    centred = x - mean.float()
    scale = centred.double().square().mean().sqrt()
    variances, axes = torch.linalg.eigh((centred.T @ centred).double() / (len(x) * scale**2))
    turned = centred @ (axes / scale).float()
    count = labels.sum(0)
    weights = torch.where(labels, len(x) / (2 * count), len(x) / (2 * (len(x) - count)))
    v, bias = torch.zeros(x.shape[1], labels.shape[1]), torch.zeros(labels.shape[1])
    probes = {}
    for C in grid:
        step = (len(x) * variances.clamp(min=0) / 4 + 1 / C).rsqrt().float()[:, None]
        v, bias = _minimise(turned, labels, weights, C, step, v, bias)
        directions = axes @ v.double() / scale
        probes[C] = Probes(directions.float(), (bias - mean @ directions).float())
    return probes


def _minimise(
    x: Float[Tensor, "rows d"],
    labels: Bool[Tensor, "rows letters"],
    weights: Float[Tensor, "rows letters"],
    C: float,
    step: Float[Tensor, "d 1"],
    v: Float[Tensor, "d letters"],
    bias: Float[Tensor, " letters"],
) -> tuple[Float[Tensor, "d letters"], Float[Tensor, " letters"]]:
    """Σ weights · log(1 + e^∓score) + |v|² / 2C, from `v` and `bias` on; an axis is moved in units of `step`."""
    x, sign = x * step.T, 1 - 2 * labels.float()
    root = len(x) ** 0.5
    u, b = (v / step).requires_grad_(), (bias * root).requires_grad_()
    optimiser = torch.optim.LBFGS(
        [u, b], max_iter=MAX_STEPS, tolerance_grad=TOLERANCE, history_size=20, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimiser.zero_grad()
        errors = (weights * F.softplus(sign * (x @ u + b / root))).sum()
        value = (errors + (u * step).square().sum() / (2 * C)) / len(x)
        value.backward()
        return value

    optimiser.step(loss)
    return (u * step).detach(), (b / root).detach()


def tuned_strength(
    x: Float[Tensor, "rows d"], labels: Bool[Tensor, "rows letters"], validation: Bool[Tensor, " rows"]
) -> float:
    """The C of GRID whose probes of the other rows have the best macro-F1 on those of `validation`."""
    probes = fit(x[~validation], labels[~validation], GRID)
    macro = {C: float(probes[C].f1(x[validation], labels[validation]).mean()) for C in GRID}
    return max(macro, key=macro.__getitem__)


def held_out_f1(
    x: Float[Tensor, "rows d"], labels: Bool[Tensor, "rows letters"], test: Bool[Tensor, " rows"], *every_C: float
) -> list[Float[Tensor, " letters"]]:
    """F1 of each letter on the rows of `test`, by probes of the others with each C."""
    probes = fit(x[~test], labels[~test], tuple(sorted(set(every_C))))
    return [probes[C].f1(x[test], labels[test]) for C in every_C]
