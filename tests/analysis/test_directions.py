"""Decoder rows of two coders: cosines against numpy, planted pairings, and which coders have a common basis."""

from itertools import permutations

import numpy as np
import pytest
import torch
from coders import random_coder

from matryoshka.analysis import directions
from matryoshka.analysis.directions import (
    Paired,
    distinct,
    geometry,
    nearest,
    no_common_basis,
    one_to_one,
    pair_costs,
    shuffled_dimensions,
)
from matryoshka.data.tokens import Tokens
from matryoshka.lm.model import LanguageModel


def rows(seed: int, n: int, d: int = 16) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def cosines(a: torch.Tensor, b: torch.Tensor) -> np.ndarray:
    unit = [x.double().numpy() / np.linalg.norm(x.double().numpy(), axis=1, keepdims=True) for x in (a, b)]
    return unit[0] @ unit[1].T


def paired_rows(a: torch.Tensor, b: torch.Tensor) -> Paired:
    costs = pair_costs(len(a), len(b))
    assert costs is not None
    nearest(a, b, costs)
    return one_to_one(costs)


def test_the_nearest_rows_are_those_of_all_cosines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directions, "ROWS", 7)
    a, b = rows(0, 30), 3 * rows(1, 20)
    expected = cosines(a, b)
    for of_side, axis in zip(nearest(a, b), (1, 0), strict=True):
        np.testing.assert_allclose(of_side.cosine, expected.max(axis), atol=1e-6)
        assert np.array_equal(of_side.other, expected.argmax(axis))


def test_the_pairing_has_the_largest_sum() -> None:
    a, b = rows(0, 5), rows(1, 6)
    paired = paired_rows(a, b)
    best = max(cosines(a, b)[range(5), list(chosen)].sum() for chosen in permutations(range(6), 5))
    assert paired.cosine.sum() == pytest.approx(best, abs=1e-5)
    assert paired.cosine == pytest.approx(cosines(a, b)[paired.first, paired.second], abs=1e-6)


def test_a_permuted_copy_is_paired_with_itself_and_a_shuffled_one_with_nobody() -> None:
    a, permutation = rows(0, 40), torch.randperm(40, generator=torch.Generator().manual_seed(1))
    paired = paired_rows(a, 2 * a[permutation])
    assert permutation[paired.second].tolist() == paired.first.tolist()
    assert paired.cosine == pytest.approx(np.ones(40), abs=1e-6)
    shuffled = shuffled_dimensions(a, 0)
    np.testing.assert_allclose(cosines(shuffled, shuffled), cosines(a, a), atol=1e-6)
    assert nearest(a, shuffled)[0].cosine.max() < 0.9


def test_too_many_rows_are_not_paired(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directions, "MOST_ASSIGNED", 5)
    assert pair_costs(4, 5) is not None
    assert pair_costs(4, 6) is None


def test_only_what_is_written_into_one_space_is_compared(lm: LanguageModel, tokens: Tokens) -> None:
    windows = tokens.windows("held_out")
    mlp, attention, stream = (
        random_coder(lm, windows, site, site) for site in ("1.mlp_out", "2.attn_out", "3.resid_post")
    )
    read, other = (random_coder(lm, windows, site, site) for site in ("1.mlp_in", "2.mlp_in"))
    assert no_common_basis(mlp, stream) is None
    assert no_common_basis(attention, mlp) is None
    assert no_common_basis(read, read) is None
    assert no_common_basis(read, other) == "they write 1.mlp_in and 2.mlp_in, which share no basis"
    assert no_common_basis(stream, read) is not None


def test_rows_that_stand_alike_to_one_another_do_so_in_any_basis() -> None:
    """Turned into another space of more dimensions, with noise; by chance, and of unrelated rows, nothing is left."""
    a, turned = rows(0, 60), torch.linalg.qr(rows(1, 32, 32)).Q[:16]
    alike = geometry(a, 3 * a @ turned + 0.05 * rows(2, 60, 32), 0)
    apart = geometry(a, rows(3, 60, 32), 0)
    assert alike is not None
    assert apart is not None
    assert alike.agreement.min() > 0.9
    assert abs(alike.by_chance) < 0.05
    assert abs(apart.agreement.mean()) < 0.05
    a_there, b_there = cosines(a, a), cosines(rows(3, 60, 32), rows(3, 60, 32))
    others = np.arange(60) != 7
    assert apart.agreement[7] == pytest.approx(np.corrcoef(a_there[7, others], b_there[7, others])[0, 1], abs=1e-6)
    assert geometry(a[:3], a[:3], 0) is None


def test_rows_are_distinct_from_those_before_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directions, "ROWS", 7)
    a = rows(0, 30)
    a[20], a[29], a[5] = 2 * a[3], 3 * a[3] + 0.01, -a[4]
    assert distinct(a, 0.9).tolist() == [i for i in range(30) if i not in (20, 29)], "an opposite one is another"
