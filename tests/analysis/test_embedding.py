"""Maps: planted groups lie together, of nothing nothing does, and scores are those of scikit-learn."""

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from planted import directions, grouped, halved, latents, no_corpus, observed
from sklearn.manifold import trustworthiness

from matryoshka.analysis.affinity import NEIGHBOURS, Neighbours, nearest_rows
from matryoshka.analysis.embedding import analyse, kept, layout, nearest_places, untrustworthiness
from matryoshka.scores.result import NotMeasurable, Result

GROUPS, SIZE, ROWS = 10, 20, 16_384
FEATURES = GROUPS * SIZE
GROUP = np.arange(FEATURES) // SIZE
needs_umap = pytest.mark.skipif(
    find_spec("umap") is None or find_spec("graspologic_native") is None,
    reason="umap-learn and graspologic-native are not installed",
)


def test_what_counts_against_a_map_is_scikit_learns() -> None:
    generator = np.random.default_rng(0)
    points = generator.normal(size=(120, 6))
    places = points[:, :2] + 0.3 * generator.normal(size=(120, 2))
    likeness = -np.linalg.norm(points[:, None] - points, axis=2)
    expected = trustworthiness(points, places, n_neighbors=NEIGHBOURS)
    assert 1 - untrustworthiness(likeness, places).mean() == pytest.approx(expected)
    assert untrustworthiness(-np.linalg.norm(places[:, None] - places, axis=2), places).max() == 0


def test_what_is_kept_is_the_share_of_the_nearest_in_both_maps() -> None:
    places = np.random.default_rng(0).random((60, 2))
    assert (kept(places, 3 * places[:, ::-1]) == 1).all(), "turned and enlarged it is the same map"
    other = np.random.default_rng(1).random((60, 2))
    expected = [
        len({*one} & {*two}) / NEIGHBOURS
        for one, two in zip(nearest_places(places, NEIGHBOURS), nearest_places(other, NEIGHBOURS), strict=True)
    ]
    assert kept(places, other).tolist() == pytest.approx(expected)


def test_without_the_library_it_is_said_how_to_have_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "umap.umap_", None)
    seen = observed(tmp_path / "recording", latents(0, 1024, 40, 0.05), halved(torch.randn(40, 8)))
    with pytest.raises(NotMeasurable, match=r"maps need umap-learn: pip install 'matryoshka-sae\[map\]'"):
        analyse(seen, no_corpus())


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """Groups that fire together and write alike; the last ten features fire by themselves, one is dense."""
    dense = grouped(0, ROWS, GROUPS, SIZE, 0.01)
    dense[:, FEATURES - 10 :] = dense[:500] = 0
    dense[np.arange(500), FEATURES - 10 + np.arange(500) % 10] = 1.0
    dense[:, -1] = 1.0
    folder = tmp_path_factory.mktemp("planted") / "recording"
    return analyse(observed(folder, dense, halved(directions(1, GROUPS, SIZE)), per_document=512), no_corpus())


@needs_umap
@pytest.mark.parametrize("kind", ["geometry", "coactivation"])
def test_planted_groups_lie_together(planted: Result, kind: str) -> None:
    of_kind = planted.details["layouts"][kind]
    places = np.column_stack([of_kind["x"], of_kind["y"]])
    grouped_ones = np.array(planted.details["features"]) < FEATURES - SIZE
    near = nearest_places(places[grouped_ones], 10)
    group = GROUP[: len(grouped_ones)][grouped_ones]
    assert (group[near] == group[:, None]).mean() > 0.9
    [trust], [stable] = planted.of(f"trustworthiness of {kind}"), planted.of(f"stability of {kind}")
    assert trust.value > 0.8
    assert abs((trust.null or 0) - 0.5) < 0.05
    assert stable.value > 0.3
    assert (stable.null or 0) < 0.15
    labels = np.array(planted.details["communities"][kind])[grouped_ones]
    assert len(np.unique(labels)) == GROUPS - 1


@needs_umap
def test_the_details_are_what_the_page_and_the_report_read(planted: Result) -> None:
    details = json.loads(json.dumps(planted.details))
    assert details["dense"] == [FEATURES - 1]
    assert details["features"] == list(range(FEATURES - 1))
    assert details["widths"] == [FEATURES // 2, FEATURES]
    assert details["rings"] == [0] * (FEATURES // 2) + [1] * (FEATURES // 2 - 1)
    for of_kind in details["layouts"].values():
        for axis in "xy":
            assert len(of_kind[axis]) == FEATURES - 1
            assert of_kind[axis] == np.round(of_kind[axis], 3).tolist()
    assert details["apart"]["geometry"] == []
    assert details["apart"]["coactivation"] == list(range(FEATURES - 10, FEATURES - 1))
    assert {*details["layouts"]["coactivation"]["y"][-9:]} == {-0.1}, "in a row below"


@needs_umap
def test_of_random_rows_a_map_shows_little() -> None:
    rows = torch.randn(1000, 128, generator=torch.Generator().manual_seed(0))
    places = layout(nearest_rows(rows), rows.numpy(), 0).places
    unit = torch.nn.functional.normalize(rows, dim=1)
    assert 1 - untrustworthiness((unit @ unit.T).numpy(), places).mean() < 0.6


@needs_umap
def test_a_seed_gives_one_map_and_another_seed_another() -> None:
    rows = directions(0, 4, 12)
    nearest = nearest_rows(rows)
    first, again, other = (layout(nearest, rows.numpy(), seed).places for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.allclose(first, other)
    assert first.min() == 0
    assert first.max() == 1


@needs_umap
def test_fewer_neighbours_than_others_have_are_no_hindrance() -> None:
    nearest = nearest_rows(directions(0, 4, 12))
    few = nearest.above(np.arange(NEIGHBOURS) < np.arange(48)[:, None] % NEIGHBOURS)
    found = layout(Neighbours(few.other, few.value), few.graph(), 0)
    assert np.isfinite(found.places).all()
    assert found.placed.all()
