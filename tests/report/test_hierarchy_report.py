"""The report on a planted hierarchy: trees, suspects and figures say what was planted."""

from pathlib import Path

import numpy as np
import pytest
import torch
from planted import CONTEXT, SITE, KnownCorpus, latents, observed, sae

from matryoshka.analysis.hierarchy import analyse
from matryoshka.report import drawing, hierarchy_report
from matryoshka.report.compared import ComparedPair
from matryoshka.report.hierarchy_report import agreements
from matryoshka.scores.result import Result

pytest.importorskip("matplotlib", reason="matplotlib is not installed")
ROWS = 320 * CONTEXT


def name_of(feature: int) -> str:
    return f"name {feature}"


def measured(folder: Path, dense: np.ndarray, tokens: np.ndarray, alike: dict[int, int]) -> Result:
    """Of a coder with rings of 10, 10 and 20; `alike`: children whose decoder row has this parent's in it."""
    directions = torch.nn.functional.normalize(torch.randn(40, 64, generator=torch.Generator().manual_seed(0)))
    for child, parent in alike.items():
        directions[child] = torch.nn.functional.normalize(directions[child] + 0.7 * directions[parent], dim=0)
    noise = 0.1 * torch.randn(ROWS, 64, generator=torch.Generator().manual_seed(1))
    x = torch.from_numpy(dense).float() @ directions + noise
    return analyse(observed(folder, dense, sae(directions, (10, 20, 40)), tokens), KnownCorpus({SITE: x}))


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """0 is the parent of 10 and 11, and 11 of 20 … 26; 5 is silent where 30 fires, on token 7."""
    generator, dense = np.random.default_rng(0), latents(0, ROWS, 40, 0.1)
    parents = {10: 0, 11: 0, **dict.fromkeys(range(20, 27), 11)}
    for child, parent in parents.items():
        often = 0.9 if child == 11 else 0.4
        dense[:, child] = (dense[:, parent] > 0) * latents(child, ROWS, 1, often)[:, 0]
    tokens = generator.integers(0, 20, ROWS)
    dense[:, 30] = ((tokens == 7) & (generator.random(ROWS) < 0.5)) * 1.0
    dense[:, 5] = ((tokens == 7) & (dense[:, 30] == 0)) * 1.0
    return measured(tmp_path_factory.mktemp("hierarchy") / "recording", dense, tokens, {30: 5})


def test_trees_are_indented_lists_three_levels_deep(result: Result) -> None:
    lines = hierarchy_report.section(result, name_of)
    first = next(i for i, line in enumerate(lines) if line.startswith("- **"))
    assert lines[first].startswith("- **name 0** (feature 0, on 10.3 % of tokens)")
    assert lines[first].endswith("% of tokens): 9 descendants")
    of_level = {level: [line for line in lines if line.startswith(" " * 4 * level + "- ")] for level in (1, 2)}
    assert {line.split("(")[1].split(",")[0] for line in of_level[1]} == {"feature 10", "feature 11"}
    assert all("covered 100 %, gain " in line for line in of_level[1])
    assert len(of_level[2]) == 6
    assert of_level[2][-1].strip() == "- … and 2 more"
    below = lines[lines.index(next(line for line in of_level[1] if "feature 11," in line)) + 1]
    assert below == of_level[2][0], "its children stand below it"


def test_rings_and_suspects_are_tables(result: Result) -> None:
    lines = hierarchy_report.section(result, name_of)
    [second], [third] = ([line for line in lines if line.startswith(f"| {ring} | ")] for ring in (1, 2))
    assert second.startswith("| 1 | 10 | 20 % | 0.70 | 1 | 1 : ")
    assert third.startswith("| 2 | 20 | 35 % | – | 2 | 1 : 2.")
    [suspect] = [line for line in lines if "(feature 30)" in line]
    assert suspect.startswith("| name 5 (feature 5) | name 30 (feature 30) | 0.")
    assert suspect.endswith("| 100 % | 0 % |")


def test_findings_have_number_interval_and_null(result: Result) -> None:
    first, second = hierarchy_report.findings(result, name_of)
    assert first.sentence.startswith("**30.0 %** of the features beyond the first ring have a parent")
    assert "name 0 (feature 0) has most descendants, 9." in first.sentence
    assert second.sentence.startswith("**3.3 %** of the features beyond the first ring may have absorbed a parent")
    assert first.strength > 1
    for finding in (first, second):
        assert "95 % interval" in finding.sentence
        assert "0.0 % with" in finding.sentence


def test_figures_show_what_stands(result: Result) -> None:
    with drawing.style():
        figures = hierarchy_report.figures(result)
        assert [*figures] == ["hierarchy-depth", "hierarchy-children", "hierarchy-specificity", "hierarchy-gain"]
    [axes] = figures["hierarchy-depth"].axes
    shares = np.array([bar.get_width() for bar in axes.patches]).reshape(3, 3)  # type: ignore[attr-defined]
    np.testing.assert_allclose(shares, [[1, 0.8, 0.65], [0, 0.2, 0], [0, 0, 0.35]])
    [axes] = figures["hierarchy-children"].axes
    assert [line.get_xydata().tolist() for line in axes.lines] == [[[2, 1]], [[7, 1]]]  # type: ignore[union-attr]
    [axes] = figures["hierarchy-specificity"].axes
    assert sum(patch.get_data().values.max() for patch in axes.patches) > 0  # type: ignore[attr-defined]
    [axes] = figures["hierarchy-gain"].axes
    stands = np.array(result.details["edges"]["stands"])
    assert [len(points.get_offsets()) for points in axes.collections] == [stands.sum(), (~stands).sum()]


def test_where_nothing_stands_the_report_says_so(tmp_path: Path) -> None:
    dense = latents(0, ROWS, 40, 0.1)
    result = measured(tmp_path / "recording", dense, np.random.default_rng(0).integers(0, 20, ROWS), {})
    assert result.details["edges"]["parent"] == []
    lines = hierarchy_report.section(result, name_of)
    assert "0 pairs of a feature and one of an earlier ring" in lines[0]
    assert lines[-1].startswith("No suspicion of absorption: of ")
    assert hierarchy_report.findings(result, name_of)[0].strength == 0
    with drawing.style():
        assert [*hierarchy_report.figures(result)] == ["hierarchy-depth"]


def test_pairs_of_coders_have_one_hierarchy_through_the_features_that_are_kept() -> None:
    """Four edges, of which one is not of the second coder and one goes to a feature that is not kept."""
    edges = {"parent": [0, 0, 1, 1], "child": [2, 3, 4, 5], "stands": [True] * 4}
    first = Result((), {"rings": [2, 6], "edges": edges})
    second = Result((), {"rings": [2, 6], "edges": {"parent": [1, 0, 0], "child": [2, 3, 4], "stands": [True] * 3}})
    sides = {"A": {"name": "one"}, "B": {"name": "other"}}
    matches = {"latent": [*range(6)], "partner": [1, 0, 2, 5, 3, 4], "class": ["kept"] * 5 + ["processed"]}
    pair = ComparedPair("one → other", "one--other", Result((), {"sides": sides, "matches": {"A": matches}}))
    lines = agreements([pair], {"one": first, "other": second})
    [row] = [line for line in lines if line.startswith("| one → other")]
    assert "66.7 %" in row
    assert "null" in row
    assert agreements([pair], {"one": first}) == []
    none = ComparedPair("one → other", "", Result((), reason="no latent fires"))
    assert agreements([none], {"one": first, "other": second}) == []
