"""Parents and children: of known trees, of none, and every number against the plainest computation of it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from coders import plain
from planted import CONTEXT, SITE, KnownCorpus, latents, observed, recorded, sae

from matryoshka.analysis import edges as edges_module
from matryoshka.analysis.edges import MATCHED, CandidateEdges, Edges, density_matched, depths
from matryoshka.analysis.hierarchy import analyse
from matryoshka.analysis.joint import Joint
from matryoshka.analysis.observed import Observed
from matryoshka.data.forest import Forest
from matryoshka.data.sections import SyntheticConfig
from matryoshka.data.synthetic import HELD_OUT, SyntheticModel
from matryoshka.lm.model import LanguageModel
from matryoshka.lm.sites import Site
from matryoshka.run import Run
from matryoshka.scores.coverage import wilson_lower
from matryoshka.scores.result import NotMeasurable, Result

ROWS = 640 * CONTEXT


def edge_set(result: Result, which: str) -> set[tuple[int, int]]:
    """(parent, child) of the edges of which `which` is true."""
    edges = result.details["edges"]
    return {
        pair for pair, of in zip(zip(edges["parent"], edges["child"], strict=True), edges[which], strict=True) if of
    }


def planted(folder: Path, config: SyntheticConfig, widths: tuple[int, ...]) -> tuple[Result, Forest]:
    """What is found in a coder whose decoder rows are a forest's directions, and its latents their magnitudes."""
    model = SyntheticModel(config, torch.device("cpu"))
    [part] = model.draw(ROWS, HELD_OUT, entries=2**30)
    dense = np.zeros((ROWS, config.features), np.float32)
    dense[part.rows, part.features] = part.magnitudes
    noise = 0.1 * torch.randn(part.x.shape, generator=torch.Generator().manual_seed(0))
    coder = observed(folder, dense, sae(model.forest.directions, widths, model.forest.bias))
    return analyse(coder, KnownCorpus({SITE: part.x + noise})), model.forest


def ancestors(parents: list[int]) -> set[tuple[int, int]]:
    pairs = set()
    for child, parent in enumerate(parents):
        while parent >= 0:
            pairs.add((parent, child))
            parent = parents[parent]
    return pairs


TREES = SyntheticConfig(
    features=260, dimension=128, trees=12, branching=3, depth=2, p_max=0.3, p_min=0.01, orthogonal_steps=0
)
"""12 trees of 13 features each in three levels, and 104 features that stand alone."""


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Forest]:
    return planted(tmp_path_factory.mktemp("trees") / "recording", TREES, (12, 48, 260))


def test_planted_trees_are_recovered(trees: tuple[Result, Forest]) -> None:
    result, forest = trees
    parents = forest.parents.tolist()
    for which, truth in (
        ("stands", ancestors(parents)),
        ("direct", {(parent, child) for child, parent in enumerate(parents) if parent >= 0}),
    ):
        found = edge_set(result, which)
        precision, recall = len(found & truth) / len(found), len(found & truth) / len(truth)
        print(f"{which}: precision {precision:.3f}, recall {recall:.3f} of {len(truth)}")
        assert precision >= 0.95
        assert recall >= 0.9
    depth = {entry["feature"]: entry["depth"] for entry in result.details["depth"]}
    assert np.mean([depth.get(feature) == 2 for feature in range(48, 156)]) >= 0.9
    assert all(depth[root] == 0 for root in range(12))


def test_scores_say_what_was_planted_and_lie_above_chance(trees: tuple[Result, Forest]) -> None:
    result, _ = trees
    scores = {score.measure.name: score for score in result.scores}
    assert scores["with a parent"].value == pytest.approx(144 / 248, abs=0.03)
    assert scores["children"].value == pytest.approx(144 / 48, abs=0.15)
    assert scores["depth"].value == pytest.approx((36 + 2 * 108) / 248, abs=0.05)
    assert scores["candidates that stand"].value >= 0.95
    for name in ("with a parent", "candidates that stand", "gain", "children", "depth"):
        found = scores[name]
        assert found.null is not None
        assert found.null < found.interval.low <= found.value <= found.interval.high
    assert scores["absorption suspects"].value == 0


