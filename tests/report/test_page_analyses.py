"""What the map and the tree are given: the analyses' own numbers, packed; and one line where a file cannot be shown."""

import base64
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from planted_analyses import plant
from small_store import make_store

from matryoshka.errors import MatryoshkaError
from matryoshka.features.store import FeatureStore
from matryoshka.report import data
from matryoshka.report.page_analyses import map_view, pair_examples, shards, tree_view
from matryoshka.run import Run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


@pytest.fixture
def store(run: Run) -> FeatureStore:
    store = make_store(run.features_file)
    plant(run, store)
    return store


def details(run: Run, name: str) -> dict[str, Any]:
    return json.loads((run.analysis / f"{name}.json").read_text())["details"]


def change(run: Run, name: str, act: Callable[[dict[str, Any]], object]) -> None:
    """Change the details of a saved analysis."""
    file = run.analysis / f"{name}.json"
    act((saved := json.loads(file.read_text()))["details"])
    file.write_text(json.dumps(saved))


def unpacked(packed: str, kind: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(packed), kind)


def test_a_map_is_as_it_was_found_but_for_its_scale(run: Run, store: FeatureStore) -> None:
    view, saved, clusters = map_view(run, store), details(run, "map"), details(run, "clusters")
    assert unpacked(view["features"], "<u4").tolist() == saved["features"]
    for name, layout in saved["layouts"].items():
        x, y = (np.array(layout[axis]) for axis in "xy")
        extent = max(np.ptp(x), np.ptp(y))
        for axis, of in (("x", x), ("y", y)):
            steps = unpacked(view["layouts"][name][axis], "<u2")
            assert np.abs(steps / 65535 * extent + of.min() - of).max() < extent / 65535
    for name, labels in clusters["partitions"].items():
        assert unpacked(view["partitions"][name], "<i2").tolist() == labels
    assert view["communities"] == clusters["communities"]
    assert (view["dense"], view["why"]) == (saved["dense"], [])
    data.to_json(view)


def test_labels_go_to_the_features_of_the_map(run: Run, store: FeatureStore) -> None:
    def turn(saved: dict[str, Any]) -> None:
        saved["features"] = saved["features"][::-1]
        for layout in saved["layouts"].values():
            layout.update({axis: layout[axis][::-1] for axis in "xy"})

    labels = dict(
        zip(details(run, "clusters")["features"], details(run, "clusters")["partitions"]["tokens"], strict=True)
    )
    change(run, "map", turn)
    change(run, "clusters", lambda saved: [saved["features"].pop(), [of.pop() for of in saved["partitions"].values()]])
    view = map_view(run, store)
    left_out = max(labels)
    expected = [-1 if i == left_out else labels[i] for i in unpacked(view["features"], "<u4").tolist()]
    assert unpacked(view["partitions"]["tokens"], "<i2").tolist() == expected


def test_either_of_map_and_communities_does_without_the_other(run: Run, store: FeatureStore) -> None:
    (run.analysis / "clusters.json").rename(run.path / "kept")
    view = map_view(run, store)
    assert view["why"] == ["Not looked for yet; find it with: matryoshka analyze RUN --only clusters"]
    assert (len(view["layouts"]), view["partitions"], view["communities"]) == (2, {}, {})
    (run.path / "kept").rename(run.analysis / "clusters.json")
    (run.analysis / "map.json").unlink()
    view = map_view(run, store)
    assert view["why"] == ["Not looked for yet; find it with: matryoshka analyze RUN --only map"]
    assert (view["layouts"], len(view["partitions"]), len(view["communities"])) == ({}, 3, 3)
    assert unpacked(view["features"], "<u4").tolist() == details(run, "clusters")["features"]


