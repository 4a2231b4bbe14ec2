"""Probes and the choice of latents, against brute force, scikit-learn and planted structure."""

from collections.abc import Callable
from itertools import islice

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics

from matryoshka.evaluation.shared.probes import auc, balanced_accuracy, f1, fit, forward, most_different

RNG = np.random.default_rng
Choose = Callable[[sp.csr_array, np.ndarray, int], np.ndarray]
LABELS = RNG(0).random(400) < 0.3


def noise(rows: int = 400, d: int = 60, density: float = 0.1, seed: int = 1) -> np.ndarray:
    """Latents that have nothing to do with any label."""
    generator = RNG(seed)
    return (generator.random((rows, d)) < density) * generator.exponential(size=(rows, d))


def csr(latents: np.ndarray) -> sp.csr_array:
    return sp.csr_array(latents.astype(np.float32))


# --- probes


def test_a_probe_finds_the_direction_that_labels_were_made_of() -> None:
    x = RNG(1).standard_normal((2000, 8))
    true = np.array([3, -2, 0, 0, 1, 0, 0, 0.5])
    labels = RNG(2).random(2000) < 1 / (1 + np.exp(-(x @ true)))
    probe = fit(x, labels)
    assert probe.direction @ true / np.linalg.norm(probe.direction) / np.linalg.norm(true) > 0.99
    assert probe.direction == pytest.approx(true, abs=0.4)


def test_a_probe_is_of_raw_units() -> None:
    """Stretched and shifted columns, of the same information, give the same scores."""
    x = RNG(1).standard_normal((300, 5)).astype(np.float32)
    labels = x[:, 0] + 0.5 * RNG(3).standard_normal(300) > 0.3
    scale, shift = np.array([1, 100, 0.01, 5, 1], dtype=np.float32), np.array([0, 7, 1, -3, 50], dtype=np.float32)
    np.testing.assert_allclose(
        fit(x, labels).scores(x), fit(x * scale + shift, labels).scores(x * scale + shift), rtol=1e-2, atol=2e-3
    )


def test_classes_weigh_the_same() -> None:
    """With one yes in fifty and overlapping classes, half of either are still told rightly or more."""
    labels = np.arange(5000) % 50 == 0
    x = RNG(4).standard_normal((5000, 1)) + labels[:, None]
    scores = fit(x, labels).scores(x)
    assert (scores > 0)[labels].mean() > 0.6
    assert (scores <= 0)[~labels].mean() > 0.6


def test_a_column_that_does_not_vary_does_no_harm() -> None:
    x = np.column_stack([RNG(5).standard_normal(200), np.full(200, 3.0)])
    probe = fit(x, x[:, 0] > 0)
    assert probe.direction[1] == 0
    assert balanced_accuracy(probe.scores(x), x[:, 0] > 0) > 0.97


# --- measures


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=1, max_size=30))
def test_measures_are_what_they_are_called(rows: list[tuple[int, bool]]) -> None:
    scores, labels = np.array([float(score) for score, _ in rows]), np.array([label for _, label in rows])
    yes, no = scores[labels], scores[~labels]
    said = scores > 0
    assert f1(scores, labels) == pytest.approx(metrics.f1_score(labels, said, zero_division=0))
    if len(yes) and len(no):
        pairs = [(a > b) + (a == b) / 2 for a in yes for b in no]
        assert auc(scores, labels) == pytest.approx(np.mean(pairs))
        assert balanced_accuracy(scores, labels) == pytest.approx(metrics.balanced_accuracy_score(labels, said))
    else:
        assert np.isnan(auc(scores, labels))
        assert np.isnan(balanced_accuracy(scores, labels))


# --- which latents


def first_forward(latents: sp.csr_array, labels: np.ndarray, k: int) -> np.ndarray:
    steps = list(islice(forward(latents, labels), k))
    return steps[-1].latents if steps else np.empty(0, dtype=np.int64)


both_choices = pytest.mark.parametrize("choose", [most_different, first_forward])


def test_difference_is_the_standardised_one() -> None:
    latents = noise()
    latents[:, 7] += LABELS * 0.4
    latents[:, 9] += ~LABELS * 0.3  # against the concept
    latents[:, 3] = 0
    found = most_different(csr(latents), LABELS, 10)
    with np.errstate(invalid="ignore"):
        strength = np.abs(latents[LABELS].mean(0) - latents[~LABELS].mean(0)) / latents.std(0)
    expected = np.argsort(-np.nan_to_num(strength), kind="stable")[:10]
    assert found.tolist() == expected.tolist()
    assert set(found[:2]) == {7, 9}


@both_choices
def test_the_choice_does_not_care_for_units(choose: Choose) -> None:
    latents = noise()
    latents[:, 7] += LABELS * 0.2
    latents[:, 9] += LABELS * (np.arange(400) % 2) * 0.2
    stretched = latents * np.exp(3 * RNG(8).standard_normal(60))
    first, second = (choose(csr(each), LABELS, 5) for each in (latents, stretched))
    assert first.tolist() == second.tolist()


@both_choices
def test_silent_and_constant_latents_are_never_chosen(choose: Choose) -> None:
    latents = np.zeros((400, 6))
    latents[:, 1] = 0.3  # always the same
    latents[:, 2] = LABELS * 0.5
    assert choose(csr(latents), LABELS, 5).tolist() == [2]
    assert choose(csr(np.zeros((400, 6))), LABELS, 5).tolist() == []
    assert choose(csr(latents[:, :0]), LABELS, 5).tolist() == []


@both_choices
def test_fewer_latents_are_the_first_of_more(choose: Choose) -> None:
    latents = csr(noise() + np.eye(60)[RNG(3).integers(0, 60, 400)] * LABELS[:, None])
    most = choose(latents, LABELS, 8)
    assert len(set(most.tolist())) == 8
    for k in range(8):
        assert choose(latents, LABELS, k).tolist() == most[:k].tolist()


def test_forward_looks_for_what_is_still_missing() -> None:
    """Of two latents of the same 60 % of a concept and one of the rest, difference takes the two, forward one each."""
    part = np.arange(400) % 5 < 3
    latents = noise(density=0.05)
    for column, where in ((10, LABELS & part), (11, LABELS & part), (12, LABELS & ~part)):
        latents[:, column] = where * (1 + RNG(column).random(400))
    assert set(most_different(csr(latents), LABELS, 2)) == {10, 11}
    found = first_forward(csr(latents), LABELS, 2)
    assert found[0] in (10, 11)
    assert found[1] == 12


def test_forward_takes_no_latent_that_speaks_against_the_concept() -> None:
    latents = np.zeros((400, 3))
    latents[:, 0] = ~LABELS * 1.0
    latents[:, 1] = (LABELS & (np.arange(400) % 2 == 0)) * 1.0
    assert most_different(csr(latents), LABELS, 1).tolist() == [0]
    assert first_forward(csr(latents), LABELS, 1).tolist() == [1]
