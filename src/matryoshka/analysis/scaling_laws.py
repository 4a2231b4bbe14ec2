"""How what a coder leaves unexplained falls with the size of its dictionary n, its active latents k and its tokens T.

    FVU(n, k, T) = exp(α + β_n ln n + β_k ln k + γ ln k ln n)  +  exp(δ + β_T ln T)  +  exp(ζ + η ln k)

The first and the last term are Gao et al.'s (2024, arXiv:2406.04093): a power law that n drives, and what no dictionary
explains. The middle one is what more training would still explain. Of a variable that does not vary, its parameters are
not there: with one k and one T what is left is exp(α + β_n ln n) + exp(ζ).

1. `fit`        least squares of ln FVU, from STARTS starting points, each parameter within bounds
2. intervals    the same of runs drawn with replacement, RESAMPLES times
3. by chance    the same with the FVU of the runs exchanged among them: what an exponent is if nothing scales
4. identified   whether the runs tell the parameters apart: the condition number of JᵀJ, its columns of unit length.
                Where n and T grow in proportion they cannot (arXiv:2605.08541), and that is refused
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.optimize import least_squares

from matryoshka.scores.intervals import Interval, percentiles
from matryoshka.scores.result import NotMeasurable

STARTS, AGAIN = 24, 4
"""Of the fit; and of each one of resampled or exchanged runs, besides the fit itself."""
RESAMPLES = 200
EXCHANGED = 40
"""Fits by chance."""
SEED = 0
LEAST = {"n": 4, "k": 3, "T": 3}
"""Different values that a variable needs to be fitted by."""
PROPORTIONAL = 0.99
"""Correlation of ln n and ln T from which on their effects cannot be told apart."""
ILL_CONDITIONED = 1e6
"""Condition number of JᵀJ from which on a fit is said not to identify its parameters."""
BOUNDS = {"amplitude": (-25.0, 20.0), "exponent": (-3.0, 3.0)}
"""Of α, δ and ζ, and of all others. An amplitude at its lower bound is a term that is not there."""


class Trained(NamedTuple):
    """One coder, or a prefix of one: what it was made with, and what it leaves."""

    n: int
    """Latents."""
    k: int
    """Active ones a token."""
    T: int
    """Tokens that it was trained on."""
    fvu: float


class Parameter(NamedTuple):
    """A fitted number."""

    name: str
    value: float
    interval: Interval
    """Over resampled runs."""
    by_chance: Interval
    """With the FVU of the runs exchanged."""


class Fit(NamedTuple):
    """A scaling law of some runs."""

    formula: str
    parameters: tuple[Parameter, ...]
    residual: float
    """Root mean square of ln FVU − ln of the fit."""
    as_well: float
    """Share of the fits by chance that leave as little."""
    condition: float
    """Of JᵀJ with columns of unit length."""
    runs: tuple[Trained, ...]

    @property
    def identified(self) -> bool:
        """Whether these runs tell its parameters apart."""
        return self.condition < ILL_CONDITIONED

    def of(self, name: str) -> Parameter:
        """The parameter `name`, such as "β_n"."""
        return next(parameter for parameter in self.parameters if parameter.name == name)

    def predicted(self, runs: Sequence[Trained]) -> Float[np.ndarray, " runs"]:
        """The FVU that it expects."""
        theta = np.array([parameter.value for parameter in self.parameters])
        return _predicted(theta, _terms(runs, varying(self.runs)))[0]


Terms = list[dict[str, Float[np.ndarray, " runs"]]]
"""Summands exp(Σ parameter · column)."""


def fit(runs: Sequence[Trained]) -> Fit:
    """The law of these runs. Raises NotMeasurable where there are too few, or they cannot tell n from T."""
    variables = varying(runs)
    terms = _terms(runs, variables)
    names = [name for term in terms for name in term]
    _refuse(runs, variables, len(names))
    fvu, generator = np.log([run.fvu for run in runs]), np.random.default_rng(SEED)
    starts = [_start(names, fvu, generator) for _ in range(STARTS)]
    theta, residual = _best(terms, fvu, starts)
    again = [theta, *starts[:AGAIN]]
    drawn = [_of_rows(terms, fvu, rows, again) for rows in _draws(len(runs), len(names), generator)]
    exchanged = [_best(terms, fvu[generator.permutation(len(runs))], again) for _ in range(EXCHANGED)]
    chance = np.array([chosen for chosen, _ in exchanged])
    intervals, by_chance = (list(map(percentiles, thetas.T)) for thetas in (np.array(drawn), chance))
    parameters = tuple(map(Parameter, names, theta.tolist(), intervals, by_chance))
    as_well = float(np.mean([left <= residual for _, left in exchanged]))
    return Fit(_formula(terms), parameters, residual, as_well, _condition(theta, terms), tuple(runs))


def varying(runs: Sequence[Trained]) -> list[str]:
    """The variables that are not the same in all runs; n is always among them."""
    return ["n", *(name for name in ("k", "T") if len({getattr(run, name) for run in runs}) > 1)]


def _refuse(runs: Sequence[Trained], variables: Sequence[str], parameters: int) -> None:
    for name in variables:
        if (there := len({getattr(run, name) for run in runs})) < LEAST[name]:
            raise NotMeasurable(f"{there} values of {name}; a law needs {LEAST[name]}")
    if len(runs) <= parameters:
        raise NotMeasurable(f"{len(runs)} runs for {parameters} parameters; give more")
    if "T" in variables:
        n, tokens = (np.log([getattr(run, name) for run in runs]) for name in "nT")
        if abs(correlation := np.corrcoef(n, tokens)[0, 1]) > PROPORTIONAL:
            raise NotMeasurable(
                f"tokens grow with the dictionary (correlation of ln n and ln T {correlation:.3f}): what comes of which"
                " cannot be told; vary them independently"
            )


def _terms(runs: Sequence[Trained], variables: Sequence[str]) -> Terms:
    n, k, tokens = (np.log([float(getattr(run, name)) for run in runs]) for name in Trained._fields[:3])
    one = np.ones(len(runs))
    by_n, rest = {"α": one, "β_n": n}, {"ζ": one}
    if "k" in variables:
        by_n |= {"β_k": k, "γ": k * n}
        rest |= {"η": k}
    return [by_n, *([{"δ": one, "β_T": tokens}] if "T" in variables else []), rest]


def _formula(terms: Terms) -> str:
    variables = {"β_n": " ln n", "β_k": " ln k", "γ": " ln k ln n", "β_T": " ln T", "η": " ln k"}
    sums = (" + ".join(f"{name}{variables.get(name, '')}" for name in term) for term in terms)
    return "FVU = " + " + ".join(f"exp({inside})" for inside in sums)


def _predicted(theta: np.ndarray, terms: Terms) -> tuple[np.ndarray, np.ndarray]:
    """(FVU [runs], its derivatives [runs, parameters])."""
    fvu, derivatives, start = 0.0, [], 0
    for term in terms:
        columns = np.stack(list(term.values()), 1)
        value = np.exp(columns @ theta[start : start + len(term)])
        fvu, start = fvu + value, start + len(term)
        derivatives.append(value[:, None] * columns)
    return np.asarray(fvu), np.concatenate(derivatives, 1)


def _jacobian(theta: np.ndarray, terms: Terms) -> Float[np.ndarray, "runs parameters"]:
    """Of ln FVU."""
    fvu, derivatives = _predicted(theta, terms)
    return derivatives / fvu[:, None]


def _start(names: Sequence[str], fvu: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """A random starting point: a term that falls slowly, and a rest below the smallest FVU."""
    start = generator.normal(0, 0.3, len(names))
    for i, name in enumerate(names):
        if name in ("α", "δ"):
            start[i] = fvu.mean() + generator.normal(1, 2)
        if name == "ζ":
            start[i] = fvu.min() - generator.exponential(1.5)
    return start


def _bounds(names: Sequence[str]) -> tuple[list[float], list[float]]:
    pairs = [BOUNDS["amplitude" if name in ("α", "δ", "ζ") else "exponent"] for name in names]
    return [low for low, _ in pairs], [high for _, high in pairs]


def _best(terms: Terms, fvu: np.ndarray, starts: Sequence[np.ndarray]) -> tuple[np.ndarray, float]:
    """The parameters with the least squares from any of the starting points; the root mean square that they leave."""
    bounds = _bounds([name for term in terms for name in term])

    def residuals(theta: np.ndarray) -> np.ndarray:
        return np.log(_predicted(theta, terms)[0]) - fvu

    jac: Any = partial(_jacobian, terms=terms)  # which the types of scipy do not know
    fits = [
        least_squares(residuals, np.clip(start, *bounds), jac, bounds, x_scale="jac", max_nfev=100) for start in starts
    ]
    best = min(fits, key=lambda one: one.cost)
    return best.x, float(np.sqrt(2 * best.cost / len(fvu)))


def _draws(runs: int, parameters: int, generator: np.random.Generator) -> Iterator[np.ndarray]:
    """Runs drawn with replacement, at least one more of them than there are parameters."""
    least, given = min(parameters + 1, runs), 0
    while given < RESAMPLES:
        rows = generator.integers(0, runs, runs)
        if len(np.unique(rows)) >= min(least, int(0.6 * runs) or 1):
            given += 1
            yield rows


def _of_rows(terms: Terms, fvu: np.ndarray, rows: np.ndarray, starts: Sequence[np.ndarray]) -> np.ndarray:
    """The parameters of these runs alone."""
    chosen = [{name: column[rows] for name, column in term.items()} for term in terms]
    return _best(chosen, fvu[rows], starts)[0]


def _condition(theta: np.ndarray, terms: Terms) -> float:
    jacobian = _jacobian(theta, terms)
    lengths = np.linalg.norm(jacobian, axis=0)
    unit = jacobian / np.where(lengths > 0, lengths, 1)
    return float(np.linalg.cond(unit.T @ unit))
