"""Maps for people: where the points are, in which colours, and what is said beside them."""

from typing import Any

import numpy as np
import pytest

from matryoshka.analysis.embedding import STABILITY, TRUSTWORTHINESS
from matryoshka.report import drawing
from matryoshka.report.map_report import figures, findings, section
from matryoshka.scores.result import Result, score

pytest.importorskip("matplotlib", reason="matplotlib is not installed")
N = 60


def details() -> dict[str, Any]:
    places = np.random.default_rng(0).random((N, 2)).round(3)
    layout = {"x": places[:, 0].tolist(), "y": places[:, 1].tolist()}
    return {
        "features": list(range(N)),
        "dense": [N],
        "layouts": {"geometry": layout, "coactivation": layout},
        "apart": {"geometry": [], "coactivation": [3, 4, 5, 6]},
        "rings": [0] * 20 + [1] * 40,
        "communities": {"geometry": (np.arange(N) % 12).tolist(), "coactivation": [-1] * N},
        "widths": [20, N + 1],
    }


def result() -> Result:
    values = np.random.default_rng(1).normal(0.8, 0.05, 40)
    measures = [*TRUSTWORTHINESS.values(), *STABILITY.values()]
    return Result(tuple(score(measure, N + 1, range(40), values, null=0.5) for measure in measures), details())


def test_every_feature_is_a_point_coloured_by_ring_and_by_community() -> None:
    with drawing.style():
        drawn = figures(result())
    assert set(drawn) == {"map-geometry", "map-coactivation"}
    above, below = drawn["map-geometry"].axes
    assert [len(points.get_offsets()) for points in above.collections] == [40, 20]
    assert [len(points.get_offsets()) for points in below.collections] == [10, *[5] * 10], "two of twelve share one"
    assert len({points.get_facecolor().tobytes() for points in below.collections}) == 11
    assert [text.get_text() for text in below.texts] == list(map(str, range(10)))
    _, none = drawn["map-coactivation"].axes
    assert [len(points.get_offsets()) for points in none.collections] == [N]


def test_the_section_says_how_far_to_believe_it_and_what_is_apart() -> None:
    lines = section(result(), "feature {}".format)
    assert any("4 are like no other" in line and "3 (feature 3), 4 (feature 4)" in line for line in lines)
    assert any(line.startswith("On no map: 1 of the features") for line in lines)
    assert sum("null" in line for line in lines) == 1 + len(result().scores)


def test_findings_have_number_interval_and_null() -> None:
    found = findings(result(), str)
    assert [finding.strength > 1 for finding in found] == [True, True]
    assert all("95 % interval" in finding.sentence and "0.500" in finding.sentence for finding in found)
    assert findings(Result((), details()), str) == []
