"""The overview's data: what is there as it is, what is not there, damaged or another's as one line."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from planted_analyses import AGREEMENT
from small_store import make_store

from matryoshka.evaluation.table import EVALUATIONS
from matryoshka.features.store import FeatureStore
from matryoshka.report import data
from matryoshka.report.page_results import CURVE_POINTS, results
from matryoshka.run import Run
from matryoshka.scores.result import Measure, Result, score
from matryoshka.scores.saved import save

FVU = Measure("FVU", "lower", "Unexplained.", null="another's", headline=True)
SIZE = Measure("size", "neither", "A count.", unit="dictionary", headline=False)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "a run")


@pytest.fixture
def store(run: Run) -> FeatureStore:
    run.path.mkdir()
    return make_store(run.features_file)


def measured(run: Run, coder: str = "0" * 64) -> None:
    scores = [score(FVU, width, "abc", [0.2, 0.4, 0.9], null=1.0) for width in (10, 70)]
    save(Result((*scores, score(SIZE, 70, ["all"], [7]))), {"coder": coder}, run.evaluation, "reconstruction")


def trained(run: Run, steps: int) -> None:
    lines = []
    for step in range(1, steps + 1):
        fvu = [1 / step, 0.5 / step, 0.1]
        lines.append({"step": step, "tokens": 8 * step, "l0": 4, "dead": 0.0, "fvu": fvu})
        if step % 10 == 0:
            lines.append({"step": step, "l0": 4, "held_out": True, "fvu": fvu})
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_scores_stand_under_what_measured_them(run: Run, store: FeatureStore) -> None:
    measured(run)
    save(Result((score(AGREEMENT, 70, "ab", [0.5, 0.7], null=0),)), {"coders": ["0" * 64]}, run.analysis, "clusters")
    save(Result((), reason="too small"), {"coder": "0" * 64}, run.evaluation, "absorption-mine")
    save(Result((score(SIZE, 70, ["all"], [7]),)), {"store": {"coder": "0" * 64}}, run.analysis, "names")
    (run.evaluation / "scores.json").write_text("[]")
    found = results(run, store)
    names = ["reconstruction", "absorption-mine", "clusters", "names"]
    assert [group["name"] for group in found["groups"]] == names
    assert not any("why" in group for group in found["groups"] if group["name"] != "absorption-mine")
    fvu, size = found["groups"][0]["measures"]
    assert [row["width"] for row in fvu["rows"]] == [10, 70]
    assert fvu["rows"][0]["value"] == pytest.approx(0.5)
    assert fvu["rows"][0]["low"] < 0.5 < fvu["rows"][0]["high"]
    assert (fvu["rows"][0]["null"], fvu["meaning"], fvu["null"]) == (1.0, "Unexplained.", "another's")
    assert (size["rows"][0]["low"], size["headline"]) == (None, False)
    assert found["groups"][1] == {"name": "absorption-mine", "why": "Not measurable here: too small"}
    assert found["unmeasured"] == [name for name in EVALUATIONS if name != "reconstruction"]
    assert json.loads(data.to_json(found)) == found


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda saved: saved.pop("scores"), r"evaluation/reconstruction.json: damaged \(scores: Field required\)"),
        (lambda saved: saved["scores"][0].update(value="0.5"), r"damaged \(scores.0.value: .*number"),
        (lambda saved: saved["scores"][0].update(low=float("nan")), r"damaged \(scores.0.low: .*finite"),
        (lambda saved: saved["scores"][0].update(name="other"), "does not say what 'other' means"),
        (lambda saved: saved.update(format=1), "written in format 1"),
        (lambda saved: saved["identity"].update(coder="1" * 64), "of a coder with other weights than the features"),
    ],
)
def test_what_is_damaged_or_anothers_is_one_line(
    run: Run, store: FeatureStore, change: Callable[[dict[str, Any]], object], why: str
) -> None:
    measured(run)
    file = run.evaluation / "reconstruction.json"
    change(saved := json.loads(file.read_text()))
    file.write_text(json.dumps(saved))
    [group] = results(run, store)["groups"]
    assert set(group) == {"name", "why"}
    assert re.search(why, group["why"])
    assert str(run.path) not in group["why"]
    assert "\n" not in group["why"]


@pytest.mark.parametrize("content", ["", "[]", "{", "null", "[" * 100_000])
def test_no_result_at_all_is_one_line(run: Run, store: FeatureStore, content: str) -> None:
    measured(run)
    (run.evaluation / "reconstruction.json").write_text(content)
    [group] = results(run, store)["groups"]
    assert "reconstruction.json: " in group["why"]


def test_curves_are_thinned_and_end_where_training_did(run: Run, store: FeatureStore) -> None:
    trained(run, 3 * CURVE_POINTS)
    curves = results(run, store)["training"]
    assert len(curves["batches"]["tokens"]) == CURVE_POINTS
    assert (curves["batches"]["tokens"][0], curves["batches"]["tokens"][-1]) == (8, 24 * CURVE_POINTS)
    assert [len(column) for column in curves["batches"]["fvu"]] == [CURVE_POINTS] * 3
    assert curves["batches"]["fvu"][0][:2] == [1.0, 0.25]
    assert curves["held_out"]["tokens"][:2] == [80, 160]
    assert curves["held_out"]["fvu"][1][0] == 0.05


def test_without_curves_it_says_why(run: Run, store: FeatureStore) -> None:
    assert results(run, store)["training"] == {
        "why": "This coder was not trained here, so there are no curves of its training."
    }
    run.config_file.touch()
    assert "no record of training yet" in results(run, store)["training"]["why"]
    run.metrics.write_text('{"step": 1, "tokens": 8, "l0": 4, "dead": 0, "fvu": [1.0]}\n')
    assert results(run, store)["training"]["why"] == "metrics.jsonl: of 1 prefixes, and the features of 3"


def test_a_report_is_known(run: Run, store: FeatureStore) -> None:
    assert results(run, store)["report"] is False
    (run.path / "report").mkdir()
    (run.path / "report" / "report.html").touch()
    assert results(run, store)["report"] is True
