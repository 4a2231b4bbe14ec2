"""Chains over coders: of planted features that stay, end and are born; and of none."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from planted import latents, recorded, side_by_side

from matryoshka.analysis.chains import Crossing, Walk
from matryoshka.analysis.correspondence import analyse
from matryoshka.analysis.directions import composed
from matryoshka.analysis.flow import Flow
from matryoshka.analysis.observed import Observed, Pair

ROWS = 8192
SIZE = 60
STAYING, ENDING = 20, 10
"""Of the first coder: those that go through all three, and those that end in the second. The next ten of the second are
born there and go on."""


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Observed], list[np.ndarray]]:
    """Three coders, and of each the latents in which the features lie: the staying, the ending, those born in the
    second."""
    generator = np.random.default_rng(0)
    order = [generator.permutation(SIZE) for _ in range(3)]
    features, noise = latents(1, ROWS, 40), [latents(seed, ROWS, SIZE) for seed in (2, 3, 4)]
    shown = [np.r_[0:30], np.r_[0:40], np.r_[0:20, 30:40]]
    for coder, own, which in zip(noise, order, shown, strict=True):
        coder[:, own[: len(which)]] = features[:, which]
    coders = recorded(tmp_path_factory.mktemp("planted") / "recording", *noise)
    places = [np.full(40, -1) for _ in range(3)]
    for place, own, which in zip(places, order, shown, strict=True):
        place[which] = own[: len(which)]
    return side_by_side("abc", coders, [f"{layer}.resid_post" for layer in range(3)]), places


def flow_of(members: list[Observed]) -> Flow:
    matches = [analyse(Pair(first, second)) for first, second in pairwise(members)]
    return Flow.of([member.recorded.d_sae for member in members], matches)


def test_what_stays_ends_and_is_born_is_recovered_exactly(
    planted: tuple[list[Observed], list[np.ndarray]],
) -> None:
    members, places = planted
    flow = flow_of(members)
    assert flow.forward[0][places[0][:30]].tolist() == places[1][:30].tolist()
    assert flow.forward[1][places[1][:20]].tolist() == places[2][:20].tolist()
    assert flow.forward[1][places[1][30:]].tolist() == places[2][30:].tolist()
    assert (flow.lengths[0][places[0][:20]] == 2).all()
    assert (flow.lengths[0][places[0][20:30]] == 1).all()
    assert flow.spans() == [[30, 10, 20], [0, 20, 10], [0, 0, 30]]
    chains = flow.chains()
    through = {tuple(chain) for chain in chains["latents"] if len(chain) == 3}
    assert through == {tuple(place[i] for place in places) for i in range(20)}
    assert [chains["born"].count(i) for i in range(3)] == [30, 10, 0]
    assert min(chains["weakest"]) == pytest.approx(1)
    assert flow.joints(0) == {"merges": 0, "merged": 0, "splits": 0, "split": 0}


def test_by_chance_no_chain_goes_on(planted: tuple[list[Observed], list[np.ndarray]]) -> None:
    members, _ = planted
    flow, walk = flow_of(members), Walk()
    for i, pair in enumerate(map(Pair, members, members[1:])):
        crossing = Crossing.of(pair, *flow.links(i), flow.pearson[i])
        assert len(crossing.predecessors) == 30, "all there are, of at most LINKS"
        walk.go_on(crossing)
    assert [len(lengths) for lengths in walk.lengths] == [SIZE, SIZE]
    assert max(lengths.mean() for lengths in walk.lengths) <= 0.02


def test_documents_are_followed_by_chance(tmp_path: Path) -> None:
    """Three copies of latents that each fire in the documents of one topic: those chains need no token to be right."""
    topics = np.arange(ROWS) // 64 % 8
    a = (topics[:, None] == np.arange(8)) * np.random.default_rng(0).uniform(1, 2, (ROWS, 8))
    members = side_by_side(
        "abc", recorded(tmp_path / "recording", a, a, a), [f"{layer}.resid_post" for layer in range(3)]
    )
    flow, walk = flow_of(members), Walk()
    for i, pair in enumerate(map(Pair, members, members[1:])):
        walk.go_on(Crossing.of(pair, *flow.links(i), flow.pearson[i]))
    assert walk.lengths[0].tolist() == [2] * 8
    assert walk.lengths[1].tolist() == [1] * 8


def test_merges_and_splits_are_counted(tmp_path: Path) -> None:
    """Two halves of a latent of the next coder, and the other way round."""
    whole, other = latents(0, ROWS, 2, 0.08).T, latents(1, ROWS, 4)
    first_half = np.random.default_rng(2).random(ROWS) < 0.5
    a = np.stack([whole[0] * first_half, whole[0] * ~first_half, whole[1], *other[:, :2].T], 1)
    b = np.stack([whole[0], whole[1] * first_half, whole[1] * ~first_half, *other[:, 2:].T], 1)
    members = side_by_side("ab", recorded(tmp_path / "recording", a, b), ["0.resid_post", "1.resid_post"])
    flow = flow_of(members)
    assert flow.joints(0) == {"merges": 1, "merged": 2, "splits": 1, "split": 2}
    assert flow.forward[0][:2].tolist() == [0, 0]
    assert flow.backward[0][1:3].tolist() == [2, 2]
    assert flow.forward[0][3:].tolist() == [-1, -1]


def test_pairings_are_composed_and_gaps_left_out() -> None:
    assert composed([{0: 5, 1: 6, 2: 7}, {5: 1, 6: 0}, {0: 9, 1: 8}]) == {0: 8, 1: 9}
    assert composed([{3: 4}]) == {3: 4}
