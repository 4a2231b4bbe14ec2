"""Who covers whom: Wilson's bound against scipy's, and the cuts."""

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from matryoshka.scores.coverage import Z, covers, wilson_lower


@pytest.mark.parametrize(("hits", "trials"), [(0, 10), (9, 10), (10, 10), (300, 1000)])
def test_the_bound_is_wilsons(hits: int, trials: int) -> None:
    interval = binomtest(hits, trials).proportion_ci(0.95, method="wilson")
    assert pytest.approx(1.96, abs=1e-4) == Z
    assert wilson_lower(hits / trials, trials) == pytest.approx(interval.low, abs=1e-4)
    assert 1 - wilson_lower(1 - hits / trials, trials) == pytest.approx(interval.high, abs=1e-4)


def test_few_firings_and_frequent_parents_cover_nobody() -> None:
    coverage, trials, firings = (
        np.array([0.8, 0.8, 0.9, 0.9]),
        np.array([10, 100, 100, 100]),
        np.array([9, 9, 450, 451]),
    )
    expected = [False, True, True, False]
    assert covers(coverage, trials, firings, 1000).tolist() == expected
    assert covers(*map(torch.from_numpy, (coverage, trials, firings)), 1000).tolist() == expected
