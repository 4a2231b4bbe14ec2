"""Results on disk: what comes back is what was written, and nothing damaged is taken for it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from matryoshka.errors import MatryoshkaError
from matryoshka.scores.result import Measure, Result, score
from matryoshka.scores.saved import load, save

LOSS = Measure("loss", "lower", "A ratio of sums.", null="chance")
SHARE = Measure("share", "higher", "Another.", unit="feature", paired=False, headline=False, percent=True)
RESULT = Result(
    (
        score(LOSS, 4, ["a", "b", "c"], [1, 2, 4], [2, 2, 2], null=3.0),
        score(LOSS, 8, ["a", "b"], [1, 2.5]),
        score(SHARE, 8, range(5), [0, 1, 0, 1, 1]),
    ),
    {"histogram": [1, 2]},
)
IDENTITY = {"coder": "abc", "tokens": 3}


def test_a_result_comes_back_whole(tmp_path: Path) -> None:
    save(RESULT, IDENTITY, tmp_path / "evaluation", "some")
    result, identity = load(tmp_path / "evaluation", "some")
    assert identity == IDENTITY
    assert result.details == RESULT.details
    for mine, theirs in zip(RESULT.scores, result.scores, strict=True):
        assert mine.measure == theirs.measure
        assert mine.units == theirs.units
        assert np.array_equal(mine.numerator, theirs.numerator)
        assert mine.as_json() == theirs.as_json()


def test_a_process_may_end_as_soon_as_it_has_read_a_result(tmp_path: Path) -> None:
    """One in seven was aborted while a thread of Arrow's still held a file object of Python's: here all of 32."""
    save(RESULT, IDENTITY, tmp_path, "some")
    program = "import sys, pathlib, matryoshka.scores.saved as saved; saved.load(pathlib.Path(sys.argv[1]), 'some')"
    command = [sys.executable, "-c", program, str(tmp_path)]
    readers = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(32)]
    assert [(reader.communicate()[1], reader.returncode) for reader in readers] == [("", 0)] * 32


def test_the_files_explain_themselves(tmp_path: Path) -> None:
    save(RESULT, IDENTITY, tmp_path, "some")
    content = json.loads((tmp_path / "some.json").read_text())
    assert content["measures"]["loss"]["null"] == "chance"
    assert content["scores"][0]["value"] == 7 / 6
    units = pd.read_parquet(tmp_path / "some.parquet")
    assert units[units.score == "loss"].groupby("width").numerator.sum().to_dict() == {4: 7, 8: 3.5}


def test_a_reason_in_place_of_scores(tmp_path: Path) -> None:
    save(Result((), reason="cannot spell"), IDENTITY, tmp_path, "some")
    assert load(tmp_path, "some").result == Result((), reason="cannot spell")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "some.json").unlink(), "some.json: no such results; measure first"),
        (lambda folder: (folder / "some.parquet").unlink(), "some.parquet: no such results"),
        (lambda folder: (folder / "some.parquet").write_bytes(b"PAR1"), "some.json: damaged"),
        (lambda folder: (folder / "some.json").write_text("{"), "some.json: not JSON"),
        (lambda folder: (folder / "some.json").write_text("[]"), "some.json: damaged"),
        (
            lambda folder: (folder / "some.json").write_text('{"format": 9}'),
            "written in format 9, this version reads 2",
        ),
        (
            lambda folder: (
                save(Result(RESULT.scores[:2]), IDENTITY, folder / "other", "some")
                or (folder / "other" / "some.parquet").replace(folder / "some.parquet")
            ),
            "some.json: damaged",
        ),
    ],
)
def test_damaged_results_are_refused_by_name(tmp_path: Path, damage, message: str) -> None:
    save(RESULT, IDENTITY, tmp_path, "some")
    damage(tmp_path)
    with pytest.raises(MatryoshkaError, match=message):
        load(tmp_path, "some")
