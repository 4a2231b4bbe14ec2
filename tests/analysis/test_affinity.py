"""Neighbours by phi and by cosine: against dense numbers, of planted groups, and how many chance gives."""

from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from planted import directions, grouped, latents, observed

from matryoshka.analysis import affinity
from matryoshka.analysis.affinity import (
    DENSE,
    NEIGHBOURS,
    FiringTable,
    alike,
    by_direction,
    by_firing,
    gathered,
    multiplied,
    nearest_rows,
    phi_of_all,
    sparse_firings,
)
from matryoshka.scores.result import NotMeasurable


def firings(dense: np.ndarray, per_document: int = 64) -> FiringTable:
    fires = sp.csr_array((dense > 0).astype(np.float32))
    return FiringTable(fires, dense.shape[1], np.arange(len(dense)) // per_document)


def phi(dense: np.ndarray) -> np.ndarray:
    """Of every two columns, by numpy alone."""
    found = np.corrcoef((dense > 0).astype(float).T)
    np.fill_diagonal(found, -1)
    return found


@pytest.mark.parametrize("together", [gathered, multiplied])
def test_neighbours_by_phi_are_those_of_dense_sums(monkeypatch: pytest.MonkeyPatch, together: object) -> None:
    monkeypatch.setattr(affinity, "GATHERED", 3000)
    monkeypatch.setattr(affinity, "GATHERED_FEATURES", 7)
    monkeypatch.setattr(affinity, "ROWS", 7)
    dense = grouped(0, 4096, 5, 12)
    told = []
    views = by_firing(firings(dense), together, lambda done, total: told.append((done, total)))  # type: ignore[arg-type]
    assert told[-1] == (60, 60)
    half = np.arange(4096) // 64 % 2 == 1
    for view, rows in ((views.whole, slice(None)), (views.first, ~half), (views.second, half)):
        expected = phi(dense[rows])
        best = -np.sort(-expected, axis=1)[:, :NEIGHBOURS]
        has = view.other >= 0
        np.testing.assert_allclose(view.value[has], best[has], atol=1e-5)
        found = np.take_along_axis(expected, np.where(has, view.other, 0), 1)
        np.testing.assert_allclose(found[has], view.value[has], atol=1e-5)
    own = views.whole.other[:, :11] // 12 == np.arange(60)[:, None] // 12
    assert own.all(), "the eleven others of a feature's group come first"


def test_of_features_that_fire_by_chance_each_has_one_neighbour_at_most_on_average() -> None:
    """Among 400 of densities from 0.1 % to 10 %: the stated rate is one for each, and the cut errs downwards."""
    generator = np.random.default_rng(1)
    dense = (generator.random((8192, 400)) < np.geomspace(0.001, DENSE, 400)).astype(float)
    views = by_firing(firings(dense), gathered)
    for view in (views.whole, views.first, views.second):
        assert 0 < (view.other >= 0).sum() / 400 <= 1
    blocks = by_firing(firings(dense, 512).blocks(), multiplied)
    assert (blocks.whole.other >= 0).sum() / 400 <= 1
    rows = torch.randn(400, 48, generator=torch.Generator().manual_seed(0))
    assert 0.3 < (alike(rows, 0).other >= 0).sum() / 400 < 2


def test_neighbours_by_direction_are_the_largest_cosines() -> None:
    rows = directions(0, 6, 10)
    unit = torch.nn.functional.normalize(rows, dim=1)
    cosines = (unit @ unit.T).fill_diagonal_(-2)
    nearest = nearest_rows(rows)
    assert np.array_equal(nearest.other, cosines.topk(NEIGHBOURS).indices.numpy())
    views = by_direction(rows, 0)
    for view in (views.whole, views.first, views.second):
        assert (view.other[:, :5] // 10 == np.arange(60)[:, None] // 10).all()
    kept = views.whole.other >= 0
    assert np.array_equal(views.whole.other[kept], nearest.other[kept])
    assert not kept[:, -1].all(), "beyond a group's nine nobody is alike"


def test_a_graph_is_symmetric_and_has_the_larger_of_two_weights() -> None:
    neighbours = affinity.Neighbours(np.array([[1, -1], [2, 0], [-1, -1]]), np.array([[0.5, 0], [0.25, 0.5], [0, 0]]))
    assert neighbours.graph().toarray().tolist() == [[0, 0.5, 0], [0.5, 0, 0.25], [0, 0.25, 0]]


def test_a_feature_fires_in_a_block_where_it_does_in_any_of_its_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(affinity, "BLOCK", 10)
    documents = np.repeat([4, 7, 9], [24, 4, 11])
    dense = latents(0, len(documents), 6, 0.1)
    found = FiringTable(sp.csr_array((dense > 0).astype(np.float32)), 6, documents).blocks()
    parts = [slice(0, 12), slice(12, 24), slice(24, 28), slice(28, 39)]
    assert found.fires.toarray().tolist() == [(dense[part] > 0).any(0).astype(float).tolist() for part in parts]
    assert found.documents.tolist() == [4, 4, 7, 9]
    assert found.in_second.tolist() == [False, False, True, False]
    monkeypatch.setattr(affinity, "MOST_BLOCKS", 2)
    some = FiringTable(sp.csr_array((dense > 0).astype(np.float32)), 6, documents).blocks()
    assert some.fires.toarray().tolist() == found.fires.toarray()[::2].tolist()


def test_moving_round_keeps_how_often_a_feature_fires_in_a_document_and_in_what_bursts() -> None:
    dense = np.zeros((200, 40))
    dense[10:13] = dense[120:125] = 1
    found = firings(dense, 100)
    moved = found.rotated(found.documents, 0).fires.toarray()
    assert (moved[:100].sum(0) == 3).all()
    assert (moved[100:].sum(0) == 5).all()
    for part, length in ((moved[:100], 3), (moved[100:], 5)):
        runs = (np.abs(np.diff(part, axis=0, append=part[:1])).sum(0)) / 2
        assert (runs == 1).all(), f"one burst of {length}"
        assert len(np.unique(part.argmax(0))) > 20, "each goes its own way"


def test_phi_of_all_pairs_is_the_correlation_of_firing() -> None:
    dense = grouped(3, 1024, 4, 5)
    found = phi_of_all(firings(dense))
    np.fill_diagonal(found, -1)
    np.testing.assert_allclose(found, phi(dense), atol=1e-5)


def test_dense_and_rare_features_are_set_apart(tmp_path: Path) -> None:
    dense = latents(0, 2048, 60, 0.05)
    dense[:, 3] = 1.0
    dense[:, 5] = 0.0
    dense[:9, 5] = 1.0
    living, apart, found = sparse_firings(observed(tmp_path / "recording", dense, torch.randn(60, 8)))
    expected = [i for i in range(60) if i not in (3, 5)]
    assert living.features.tolist() == expected
    assert apart.tolist() == [3]
    assert np.array_equal(found.fires.toarray(), (dense[:, expected] > 0).astype(np.float32))


def test_too_few_features_and_a_single_document_are_said(tmp_path: Path) -> None:
    dense, rows = latents(0, 2048, 60, 0.05), torch.randn(60, 8)
    with pytest.raises(NotMeasurable, match=r"20 features of planted fire on 10 of the tokens .* neighbours take 30"):
        sparse_firings(observed(tmp_path / "few", dense[:, :20], rows[:20]))
    with pytest.raises(NotMeasurable, match="one document"):
        sparse_firings(observed(tmp_path / "one", dense, rows, per_document=4096))
