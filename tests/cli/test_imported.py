"""A coder of another program goes through every command as one that was trained here, with no more than a text."""

import json
import shutil
from pathlib import Path

import pytest
from commands import typed

from matryoshka import api
from matryoshka.coder.coder import SparseCoder
from matryoshka.run import Run

from ..interop.hub_folder import HubFolder, same, write_saelens


@pytest.fixture
def theirs(trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A transcoder of the bundled model in SAELens' files; no context, as of most."""
    monkeypatch.chdir(tmp_path)
    return write_saelens(
        tmp_path / "theirs", SparseCoder.load(trained.path), out="blocks.1.hook_mlp_out", context_size=None
    )


def test_every_command_takes_an_imported_coder(theirs: Path, trained: Run, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = typed(capsys, "import", theirs, "--out", "run")
    assert (code, err) == (0, "")
    assert "1.mlp_in → 1.mlp_out" in out
    assert "matryoshka eval run --text SOURCE" in out
    run, text = Path("run"), ["--text", "bundled"]

    for words in (["eval", run], ["features", run], ["steer", run, 3]):
        code, _, err = typed(capsys, *words)
        assert code == 2
        assert "its card knows no text to study it on; give one with --text" in err
    assert sorted(file.name for file in run.iterdir()) == ["coder", "provenance.json"]

    code, out, err = typed(capsys, "eval", run, "--only", "reconstruction", "--tokens", 2048, *text)
    assert (code, err) == (0, "")
    theirs_fvu, ours_fvu = (api.results(one).values("FVU") for one in ("run", trained))
    assert len(theirs_fvu) == 3, "its prefixes"
    assert theirs_fvu == pytest.approx(ours_fvu, rel=0.2), "on windows of another length"

    code, out, _ = typed(capsys, "features", run, "--tokens", 6000, *text)
    assert code == 0
    assert "256 features" in out
    feature = api.store(run).ranking("count")[0]
    code, out, _ = typed(capsys, "explain", run)
    assert code == 0
    code, out, _ = typed(capsys, "steer", run, feature, "--tokens", 4, *text)
    assert code == 0
    assert "KL(unsteered" in out
    code, out, _ = typed(capsys, "export-page", run, "page")
    assert code == 0
    assert Path(out.strip()).is_file()
    code, _, err = typed(capsys, "resume", run)
    assert code == 2
    assert len(err.strip().splitlines()) == 1


def test_figures_of_an_imported_coder_are_those_that_need_no_training(
    theirs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    api.import_run(theirs, out="run")
    code, _, err = typed(capsys, "figures", "run")
    assert code == 2
    assert "no such results; measure first: matryoshka eval" in err
    api.evaluate(["run"], ["reconstruction"], tokens=1024, text="bundled")
    code, out, _ = typed(capsys, "figures", "run")
    assert code == 0
    assert [Path(line).name for line in out.split()] == ["fvu-per-prefix.png", "fvu-per-prefix.svg"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("import", "the following arguments are required: SOURCE"),
        ("import {theirs} --fromat saelens", "--format"),
        ("import {theirs} --format saelnes", "did you mean 'saelens'?"),
        ("import {theirs} --part layer_1", "no coder 'layer_1'"),
        ("import {theirs} --out theirs --overwrite", "not a run, so --overwrite leaves it alone"),
        ("import {theirs} --out /proc/x", "cannot be made or written into"),
        ("import {theirs} --read 1.mlp_im", "did you mean '1.mlp_in'?"),
        ("import gpt2-small-res-jd", "did you mean 'gpt2-small-res-jb'?"),
        ("import somebody/coders", "the Hugging Face hub cannot be reached"),
        ("pull somebody/coders", "the Hugging Face hub cannot be reached"),
        ("pull gpt2-small-res-jd", "did you mean 'gpt2-small-res-jb'?"),
        ("push {run} coders", "expected user/repo"),
        ("push {run}", "the following arguments are required: USER/REPO"),
        ("push {run} me/coders", "the Hugging Face hub cannot be reached"),
        ("push {run} me/coders --prefix 33", "prefix 33 is none of the coder's"),
        ("export {run} new --format saelnes", "did you mean 'saelens'?"),
        ("export {run} --format saelens", "the following arguments are required: FOLDER"),
        ("export {run} theirs --format saelens", "exists already; give another folder, or --overwrite"),
        ("export absent new --format saelens", "absent: no run here"),
        ("releases gpt5-small", "no release here is of 'gpt5-small'"),
        ("improt x", "did you mean 'import'?"),
    ],
)
def test_mistakes_are_one_line(
    words: str, line: str, theirs: Path, trained: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(path.name for path in theirs.parent.rglob("*"))
    code, out, err = typed(capsys, *words.format(theirs=theirs, run=trained.path).split())
    assert code == 2
    assert not out
    assert line in err
    assert len(err.strip().splitlines()) == 1
    assert sorted(path.name for path in theirs.parent.rglob("*")) == before


def test_releases_are_listed_so_that_their_names_can_be_copied(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = typed(capsys, "releases", "gemma-scope-2b")
    assert code == 0
    assert "gemma-scope-2b-pt-res/layer_{layer}/width_{width}/average_l0_{l0}" in out.split()
    assert "not read: it reads the heads' outputs" in out


def test_an_import_from_the_hub_says_which_commit(
    theirs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub = HubFolder(tmp_path).serve(monkeypatch)
    shutil.move(theirs, tmp_path / "repository" / "a")
    commit = hub.add("some/coders", tmp_path / "repository")
    code, out, _ = typed(capsys, "import", "some/coders", "--file", "a/cfg.json")
    assert code == 0
    assert "run: runs/imported/bundled/coders-a" in out
    said = json.loads(Path("runs/imported/bundled/coders-a/provenance.json").read_text())
    assert (said["source"], said["revision"]) == (f"some/coders/a/cfg.json@{commit}", commit)


def test_an_export_is_imported_as_it_was(trained: Run, theirs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = typed(capsys, "export", trained.path, "exported", "--format", "saelens", "--prefix", 96)
    assert (code, out.strip()) == (0, "exported")
    assert typed(capsys, "import", "exported", "--out", "run")[0] == 0
    assert same(SparseCoder.load("run"), SparseCoder.load(trained.path).prefix(96), 192)
    assert typed(capsys, "export", "run", "--format", "saelens", "exported", "--overwrite")[0] == 0


def test_push_and_pull_say_where_it_is(
    trained: Run, theirs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub = HubFolder(tmp_path).serve(monkeypatch)
    code, out, _ = typed(capsys, "push", trained.path, "me/coders", "--license", "mit")
    assert code == 0
    commit = hub.commit("me/coders").name
    assert out.splitlines() == ["blocks.1.mlp.hook_in", f"https://huggingface.co/me/coders at {commit}"]
    code, out, _ = typed(capsys, "push", trained.path, "me/coders", "--prefix", 96, "--overwrite")
    assert code == 0
    code, out, _ = typed(capsys, "pull", "me/coders", "blocks.1.mlp.hook_in")
    assert code == 0
    assert "run: runs/imported/bundled/coders" in out
    assert "32, 96" not in out
    assert SparseCoder.load("runs/imported/bundled/coders").widths == (32, 96)
