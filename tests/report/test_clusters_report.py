"""Communities for people: their names, tables, figures and findings."""

from typing import Any

import numpy as np
import pytest

from matryoshka.analysis.clusters import MODULARITY, PAIRS, STABILITY, TOLD
from matryoshka.report import drawing
from matryoshka.report.clusters_report import figures, findings, names, section
from matryoshka.scores.result import Result, score

pytest.importorskip("matplotlib", reason="matplotlib is not installed")
NAMES = {
    0: "‘cat’, ‘dog’",
    1: "‘cat’, ‘the’",
    2: "‘red’, ‘the’",
    3: "‘red’",
    4: "many tokens, among them ‘the’",
    5: "‘’",
}


def details() -> dict[str, Any]:
    of_kind = [{"number": 0, "size": 2, "central": [1, 0]}, {"number": 1, "size": 2, "central": [2, 3]}]
    kinds = ("tokens", "blocks", "geometry")
    return {
        "features": [0, 1, 2, 3, 4],
        "dense": [5],
        "settings": {"firings": 10, "density": 0.1, "neighbours": 15, "block": 256},
        "partitions": {kind: [0, 0, 1, 1, -1] for kind in kinds},
        "communities": dict.fromkeys(kinds, of_kind),
    }


def result() -> Result:
    generator = np.random.default_rng(0)
    measures = [*PAIRS.values(), *STABILITY.values(), *MODULARITY.values(), *TOLD.values()]
    scores = [score(measure, 6, range(40), generator.normal(0.6, 0.1, 40), null=0.01) for measure in measures]
    return Result(tuple(scores), details())


def test_a_community_is_named_by_words_that_others_lack() -> None:
    assert names([[0, 1], [2, 3], [4]], NAMES.__getitem__) == ["cat", "red", "–"]
    labelled = {0: "animals at home", 1: "wild animals", 2: "colours", 3: "bright colours"}
    assert names([[0, 1], [2, 3]], labelled.__getitem__) == ["animals", "colours"]


def test_the_section_lists_communities_with_their_central_features() -> None:
    lines = section(result(), NAMES.__getitem__)
    assert "1 denser one is set apart, as it fires together with everything: 5 (‘’)." in lines[0]
    rows = [line for line in lines if line.startswith("| 2 |")]
    assert rows[:2] == ["| 2 | cat | 1 (‘cat’, ‘the’); 0 (‘cat’, ‘dog’) |", "| 2 | red | 2 (‘red’, ‘the’); 3 (‘red’) |"]
    assert len(rows) == 6, "two of each kind"
    assert "**Features that write alike**: 4 in 2 communities, 1 in none." in lines
    assert sum("null 0.01" in line or "null 1.0 %" in line for line in lines) == len(result().scores)


def test_findings_have_number_interval_and_null() -> None:
    found = findings(result(), NAMES.__getitem__)
    assert len(found) == 3
    assert all("95 % interval" in finding.sentence and "by chance" in finding.sentence for finding in found)
    assert all(finding.strength > 1 for finding in found)
    assert "2 communities that fire together, the largest of 2" in found[0].sentence
    assert "two halves of the documents agree to" in found[1].sentence
    assert findings(Result((), details()), NAMES.__getitem__) == []


def test_figures_show_every_score_and_every_community() -> None:
    with drawing.style():
        drawn = figures(result())
    assert set(drawn) == {"agreement", "community-sizes"}
    [axes] = drawn["agreement"].axes
    values = {line.get_label(): line.get_xdata() for line in axes.lines}
    for measured in result().scores[:6]:
        assert values[measured.measure.name] == [measured.value]
    [axes] = drawn["community-sizes"].axes
    assert [line.get_ydata().tolist() for line in axes.lines] == [[2, 2]] * 3
    with drawing.style():
        assert set(figures(Result((), details()))) == {"community-sizes"}