@pytest.mark.parametrize(
    ("name", "act", "why"),
    [
        ("map", lambda saved: saved.pop("layouts"), "layouts: Field required"),
        ("map", lambda saved: saved.update(layouts={}), "layouts: .* at least 1 item"),
        ("map", lambda saved: saved["layouts"]["geometry"]["x"].pop(), "expected lists of one length"),
        ("map", lambda saved: saved["layouts"]["geometry"]["x"].__setitem__(3, float("inf")), "x.3: .*finite"),
        ("map", lambda saved: saved["features"].__setitem__(0, 70), r"feature 70 of 70"),
        ("map", lambda saved: saved["features"].__setitem__(0, -1), "features.0: .*greater than or equal to 0"),
        ("clusters", lambda saved: saved["partitions"]["tokens"].append(1), "expected lists of one length"),
        ("clusters", lambda saved: saved["communities"].pop("tokens"), "expected communities of each partition"),
        ("clusters", lambda saved: saved["communities"]["tokens"][0].update(central=[900]), "feature 900 of 70"),
    ],
)
def test_a_damaged_map_is_one_line(
    run: Run, store: FeatureStore, name: str, act: Callable[[dict[str, Any]], object], why: str
) -> None:
    assert map_view(run, store)["why"] == []
    change(run, name, act)
    [line] = map_view(run, store)["why"]
    assert line.startswith(f"analysis/{name}.json: damaged (")
    assert re.search(why, line)
    assert "\n" not in line


@pytest.mark.parametrize(
    ("act", "why"),
    [
        (lambda saved: saved.pop("edges"), "edges: Field required"),
        (lambda saved: saved["edges"]["gain"].pop(), "edges: .*expected lists of one length"),
        (lambda saved: saved["edges"]["parent"].__setitem__(0, 70), "feature 70 of 70"),
        (lambda saved: saved["suspects"]["child"].__setitem__(0, "3x"), "suspects.child.0: .*integer"),
        (lambda saved: saved["passages"].update(word={"tokens": ["a"], "at": 0}), "passages"),
        (lambda saved: next(iter(saved["passages"].values())).update(at=99), "token 99 of"),
        (lambda saved: saved.update(passages=[]), "passages: .*dictionary"),
    ],
)
def test_a_damaged_tree_is_one_line(
    run: Run, store: FeatureStore, act: Callable[[dict[str, Any]], object], why: str
) -> None:
    change(run, "hierarchy", act)
    assert list(tree_view(run, store)) == ["why"]
    assert re.search(why, tree_view(run, store)["why"])
    assert tree_view(run, store)["why"].startswith("analysis/hierarchy.json: damaged (")


def test_a_tree_has_the_columns_and_its_pairs_their_passages(
    run: Run, store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("matryoshka.report.page_analyses.PAIRS", 4)
    saved, view = details(run, "hierarchy"), tree_view(run, store)
    assert view["pairs"] == 4
    for kind in ("edges", "suspects"):
        assert set(view[kind]) == set(saved[kind]) - {"examples"}
        assert view[kind]["child"] == saved[kind]["child"]
        assert view[kind]["coverage"] == pytest.approx(saved[kind]["coverage"], rel=1e-3)
    examples = saved["edges"]["examples"] + saved["suspects"]["examples"]
    served = [of for number in range(shards(len(examples))) for of in pair_examples(run, store, number)]
    assert len(served) == len(examples)
    for of, [example] in zip(served, examples, strict=True):
        passage = saved["passages"][str(example["place"])]
        assert of == [{**passage, "parent": example["parent"], "child": example["child"]}]
    with pytest.raises(MatryoshkaError, match="there are no pairs of number"):
        pair_examples(run, store, shards(len(examples)))


def test_an_example_without_a_passage_is_left_out(run: Run, store: FeatureStore) -> None:
    change(run, "hierarchy", lambda saved: saved.update(passages={}))
    assert pair_examples(run, store, 0)[0] == []


def test_a_file_that_has_changed_is_read_again(run: Run, store: FeatureStore) -> None:
    before = tree_view(run, store)["edges"]["gain"][0]
    change(run, "hierarchy", lambda saved: saved["edges"]["gain"].__setitem__(0, before + 0.125))
    assert tree_view(run, store)["edges"]["gain"][0] == before + 0.125
    (run.analysis / "hierarchy.json").unlink()
    assert tree_view(run, store) == {"why": "Not looked for yet; find it with: matryoshka analyze RUN --only hierarchy"}
