"""Edges of two hierarchies through matched features: all of a relabelled copy, hardly any of unrelated ones."""

from typing import Any

import numpy as np
import pytest

from matryoshka.analysis.agreement import agreement
from matryoshka.scores.result import NotMeasurable, Result

WIDTHS = [20, 60, 140]


def hierarchy(parents: np.ndarray, stands: np.ndarray) -> Result:
    """Feature 20 + i is the child of parents[i]; an edge that does not stand is none."""
    edges: dict[str, Any] = {"parent": parents.tolist(), "child": list(range(20, 140)), "stands": stands.tolist()}
    return Result((), {"edges": edges, "rings": WIDTHS})


def relabelled(result: Result, names: np.ndarray) -> Result:
    edges = result.details["edges"]
    renamed = {name: names[edges[name]].tolist() for name in ("parent", "child")}
    return Result((), {"edges": renamed | {"stands": [*edges["stands"]]}, "rings": WIDTHS})


@pytest.fixture
def first() -> Result:
    generator = np.random.default_rng(0)
    parents = np.concatenate([generator.integers(0, 20, 40), generator.integers(20, 60, 80)])
    return hierarchy(parents, np.arange(120) % 4 > 0)


def names() -> np.ndarray:
    """Other numbers within each ring."""
    generator = np.random.default_rng(1)
    return np.concatenate([start + generator.permutation(end - start) for start, end in ((0, 20), (20, 60), (60, 140))])


def test_a_relabelled_copy_agrees_wholly_and_by_chance_hardly_ever(first: Result) -> None:
    found = agreement(first, relabelled(first, names()), dict(enumerate(names().tolist())))
    assert (found.value, len(found.units)) == (1, 90)
    assert found.null is not None
    assert 0 < found.null < 0.1


def test_only_edges_whose_features_are_matched_and_which_stand_count(first: Result) -> None:
    second, pairs = relabelled(first, names()), dict(enumerate(names()[:60].tolist()))
    edges = second.details["edges"]
    edges["stands"][:20] = [False] * 20
    found = agreement(first, second, pairs)
    assert len(found.units) == 30, "to the second ring"
    assert found.numerator.tolist() == [0] * 15 + [1] * 15


def test_an_unrelated_hierarchy_agrees_as_chance_does(first: Result) -> None:
    generator = np.random.default_rng(3)
    parents = np.concatenate([generator.integers(0, 20, 40), generator.integers(20, 60, 80)])
    found = agreement(first, hierarchy(parents, np.ones(120, bool)), {i: i for i in range(140)})
    assert found.null == pytest.approx(found.value, abs=0.06)


def test_without_matched_edges_there_is_nothing_to_say(first: Result) -> None:
    with pytest.raises(NotMeasurable, match="none of the 1 matched features of the first coder has a matched parent"):
        agreement(first, first, {3: 3})