def test_where_nothing_is_planted_less_than_one_feature_in_two_hundred_has_a_parent(tmp_path: Path) -> None:
    """Independent firings, from 15 to a third of the tokens."""
    generator, features = np.random.default_rng(0), 600
    densities = np.geomspace(15 / ROWS, 0.3, features)[generator.permutation(features)]
    dense = (generator.random((ROWS, features)) < densities) * generator.uniform(0.5, 2, (ROWS, features))
    directions = torch.nn.functional.normalize(torch.randn(features, 64, generator=torch.Generator().manual_seed(0)))
    x = torch.from_numpy(dense).float() @ directions
    result = analyse(observed(tmp_path / "recording", dense, sae(directions, (100, 300, 600))), KnownCorpus({SITE: x}))
    [with_parent], [suspects] = result.of("with a parent"), result.of("absorption suspects")
    print(f"{with_parent.numerator.sum():g} of {len(with_parent.units)} have a parent")
    assert with_parent.value <= 0.005
    assert suspects.value <= 0.005


def related(generator: np.random.Generator, rows: int) -> np.ndarray:
    """40 latents: of the last ring (20 …) some fire where one of the first ring does, some where one of the second
    does, and 32 where two do; now and then without. 33 is one with its parent 5, and 17 follows one of its own ring."""
    dense = latents(1, rows, 40, 0.2)
    dense[:, 33] = (dense[:, 5] > 0) * generator.uniform(0.5, 2, rows)
    for child, parents in {**{20 + i: [i] for i in range(8)}, 17: [16], 30: [11], 31: [12], 32: [12, 13]}.items():
        with_parents = (dense[:, parents] > 0).all(1)
        fires = np.where(with_parents, generator.random(rows) < 0.6, generator.random(rows) < 0.005)
        dense[:, child] = fires * generator.uniform(0.5, 2, rows)
    return dense.astype(np.float32)


@pytest.mark.parametrize("write", [SITE, Site("mlp_out", 1)], ids=["SAE", "transcoder"])
def test_every_number_is_that_of_dense_sums(tmp_path: Path, write: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edges_module, "PARENTS", 1)
    generator, rows, widths = np.random.default_rng(3), 64 * CONTEXT, (10, 20, 40)
    dense = related(generator, rows)
    directions = generator.normal(size=(40, 24)) / 5
    bias, y = generator.normal(size=24), dense @ directions + generator.normal(size=(rows, 24))
    left_out = generator.random(rows) < 0.1
    hooked = sae(torch.from_numpy(directions).float(), widths, torch.from_numpy(bias).float(), write)
    [record] = recorded(tmp_path / "recording", dense, left_out=(left_out,))
    corpus = KnownCorpus({SITE: torch.zeros(rows, 24), write: torch.from_numpy(y).float()}, at_once=7)
    result = analyse(Observed("dense", hooked, record), corpus)

    dense, y = dense[~left_out].astype(np.float64), y[~left_out]
    on, rings = dense > 0, np.searchsorted(widths, range(40), side="right")
    error = y - bias - dense @ directions
    expected = {}
    for child in range(10, 40):
        with_child = on[:, child]
        gains, covering = np.zeros(40), []
        for parent in np.flatnonzero(rings < rings[child]):
            r = error[with_child] + dense[with_child, parent, None] * directions[parent]
            gains[parent] = 1 - (error[with_child] ** 2).sum() / (r**2).sum()
            both, fires = (on[:, parent] & with_child).sum(), on[:, parent].sum()
            coverage, lift = both / with_child.sum(), both / with_child.sum() / on[:, parent].mean()
            if wilson_lower(coverage, with_child.sum()) >= 0.5 and lift >= 2 and both < fires:
                covering.append((both / (on[:, parent] | with_child).sum(), parent, coverage, lift, both / fires))
        for _, parent, *numbers in sorted(covering, reverse=True)[:1]:
            others = [
                other
                for other in np.flatnonzero(rings == rings[parent])
                if other != parent and other not in [of[1] for of in covering]
            ]
            ascending = np.sort(gains[others])
            null = max(0, ascending[int(np.ceil(0.95 * len(others))) - 1])
            expected[parent, child] = [*numbers, gains[parent], null, gains[parent] > null]
    edges = result.details["edges"]
    found = zip(*(edges[name] for name in ("coverage", "lift", "share", "gain", "null", "stands")), strict=True)
    assert len(expected) >= 10
    assert {*zip(edges["parent"], edges["child"], strict=True)} == {*expected}
    for pair, numbers in zip(zip(edges["parent"], edges["child"], strict=True), found, strict=True):
        np.testing.assert_allclose(numbers, expected[pair], rtol=1e-4)
    assert result.details["left_out"] == 1, "of 32 one parent is not tested"
    assert not {33, 17} & {*edges["child"]}
    assert result.details["tokens"] == int((~left_out).sum())


