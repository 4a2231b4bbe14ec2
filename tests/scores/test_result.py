"""Intervals that hold the truth as often as they say, comparisons that see what is there and nothing else."""

import math

import numpy as np
import pytest

from matryoshka.errors import MatryoshkaError
from matryoshka.scores.comparison import compare, compare_seeds, over_seeds
from matryoshka.scores.intervals import percentiles, resampled_sums
from matryoshka.scores.result import Measure, Result, Score, four_digits, score

LOSS = Measure("loss", "lower", "A ratio of sums.")
OWN = Measure("own", "higher", "Of units of each coder's own.", unit="feature", paired=False)


def drawn(
    generator: np.random.Generator, units: int, mean: float, measure: Measure = LOSS, noise: float = 1.0
) -> Score:
    """Documents of different lengths; the true ratio is `mean`."""
    lengths = generator.integers(5, 50, units)
    return score(measure, 8, range(units), lengths * (mean + noise * generator.normal(size=units)), lengths)


def test_a_score_is_a_ratio_of_sums_and_not_a_mean_of_ratios() -> None:
    found = score(LOSS, 4, ["a", "b"], [1, 9], [1, 3])
    assert found.value == 10 / 4
    assert score(LOSS, 4, ["a", "b"], [1, 9]).value == 5


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    generator = np.random.default_rng(0)
    held = [low <= 2 <= high for low, high in (drawn(generator, 80, 2.0).interval for _ in range(400))]
    assert 0.91 < np.mean(held) < 0.98


def test_units_are_what_is_resampled() -> None:
    """The same rows cut into fewer, larger documents that agree within say less than many small ones."""
    generator = np.random.default_rng(1)
    values = generator.normal(size=20)
    many = score(LOSS, 8, range(2000), generator.normal(size=2000))
    few = score(LOSS, 8, range(20), 100 * values, np.full(20, 100.0))
    assert np.diff(few.interval) > 5 * np.diff(many.interval)


def test_one_unit_says_nothing_of_its_spread() -> None:
    found = score(LOSS, 8, ["all"], [3], [4])
    assert found.value == 0.75
    assert all(map(math.isnan, found.interval))
    assert found.as_json()["low"] is None
    assert not compare(found, found).known


def test_a_paired_comparison_sees_what_the_spread_of_documents_hides() -> None:
    generator = np.random.default_rng(2)
    b = drawn(generator, 100, 2.0)
    a = Score(LOSS, 8, b.units, b.numerator + 0.02 * b.denominator, b.denominator)
    found = compare(a, b)
    assert found.difference == pytest.approx(0.02)
    assert not found.inside_noise
    assert a.interval.low < b.value < a.interval.high, "unpaired intervals overlap"
    assert found.detectable < 0.001


def test_pairs_are_found_by_name_in_any_order() -> None:
    generator = np.random.default_rng(3)
    b = drawn(generator, 50, 2.0)
    shuffled = b.of([b.units[i] for i in generator.permutation(50)][:40])
    assert compare(shuffled, b).difference == 0
    assert compare(shuffled, b).inside_noise
    with pytest.raises(ValueError, match="no document in common"):
        compare(score(LOSS, 8, ["x", "y"], [1, 2]), b)
    with pytest.raises(ValueError, match="do not compare"):
        compare(drawn(generator, 9, 1, OWN), b)


def test_differences_of_equal_coders_are_mostly_inside_the_noise() -> None:
    generator = np.random.default_rng(4)
    for measure in (LOSS, OWN):
        pairs = [[drawn(generator, 60, 1.0, measure) for _ in range(2)] for _ in range(200)]
        seen = np.mean([not compare(a, b).inside_noise for a, b in pairs])
        assert 0.02 < seen < 0.1, measure.name


def test_the_detectable_difference_is_found_four_times_in_five() -> None:
    generator = np.random.default_rng(5)
    detectable = compare(drawn(generator, 200, 1.0, OWN), drawn(generator, 200, 1.0, OWN)).detectable
    pairs = [(drawn(generator, 200, 1.0 + detectable, OWN), drawn(generator, 200, 1.0, OWN)) for _ in range(200)]
    found = np.mean([not compare(a, b).inside_noise for a, b in pairs])
    assert 0.7 < found < 0.9


def test_seeds_are_compared_by_their_spread() -> None:
    def seeds(*values: float) -> list[Score]:
        return [score(LOSS, 8, ["all"], [value]) for value in values]

    assert over_seeds(seeds(1, 2, 3)) == (2, 1, 3)
    apart = compare_seeds(seeds(1.0, 1.1, 0.9), seeds(2.0, 2.1, 1.9))
    assert apart.difference == pytest.approx(-1)
    # Welch's t with 4 degrees of freedom, by hand: 2.776 · 0.1 · √(2/3)
    assert (apart.high - apart.low) / 2 == pytest.approx(2.7764 * 0.1 * math.sqrt(2 / 3), rel=1e-3)
    assert not apart.inside_noise
    assert compare_seeds(seeds(1, 2, 3), seeds(1.5, 2.5, 3.5)).inside_noise


def test_many_units_are_resampled_in_bounded_memory() -> None:
    found = drawn(np.random.default_rng(6), 3000, 1.0)
    in_parts = resampled_sums(np.stack([found.numerator, found.denominator]), at_once=7000)
    assert percentiles(in_parts[0] / in_parts[1]) == pytest.approx(found.interval, rel=0.01)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="2 units, 1 names"):
        score(LOSS, 8, ["a", "a"], [1, 2])
    with pytest.raises(MatryoshkaError, match=r"no score .lost. here .did you mean .loss."):
        Result((score(LOSS, 8, ["a"], [1]),)).of("lost")


def test_numbers_have_four_digits_as_they_would_be_written() -> None:
    generator = np.random.default_rng(0)
    values = (10.0 ** generator.uniform(-9, 9, 20_000) * generator.choice([-1, 1], 20_000)).tolist()
    values += [0.0, 1.0, 9999.5, 99_995.0, 0.1]
    assert four_digits([*values, None]) == [*(float(f"{x:.4g}") for x in values), None]
