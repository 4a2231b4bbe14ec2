"""Scaling laws: planted ones are recovered within their noise, of noise alone the exponent may be 0, and what cannot be
told apart is refused."""

from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
import pytest

from matryoshka.analysis import scaling_laws
from matryoshka.analysis.scaling_laws import ILL_CONDITIONED, Trained, fit
from matryoshka.scores.result import NotMeasurable

WIDTHS = [512 * 2**i for i in range(7)]
Law = Callable[[int, int, int], float]


def trained(
    law: Law, noise: float, k: Sequence[int] = (32,), tokens: Sequence[int] = (10**6,), seeds: int = 2, seed: int = 0
) -> list[Trained]:
    generator = np.random.default_rng(seed)
    return [
        Trained(*made, law(*made) * float(np.exp(noise * generator.normal())))
        for made in product(WIDTHS, k, tokens)
        for _ in range(seeds)
    ]


def power(n: int, k: int, tokens: int) -> float:
    return float(np.exp(1 - 0.35 * np.log(n)) + 0.05)


def power_of_tokens(n: int, k: int, tokens: int) -> float:
    return power(n, k, tokens) + float(np.exp(4 - 0.5 * np.log(tokens)))


def gao(n: int, k: int, tokens: int) -> float:
    """GPT-4's, by Gao et al."""
    ln_n, ln_k = np.log(n), np.log(k)
    inner = np.exp(-0.5 + 0.26 * ln_k - 0.017 * ln_n - 0.042 * ln_k * ln_n)
    return float(inner + np.exp(-1.32 - 0.085 * ln_k))


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, number in (("STARTS", 8), ("AGAIN", 1), ("RESAMPLES", 30), ("EXCHANGED", 20)):
        monkeypatch.setattr(scaling_laws, name, number)


@pytest.mark.parametrize(
    ("runs", "planted"),
    [
        (trained(power, 0.01), {"α": (1, 0.25), "β_n": (-0.35, 0.05), "ζ": (np.log(0.05), 0.2)}),
        (
            trained(power_of_tokens, 0.01, tokens=(10**5, 10**6, 10**7)),
            {"β_n": (-0.35, 0.03), "β_T": (-0.5, 0.05), "ζ": (np.log(0.05), 0.2)},
        ),
        (
            trained(gao, 0.005, k=(8, 16, 32, 64)),
            {"α": (-0.5, 0.15), "β_k": (0.26, 0.06), "β_n": (-0.017, 0.04), "γ": (-0.042, 0.015), "ζ": (-1.32, 0.4)},
        ),
    ],
    ids=["width", "width and tokens", "width and k"],
)
def test_planted_exponents_are_recovered(runs: list[Trained], planted: dict[str, tuple[float, float]]) -> None:
    law = fit(runs)
    for name, (value, tolerance) in planted.items():
        parameter = law.of(name)
        assert parameter.value == pytest.approx(value, abs=tolerance), name
        low, high = parameter.interval
        assert low - tolerance < value < high + tolerance
        assert 0 < high - low < 1.5
    assert law.residual < 0.012
    assert law.as_well == 0, "exchanged, the runs fit no law"
    assert law.identified
    np.testing.assert_allclose(law.predicted(runs), [run.fvu for run in runs], rtol=0.04)


@pytest.mark.parametrize("seed", range(1, 3))
def test_of_noise_alone_the_exponent_may_be_nothing(seed: int) -> None:
    """Eight intervals of nine hold 0: resampling few runs makes them a little narrow."""
    law = fit(trained(lambda n, k, tokens: 0.2, 0.02, seed=seed))
    low, high = law.of("β_n").interval
    assert low < 0 < high
    assert law.as_well > 0.05


def test_derivatives_are_those_of_differences() -> None:
    runs = trained(gao, 0, k=(8, 16), tokens=(10**5, 10**6), seeds=1)
    terms = scaling_laws._terms(runs, ["n", "k", "T"])
    theta = np.array([-0.5, -0.1, 0.2, -0.03, 1.0, -0.3, -1.5, 0.1])
    derivatives, step = scaling_laws._predicted(theta, terms)[1], 1e-6
    for i in range(len(theta)):
        moved = theta + step * (np.arange(len(theta)) == i)
        difference = (scaling_laws._predicted(moved, terms)[0] - scaling_laws._predicted(theta, terms)[0]) / step
        np.testing.assert_allclose(derivatives[:, i], difference, rtol=1e-3, atol=1e-6)


def test_what_cannot_be_told_apart_is_refused_or_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling_laws, "RESAMPLES", 2)
    monkeypatch.setattr(scaling_laws, "EXCHANGED", 2)
    in_proportion = [Trained(n, 32, 1000 * n, power_of_tokens(n, 32, 1000 * n)) for n in WIDTHS for _ in range(2)]
    with pytest.raises(NotMeasurable, match="tokens grow with the dictionary"):
        fit(in_proportion)
    with pytest.raises(NotMeasurable, match="3 values of n; a law needs 4"):
        fit([run for run in trained(power, 0.01) if run.n <= WIDTHS[2]])
    with pytest.raises(NotMeasurable, match="2 values of k"):
        fit(trained(gao, 0.01, k=(8, 16)))
    made = zip(WIDTHS, (8, 16, 32, 8, 16, 32, 8), (1, 2, 4, 1, 3, 2, 1), strict=True)
    too_few = [Trained(n, k, tokens, 0.1) for n, k, tokens in made]
    with pytest.raises(NotMeasurable, match="7 runs for 8 parameters"):
        fit(too_few)
    slow = fit(trained(lambda n, k, tokens: 0.3 * float(n**-0.01), 0, seeds=1))
    assert slow.condition > ILL_CONDITIONED, "a slow fall and a fast one to a rest look alike"
    assert not slow.identified