def test_who_covers_but_explains_nothing_is_no_parent(tmp_path: Path) -> None:
    """Latents 0 and 1 fire where the child 30 does; what the second writes is not in the activations."""
    dense = latents(0, ROWS, 40, 0.05)
    dense[:, 30] = (dense[:, 0] > 0) * latents(1, ROWS, 1, 0.3)[:, 0]
    dense[:, 1] = np.maximum(dense[:, 1], (dense[:, 30] > 0) * 1.0)
    directions = torch.nn.functional.normalize(torch.randn(40, 64, generator=torch.Generator().manual_seed(0)))
    real = dense.copy()
    real[:, 1] = 0
    x = torch.from_numpy(real).float() @ directions + 0.1 * torch.randn(
        ROWS, 64, generator=torch.Generator().manual_seed(1)
    )
    result = analyse(observed(tmp_path / "recording", dense, sae(directions, (20, 40))), KnownCorpus({SITE: x}))
    edges = result.details["edges"]
    assert [*zip(edges["parent"], edges["child"], edges["stands"], strict=True)] == [(0, 30, True), (1, 30, False)]
    assert edges["gain"][1] < 0 < edges["gain"][0]


def test_stand_ins_are_the_nearest_in_density_of_the_ring() -> None:
    generator = np.random.default_rng(0)
    rings = np.sort(generator.integers(0, 3, 120))
    rings[-8:] = 3
    firings = generator.integers(10, 10_000, 120)
    for feature, found in enumerate(density_matched(firings, rings)):
        others = [i for i in np.flatnonzero(rings == rings[feature]) if i != feature]
        distances = np.abs(np.log(firings[others]) - np.log(firings[feature]))
        expected = np.sort(distances)[:MATCHED]
        real = found[found >= 0]
        assert len(real) == len({*real.tolist()}) == min(MATCHED, len(others))
        np.testing.assert_allclose(np.abs(np.log(firings[real]) - np.log(firings[feature])), expected)
        assert (rings[real] == rings[feature]).all()


def test_a_null_is_of_what_is_matched_and_never_below_nothing() -> None:
    """Of 19 the 19th, of 20 the 19th; features that cover the child too are left out."""
    gains = np.full((4, MATCHED), np.nan)
    gains[0], gains[1], gains[2, :19] = -np.arange(1, 21), np.arange(20) / 20, np.arange(19) / 20
    numbers, own = np.arange(4), np.array([-0.5, 0.91, 0.89, 0.1])
    matched = np.full((4, MATCHED), -1)
    edges = Edges.of(CandidateEdges(numbers, numbers + 4, own, own, own, own, matched, gains), 0)
    np.testing.assert_allclose(edges.null, [0, 0.9, 0.9, 0])
    assert edges.stands.tolist() == [False, True, False, True]
    assert np.nansum(edges.by_chance(), 1).tolist() == [0, 1, 0, 0]


def test_depth_is_the_longest_chain() -> None:
    parents, children = np.array([4, 0, 0, 2, 1]), np.array([9, 2, 4, 4, 7])
    assert depths(parents, children) == {0: 0, 2: 1, 4: 2, 9: 3, 1: 0, 7: 1}


# --- absorption


def absorbing(folder: Path, silent: float) -> Result:
    """Parent p (0 … 9) fires on tokens of the types 10 p …; child 20 + p on a half of those of type 10 p, with its
    parent's direction in its own; there the parent is silent with this probability."""
    generator = np.random.default_rng(5)
    tokens = generator.integers(0, 200, ROWS)
    dense = np.zeros((ROWS, 30))
    for parent in range(20):
        on = tokens // 10 == parent
        dense[:, parent] = on & (generator.random(ROWS) < 0.95)
        if parent < 10:
            child = (tokens == 10 * parent) & (generator.random(ROWS) < 0.5)
            dense[:, 20 + parent] = child * generator.uniform(0.5, 2, ROWS)
            dense[child & (generator.random(ROWS) < silent), parent] = 0
    directions = torch.nn.functional.normalize(torch.randn(30, 64, generator=torch.Generator().manual_seed(0)))
    directions[20:] = torch.nn.functional.normalize(directions[20:] + 0.7 * directions[:10])
    x = torch.from_numpy(dense).float() @ directions
    coder = observed(folder / "recording", dense, sae(directions, (20, 30)), tokens)
    return analyse(coder, KnownCorpus({SITE: x}))


