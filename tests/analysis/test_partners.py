"""Partners of one's own and shared ones, words and punctuation: of matches that are known."""

import numpy as np
import pytest

from matryoshka.analysis.matching import Best
from matryoshka.analysis.partners import apart, of_punctuation, shared_out


def best(pearson: list[float], partner: list[int]) -> Best:
    values, numbers = np.array(pearson), np.array(partner)
    return Best(values, numbers, values, numbers, values)


def test_partners_are_shared_out() -> None:
    """Three of one partner, who is the best of the second; one with a partner of its own; one without any."""
    a, b = best([0.5, 0.9, 0.4, 0.8, 0.2], [2, 2, 2, 0, 1]), best([0.8, 0.2, 0.9, 0.1], [3, 4, 1, 0])
    one, many = shared_out("A", 16, np.array([3, 5, 7, 8, 9]), a, b, 0.3)
    assert one.measure.name == "one-to-one of A"
    assert one.units == many.units == ("3", "5", "7", "8")
    assert one.numerator.tolist() == [0, 1, 0, 1]
    assert many.numerator.tolist() == [1, 1, 1, 0]
    assert one.null == pytest.approx(1 / 5)
    assert many.null == pytest.approx(1 - (3 / 4) ** 3)
    assert list(shared_out("A", 16, np.arange(5), a, b, 0.95)) == []


def test_chance_shares_partners_as_its_null_says() -> None:
    generator = np.random.default_rng(0)
    drawn = best([1.0] * 400, generator.integers(0, 300, 400).tolist())
    other = best([1.0] * 300, generator.integers(0, 400, 300).tolist())
    one, many = shared_out("B", 400, np.arange(400), drawn, other, 0.3)
    assert many.null == pytest.approx(many.value, abs=0.04)
    assert one.value < 0.02


def test_latents_of_punctuation_are_counted_alone() -> None:
    letters = np.array([0.0, 0.1, 0.11, 1.0, np.nan])
    punctuation = of_punctuation(letters, np.array([0, 1, 2, 3]))
    assert punctuation.tolist() == [True, True, False, False]
    of_words, of_stops = apart("B", 8, np.arange(4), np.array([True, False, True, True]), punctuation)
    assert (of_words.measure.name, of_words.value, of_words.units) == ("kept of B (words)", 1, ("2", "3"))
    assert (of_stops.measure.name, of_stops.value) == ("kept of B (punctuation)", 0.5)
    assert len(list(apart("A", 8, np.arange(2), np.ones(2, bool), np.zeros(2, bool)))) == 1
