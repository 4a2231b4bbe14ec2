"""The evaluation suite from the command line: what it prints and writes, takes up again, groups and refuses."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import torch

from matryoshka import api
from matryoshka.cli import main
from matryoshka.coder.coder import SparseCoder
from matryoshka.config import merged
from matryoshka.errors import MatryoshkaError
from matryoshka.evaluation import subject
from matryoshka.run import Run
from matryoshka.training.recipe import Config

from ..conftest import SMALL

TOKENS = SMALL["evaluation"]["tokens"]
"""What training has measured its coders on."""
evaluate = partial(api.evaluate, tokens=TOKENS)
ANIMALS = [
    ("animal", "dog", "the dog"), ("animal", "dog", "a dog"), ("animal", "cat", "the cat"), ("tool", "axe", "the axe"),
]  # fmt: skip


@pytest.fixture
def run(trained: Run, tmp_path: Path) -> Run:
    shutil.copytree(trained.path, tmp_path / "run")
    return Run(tmp_path / "run")


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two recipes of two seeds each, in one run."""
    variants = [{"seed": 0}, {"seed": 1}, {"k": 3, "seed": 0}, {"k": 3, "seed": 1}]
    config = merged(SMALL, {"training": {"tokens": 8192}})
    return api.train(Config.build({**config, "variants": variants}), tmp_path_factory.mktemp("seeds") / "matryoshka")


def times(run: Run) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in run.evaluation.glob("*.json") if file.name != "scores.json"}


def measure(run: Run) -> list[str]:
    """The words of the command line."""
    return ["eval", str(run.path), "--tokens", str(TOKENS)]