def test_parents_that_are_silent_on_their_childs_tokens_are_suspected(tmp_path: Path) -> None:
    result = absorbing(tmp_path, silent=0.9)
    suspects = result.details["suspects"]
    assert {*zip(suspects["parent"], suspects["child"], strict=True)} == {(i, 20 + i) for i in range(10)}
    assert suspects["coverage"] == pytest.approx([0.095] * 10, abs=0.15)
    assert suspects["expected"] == pytest.approx([0.95] * 10, abs=0.07)
    assert min(suspects["cosine"]) > 0.3
    [share] = result.of("absorption suspects")
    assert (share.value, share.null) == (1, 0)
    for child, examples in zip(suspects["child"], suspects["examples"], strict=True):
        assert len(examples) == 3
        for example in examples:
            passage = result.details["passages"][str(example["place"])]
            assert passage["tokens"][passage["at"]] == f" {10 * (child - 20)}"
            assert example["parent"] == 0 < example["child"]


def test_parents_that_fire_with_their_children_are_not_suspected(tmp_path: Path) -> None:
    result = absorbing(tmp_path, silent=0.0)
    assert result.details["suspects"]["parent"] == []
    assert edge_set(result, "stands") == {(i, 20 + i) for i in range(10)}


# --- what is given on


def test_details_are_plain_values_with_examples_and_their_text(trees: tuple[Result, Forest]) -> None:
    details = json.loads(json.dumps(trees[0].details))
    edges = details["edges"]
    assert len({len(column) for column in edges.values()}) == 1
    assert details["rings"] == [12, 48, 260]
    for stands, examples in zip(edges["stands"], edges["examples"], strict=True):
        assert len(examples) == (3 if stands else 0)
        values = [example["child"] for example in examples]
        assert values == sorted(values, reverse=True)
        for example in examples:
            place, passage = example["place"], details["passages"][str(example["place"])]
            start = place // CONTEXT * CONTEXT
            first = max(start, place - 12)
            assert passage["at"] == place - first
            assert passage["tokens"] == [f" {i}" for i in range(first, min(start + CONTEXT, place + 13))]
            assert example["parent"] > 0


def test_coders_without_rings_or_without_firing_features_are_refused_in_a_line(tmp_path: Path) -> None:
    dense, directions = latents(0, 20 * CONTEXT, 8, 0.2), torch.eye(8)
    corpus = KnownCorpus({SITE: torch.zeros(20 * CONTEXT, 8)})
    with pytest.raises(NotMeasurable, match="planted has one ring of 8 latents: parents are of an earlier ring"):
        analyse(observed(tmp_path / "one", dense, sae(directions, (8,))), corpus)
    for name, silent, which in (("two", slice(0, 3), "the first ring"), ("three", slice(3, 8), "a later ring")):
        rare = dense.copy()
        rare[:, silent] = 0
        with pytest.raises(NotMeasurable, match=f"no latent of {which} of planted fires on 10 of the 640 tokens"):
            analyse(observed(tmp_path / name, rare, sae(directions, (3, 8))), corpus)


def test_a_trained_transcoder_is_read_again_row_by_row(trained: Run, lm: LanguageModel, tmp_path: Path) -> None:
    """Gains are those of latents and activations that are made anew; what was found is saved, and taken as it is."""
    run = Run(Path(shutil.copytree(trained.path, tmp_path / "run")))
    joint = Joint([run], None, 6400, tmp_path / "recording")
    result = joint.found("hierarchy", 0)
    assert json.loads((run.analysis / "hierarchy.json").read_text())["details"] == json.loads(
        json.dumps(result.details)
    )
    edges = result.details["edges"]
    assert len(edges["gain"]) > 20

    hooked, windows = joint.coders[0], joint.corpus.windows
    tokens = torch.from_numpy(windows[joint.corpus.numbers])
    hooked.coder.requires_grad_(False)
    kept, x, dense = plain(lm, hooked, tokens)
    y = lm.read(tokens, hooked.wiring.writes)[hooked.wiring.writes[0]][kept].double()
    directions = hooked.coder.decoder_rows().double()
    error = y - hooked.coder.decode(hooked.coder.encode(x))[-1].double()
    for parent, child, gain in zip(*(edges[name] for name in ("parent", "child", "gain")), strict=True):
        rows = dense[:, child] > 0
        r = error[rows] + dense[rows, parent, None].double() * directions[parent]
        assert gain == pytest.approx(1 - float(error[rows].square().sum() / r.square().sum()), abs=1e-4)
    shown = next(examples for examples in edges["examples"] if examples)[0]
    passage = result.details["passages"][str(shown["place"])]
    token = int(tokens.flatten()[shown["place"]])
    assert passage["tokens"][passage["at"]] in ("", lm.token_bytes[token].decode(errors="replace"))

    shutil.rmtree(tmp_path / "recording")
    again = Joint([run], None, 6400, tmp_path / "recording").found("hierarchy", 0)
    assert not (tmp_path / "recording").exists(), "nothing was read again"
    assert [score.value for score in again.scores] == [score.value for score in result.scores]
