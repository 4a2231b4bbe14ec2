"""Communities: planted ones are recovered, of nothing there are none, and scores are those of scikit-learn."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from planted import directions, grouped, halved, latents, no_corpus, observed
from sklearn.metrics import adjusted_mutual_info_score, balanced_accuracy_score

from matryoshka.analysis.affinity import Neighbours
from matryoshka.analysis.clusters import PAIRS, STABILITY, analyse
from matryoshka.analysis.communities import agreement, communities, described, modularity, told
from matryoshka.analysis.joint import Joint
from matryoshka.run import Run
from matryoshka.scores.result import NotMeasurable, Result

pytest.importorskip("graspologic_native", reason="graspologic-native is not installed")
ROWS, GROUPS, SIZE = 32_768, 12, 16
FEATURES = GROUPS * SIZE
GROUP = np.arange(FEATURES) // SIZE


def named(result: Result, name: str) -> float:
    return result.of(name)[0].value


def ring_of_cliques(cliques: int, size: int) -> sp.csr_array:
    """Cliques, each joined to the next by one light edge."""
    weights = np.kron(np.eye(cliques), np.ones((size, size)))
    np.fill_diagonal(weights, 0)
    for i in range(cliques):
        one, other = i * size, (i + 1) % cliques * size + 1
        weights[one, other] = weights[other, one] = 0.1
    return sp.csr_array(weights)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """Groups that fire together and write alike."""
    folder = tmp_path_factory.mktemp("planted") / "recording"
    return analyse(
        observed(folder, grouped(0, ROWS, GROUPS, SIZE, 0.002), halved(directions(1, GROUPS, SIZE)), per_document=512),
        no_corpus(),
    )


@pytest.fixture(scope="module")
def nothing(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """Features that fire, and write, by chance."""
    folder = tmp_path_factory.mktemp("nothing") / "recording"
    rows = torch.randn(FEATURES, 64, generator=torch.Generator().manual_seed(2))
    return analyse(observed(folder, latents(3, ROWS, FEATURES, 0.002), halved(rows), per_document=512), no_corpus())


@pytest.mark.parametrize("kind", ["tokens", "blocks", "geometry"])
def test_planted_groups_are_recovered(planted: Result, kind: str) -> None:
    labels = planted.details["partitions"][kind]
    assert adjusted_mutual_info_score(GROUP, labels) >= 0.9
    assert named(planted, f"modularity of {kind}") > 0.7
    assert named(planted, f"stability of {kind}") > 0.9


def test_planted_groups_agree_and_the_decoder_tells_them(planted: Result) -> None:
    for measure in PAIRS.values():
        [score] = planted.of(measure.name)
        assert score.value > 0.9
        assert abs(score.null or 0) < 0.05
    [by_decoder] = planted.of("tokens by decoder")
    assert by_decoder.value > 0.9
    assert 0 < (by_decoder.null or 0) < 0.2, "one of twelve"


def test_of_nothing_no_partition_agrees_and_modularity_is_as_by_chance(nothing: Result) -> None:
    for measure in (*PAIRS.values(), *STABILITY.values()):
        for score in (score for score in nothing.scores if score.measure == measure):
            assert score.interval.low < 0.05
            assert abs(score.value) < 0.1
    modularities = [score for score in nothing.scores if score.measure.name.startswith("modularity")]
    assert modularities
    for score in modularities:
        assert abs(score.value - (score.null or 0)) < 0.02, score.measure.name
    assert named(nothing, "modularity of geometry") < 0.02


def test_the_details_are_what_the_page_and_the_report_read(planted: Result) -> None:
    details = json.loads(json.dumps(planted.details))
    assert details["features"] == list(range(FEATURES))
    assert details["dense"] == []
    for kind in ("tokens", "blocks", "geometry"):
        labels = np.array(details["partitions"][kind])
        assert len(labels) == FEATURES
        sizes = np.bincount(labels[labels >= 0])
        assert (np.diff(sizes) <= 0).all(), "the largest first"
        for number, community in enumerate(details["communities"][kind]):
            assert community["number"] == number
            assert community["size"] == sizes[number]
            assert len(community["central"]) == min(12, sizes[number])
            assert (labels[community["central"]] == number).all()


def test_what_documents_alone_explain_is_in_the_null(tmp_path: Path) -> None:
    """Features of a topic fire in its documents, there on tokens of their own: no community but by documents."""
    generator = np.random.default_rng(4)
    topic = np.arange(ROWS) // 256 // 2 % GROUPS
    dense = ((topic[:, None] == GROUP) & (generator.random((ROWS, FEATURES)) < 0.1)).astype(float)
    rows = torch.randn(FEATURES, 16, generator=torch.Generator().manual_seed(0))
    found = analyse(observed(tmp_path / "recording", dense, halved(rows), per_document=256), no_corpus())
    assert adjusted_mutual_info_score(GROUP, found.details["partitions"]["tokens"]) > 0.9
    [tokens], [blocks] = found.of("modularity of tokens"), found.of("modularity of blocks")
    assert tokens.value > 0.7
    assert tokens.null == pytest.approx(tokens.value, abs=0.05)
    assert (blocks.null or 0) < blocks.value / 2, "blocks are moved over all documents"


def test_where_no_two_features_fire_together_nothing_is_said(tmp_path: Path) -> None:
    dense = np.zeros((2048, 40))
    dense[np.arange(2048), np.arange(2048) % 40] = 1.0  # one at a time
    with pytest.raises(NotMeasurable, match="no two features of planted fire together"):
        analyse(observed(tmp_path / "recording", dense, halved(torch.randn(40, 8))), no_corpus())


def test_communities_are_the_cliques_and_what_has_no_edge_is_in_none() -> None:
    graph = sp.block_diag([ring_of_cliques(5, 6), np.ones((9, 9)) - np.eye(9), sp.csr_array((2, 2))], format="csr")
    labels = communities(sp.csr_array(graph))
    assert labels[30:39].tolist() == [0] * 9, "the largest"
    assert labels[:30].tolist() == np.repeat(np.arange(1, 6), 6).tolist()
    assert labels[39:].tolist() == [-1, -1]
    assert communities(sp.csr_array((4, 4))).tolist() == [-1] * 4
    [largest, *_] = described(sp.csr_array(graph), labels, np.arange(100, 141))
    assert (largest["size"], sorted(largest["central"])) == (9, list(range(130, 139)))


def test_the_most_central_have_most_weight_within() -> None:
    star = np.zeros((5, 5))
    star[0, 1:] = star[1:, 0] = [0.9, 0.8, 0.7, 0.6]
    [community] = described(sp.csr_array(star), np.zeros(5, int), np.arange(10, 15))
    assert community["central"] == [10, 11, 12, 13, 14]


def test_modularity_is_newmans() -> None:
    graph, labels = ring_of_cliques(4, 5), np.arange(20) // 5
    weights = graph.toarray()
    k, total = weights.sum(1), weights.sum()
    expected = ((weights - np.outer(k, k) / total) * (labels[:, None] == labels)).sum() / total
    numerator, denominator = modularity(graph, labels)
    assert numerator.sum() / denominator.sum() == pytest.approx(expected)
    alone = modularity(graph, np.full(20, -1))[0].sum() / total
    assert alone == pytest.approx(-(k**2).sum() / total**2), "each by itself"


def test_agreement_is_scikit_learns_and_its_null_is_nothing() -> None:
    generator = np.random.default_rng(0)
    first = generator.integers(0, 8, 500)
    second = np.where(generator.random(500) < 0.6, first, generator.integers(0, 8, 500))
    second[:50] = -1
    sums = agreement(first, second)
    assert sums.chosen.sum() == 450
    expected = adjusted_mutual_info_score(first[50:], second[50:])
    assert sums.numerator.sum() / sums.denominator.sum() == pytest.approx(expected)
    assert abs(sums.null) < 0.01
    assert not agreement(np.full(9, -1), np.zeros(9, int)).measured


def test_what_neighbours_tell_is_balanced_over_communities() -> None:
    labels = np.repeat([0, 1, 2], [60, 20, 4])  # four are too few to be told
    generator = np.random.default_rng(0)
    other = np.array([generator.choice(np.flatnonzero(labels == label), 5) for label in labels])
    wrong = np.arange(70, 80)
    other[wrong] = generator.integers(0, 60, (10, 5))
    sums = told(Neighbours(other, np.ones(other.shape)), labels)
    guessed = labels.copy()
    guessed[wrong] = 0
    expected = balanced_accuracy_score(labels[:80], guessed[:80])
    assert sums.numerator.sum() / sums.denominator.sum() == pytest.approx(expected) == pytest.approx(0.75)
    assert 0.3 < sums.null < 0.6, "half, of two communities"


def test_without_the_library_it_is_said_how_to_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "graspologic_native", None)
    with pytest.raises(NotMeasurable, match=r"need graspologic-native: pip install 'matryoshka-sae\[clusters\]'"):
        communities(sp.csr_array((4, 4)))


def test_a_trained_run_has_its_communities_found_once(trained: Run, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    shutil.copytree(trained.path, run.path)
    joint = Joint([run], None, 20_000, tmp_path / "recording", "cpu")
    result = joint.found("clusters", 0)
    assert {"agreement of tokens and geometry", "modularity of tokens"} <= {s.measure.name for s in result.scores}
    [together] = result.of("modularity of tokens")
    assert together.interval.low > (together.null or 0)
    found = result.details
    assert len(found["features"]) == len(found["partitions"]["blocks"]) > 100
    written = (run.analysis / "clusters.json").stat().st_mtime_ns
    assert Joint([run], None, 20_000, tmp_path / "recording", "cpu").found("clusters", 0).details == found
    assert (run.analysis / "clusters.json").stat().st_mtime_ns == written