def said(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 0
    return capsys.readouterr().out


def test_the_command_prints_a_table_and_writes_the_report(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    text = said([*measure(run), "--only", "reconstruction"], capsys)
    for part in ("FVU ↓", "CE recovered ↑", "null", "first 32", "first 256", str(run.evaluation / "report.md")):
        assert part in text, part
    report = (run.evaluation / "report.md").read_text()
    assert "Fraction of variance unexplained" in report
    scores = pd.read_parquet(run.evaluation / "scores.parquet")
    fvu = scores[(scores.name == "FVU") & (scores.width == 256)].iloc[0]
    assert fvu.low < fvu.value < fvu.high < fvu.null
    assert fvu.value == api.results(run).values("FVU")[-1]
    printed = json.loads(said([*measure(run), "--only", "reconstruction", "--json"], capsys))
    assert printed == json.loads((run.evaluation / "scores.json").read_text())
    assert len(printed) == len(scores)


def test_what_is_measured_already_is_taken(run: Run) -> None:
    before = times(run)
    evaluate([run.path], ["reconstruction"])
    assert times(run) == before, "training has measured it"
    evaluate([run.path], ["reconstruction"], overwrite=True)
    assert times(run)["reconstruction.json"] > before["reconstruction.json"]


def test_another_coder_is_measured_anew(run: Run) -> None:
    before = evaluate([run.path], ["reconstruction"]).entries[0].seeds[0]["reconstruction"].values("FVU")[-1]
    coder = SparseCoder.load(run.coder)
    with torch.no_grad():
        coder.W_dec *= 0.5
    coder.save(run.coder)
    after = evaluate([run.path], ["reconstruction"]).entries[0].seeds[0]["reconstruction"].values("FVU")[-1]
    assert after > before + 0.01


def test_damaged_results_are_measured_anew(run: Run) -> None:
    (run.evaluation / "reconstruction.parquet").write_bytes(b"")
    assert evaluate([run.path], ["reconstruction"]).entries[0].seeds[0]["reconstruction"].scores
    assert api.results(run).values("FVU")


def test_a_killed_suite_goes_on_where_it_was(run: Run) -> None:
    """The process is really killed, after its first evaluation is saved and before its second is."""
    command = [sys.executable, "-m", "matryoshka", *measure(run)]
    only = ["--only", "reconstruction", "intervention"]
    shutil.rmtree(run.evaluation)  # what training has measured
    process = subprocess.Popen([*command, *only], env=os.environ, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while not (run.evaluation / "reconstruction.json").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = times(run)
    assert "reconstruction.json" in done
    assert "intervention.json" not in done
    assert not (run.evaluation / "report.md").exists()
    found = evaluate([run.path], ["reconstruction", "intervention"])
    assert list(found.entries[0].seeds[0]) == ["reconstruction", "intervention"]
    assert {name: time_ for name, time_ in times(run).items() if name in done} == done
    assert not list(run.evaluation.glob(".new-*")), "nothing half-written stays"


def test_a_model_that_cannot_spell_is_said_and_the_rest_goes_on(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    text = said([*measure(run), "--only", "absorption", "reconstruction"], capsys)
    assert "not measured: absorption: " in text
    assert "FVU ↓" in text
    assert api.results(run, "absorption").reason is not None
    before = times(run)
    evaluate([run.path], ["absorption"])
    assert times(run) == before, "that it cannot be measured need not be found out again"


def test_seeds_of_a_recipe_are_one_row_with_a_spread(seeds: Run, capsys: pytest.CaptureFixture[str]) -> None:
    found = evaluate([seeds.path], ["reconstruction"])
    assert [(entry.label, len(entry.seeds)) for entry in found.entries] == [("k=3", 2), ("matryoshka", 2)]
    text = said([*measure(seeds), "--only", "reconstruction"], capsys)
    assert "k=3 (2 seeds)" in text
    assert " ± " in text
    assert "detectable" in text
    report = (seeds.evaluation / "report.md").read_text()
    assert "## Differences from k=3" in report


def test_runs_side_by_side_go_into_a_folder_of_their_own(
    seeds: Run, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    one = seeds.members()[0]
    found = evaluate([one.path, run.path, run.path], ["reconstruction"])
    assert found.report == Path("evaluation", "report.md")
    assert [entry.label for entry in found.entries] == [one.path.name, "run"], "a run named twice is one row"
    assert evaluate([one.path, run.path], ["reconstruction"], out="other").report == Path("other", "report.md")


def test_the_users_own_labels_are_probed_and_a_tree_is_searched_for_absorption(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "animals.jsonl"
    rows = [
        {"text": f"They saw {text}{end}", "span": [9, 9 + len(text)], "path": [root, leaf], "group": f"{text}{i}"}
        for root, leaf, text in ANIMALS
        for i, end in enumerate([" there.", " again.", " once.", " at noon.", " then.", " here."] * 5)
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    found = evaluate([run.path], ["probing", "absorption"], [file])
    results = found.entries[0].seeds[0]
    assert "absorption-animals" in results
    units = results["probing"].scores[0].units
    assert any("animal" in unit for unit in units)
    before = times(run)
    monkeypatch.setattr(subject, "shipped", list)  # those that come with the package are not read again
    evaluate([run.path], ["probing"], [file])
    assert times(run) == before
    file.write_text(file.read_text().replace("They", "We", 1))
    evaluate([run.path], ["probing"], [file])
    assert times(run)["probing.json"] > before["probing.json"], "other labels, other numbers"


@pytest.mark.parametrize(
    ("only", "labels", "message"),
    [
        (["reconstructoin"], [], "--only reconstructoin: no such evaluation .did you mean 'reconstruction'"),
        ([], ["missing.jsonl"], "missing.jsonl: labelled text cannot be read"),
    ],
)
def test_wrong_inputs_are_refused_before_anything_is_measured(
    run: Run, only: list[str], labels: list[str], message: str
) -> None:
    before = times(run)
    with pytest.raises(MatryoshkaError, match=message):
        evaluate([run.path], only, labels)
    with pytest.raises(MatryoshkaError, match="no run here"):
        evaluate([run.path, run.path / "nowhere"])
    assert times(run) == before


def test_labels_of_a_name_that_is_taken_are_refused(run: Run, tmp_path: Path) -> None:
    """Concepts are known by the name of their set: two of one name would be taken for each other."""
    line = json.dumps({"text": "a dog", "label": "x"}) + "\n" + json.dumps({"text": "a cat", "label": "y"})
    for name in ("genre.jsonl", "mine.jsonl", "other/mine.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(line)
    with pytest.raises(MatryoshkaError, match="labels of the name 'genre' already"):
        evaluate([run.path], ["probing"], [tmp_path / "genre.jsonl"])
    with pytest.raises(MatryoshkaError, match=r"other/mine\.jsonl: there are labels of the name 'mine' already"):
        evaluate([run.path], ["probing"], [tmp_path / "mine.jsonl", tmp_path / "other" / "mine.jsonl"])
