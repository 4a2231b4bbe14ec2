"""A folder with nothing but a coder's two files, as it comes from a hub or a friend, is a run to all that study it."""

import json
import shutil
from pathlib import Path

import pytest
from commands import typed

from matryoshka import api
from matryoshka.coder import io
from matryoshka.features.feature import FLAGS
from matryoshka.features.reading import reader
from matryoshka.lm.model import LanguageModel
from matryoshka.run import Run
from matryoshka.study.opening import Models
from matryoshka.study.reader import LOGIT_BATCH

from ..conftest import FEATURE_TOKENS, SMALL

MEASURED = SMALL["evaluation"]["tokens"]
"""What training has measured its coder on."""


def copied(run: Run, folder: Path) -> Run:
    """The coder's two files alone, in a folder of their own."""
    shutil.copytree(run.coder, folder)
    assert sorted(file.name for file in folder.iterdir()) == [io.CONFIG, io.WEIGHTS]
    return Run(folder)


@pytest.fixture
def bare(trained: Run, tmp_path: Path) -> Run:
    return copied(trained, tmp_path / "bare")


@pytest.fixture
def foreign(bare: Run) -> Run:
    """The same, of which nobody knows what it was trained on."""
    file = bare.path / io.CONFIG
    content = json.loads(file.read_text())
    content["card"]["trained"] = None
    file.write_text(json.dumps(content))
    return bare


def described(run: Run, dead: bool) -> dict[str, list]:
    """All columns of its features; without what is known of dead ones unless `dead`."""
    columns, bit = api.store(run).columns(), 1 << list(FLAGS).index("dead")
    return columns if dead else columns | {"flags": [flags & ~bit for flags in columns["flags"]]}


def liveliest(run: Run) -> int:
    return api.store(run).ranking("count")[0]


@pytest.mark.parametrize("source", [None, "bundled"], ids=["its card's text", "a text that is given"])
def test_two_files_go_through_all_that_studies_a_coder(
    source: str | None,
    request: pytest.FixtureRequest,
    trained: Run,
    featured: Run,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """To the same numbers as in the run where it was trained."""
    run: Run = request.getfixturevalue("bare" if source is None else "foreign")
    text = [] if source is None else ["--text", source]

    assert typed(capsys, "features", run.path, "--tokens", FEATURE_TOKENS, *text)[0] == 0
    assert api.store(run).about.coder == io.fingerprint(run.path) == io.fingerprint(trained.path)
    assert described(run, dead=source is None) == described(featured, dead=source is None)

    code, out, _ = typed(capsys, "eval", run.path, "--only", "reconstruction", "--tokens", MEASURED, *text)
    assert code == 0
    assert "FVU" in out
    assert api.results(run).values("FVU") == api.results(trained).values("FVU")
    dead = [score for score in api.results(run).scores if score.measure.name == "dead"]
    assert bool(dead) == (source is None), "of a foreign one nobody knows"

    code, out, _ = typed(capsys, "explain", run.path)
    assert code == 0
    assert "features named by an n-gram" in out

    code, out, _ = typed(capsys, "steer", run.path, liveliest(run), "--tokens", 4, *text)
    assert code == 0
    assert "KL(unsteered" in out

    code, out, _ = typed(capsys, "export-page", run.path, tmp_path / "page")
    assert code == 0
    assert Path(out.strip()).is_file()

    read = reader(run, api.store(run).about, Models("cpu"))
    assert read("The people of the United States").firings


def test_without_any_text_one_is_asked_for(foreign: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["features", foreign.path], ["eval", foreign.path], ["steer", foreign.path, 3]):
        code, out, err = typed(capsys, *words)
        assert code == 2
        assert not out
        assert len(err.strip().splitlines()) == 1
        assert f"{foreign.path}: its card knows no text to study it on; give one with --text" in err
    assert sorted(file.name for file in foreign.path.iterdir()) == [io.CONFIG, io.WEIGHTS], "nothing is begun"


def test_what_nobody_knows_of_one_of_two_is_left_empty(
    trained: Run, foreign: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known, out = copied(trained, tmp_path / "known"), tmp_path / "report"
    words = ["--only", "reconstruction", "--tokens", MEASURED, "--text", "bundled", "--out", out]
    code, shown, _ = typed(capsys, "eval", known.path, foreign.path, *words)
    assert code == 0
    assert "dead" in shown
    assert (out / "report.md").is_file()


def test_a_coder_that_was_not_trained_here_has_no_training_to_draw(
    bare: Run, trained: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    code, out, err = typed(capsys, "figures", bare.path)
    assert code == 2
    assert not out
    assert len(err.strip().splitlines()) == 1
    assert "no such results; measure first: matryoshka eval" in err
    assert not (bare.path / "figures").exists()
    shutil.copytree(trained.evaluation, bare.evaluation)
    code, out, _ = typed(capsys, "figures", bare.path)
    assert code == 0
    assert sorted(Path(line).name for line in out.split()) == ["fvu-per-prefix.png", "fvu-per-prefix.svg"]


def test_two_runs_of_one_model_and_text_read_it_once(
    trained: Run, bare: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether they were trained here or not: features take the passes of one, and evaluations share all but what is
    spliced in of each coder."""
    passes: list[int] = []
    forward = LanguageModel._forward
    monkeypatch.setattr(LanguageModel, "_forward", lambda self, tokens: passes.append(1) or forward(self, tokens))
    run = Run(Path(shutil.copytree(trained.path, tmp_path / "run")))

    def taken(*runs: Run) -> tuple[int, int]:
        passes.clear()
        api.features(runs, 3000, overwrite=True, keep_recording=False)
        of_features = len(passes)
        api.evaluate(runs, ["reconstruction"], out=tmp_path / "report", overwrite=True, tokens=MEASURED)
        return of_features, len(passes) - of_features

    features, evaluation = taken(run)
    with_another, evaluated = taken(run, bare)
    assert with_another == features
    assert evaluation < evaluated < 2 * evaluation
    prefixes, batches = len(SMALL["coder"]["widths"]), MEASURED // SMALL["text"]["context"] // LOGIT_BATCH
    assert evaluated - evaluation == (prefixes + 1) * batches, "the reconstruction of each prefix, and the null's"
