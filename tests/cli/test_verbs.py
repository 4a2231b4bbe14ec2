"""The commands on a run's features, as they are typed: what they print, and what they refuse in one line."""

import json
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from commands import typed

from matryoshka import api
from matryoshka.cli.tables import show_run
from matryoshka.errors import MatryoshkaError
from matryoshka.run import Run
from matryoshka.training.recipe import Config
from matryoshka.training.session import Session


@pytest.fixture
def run(featured: Run, tmp_path: Path) -> Run:
    shutil.copytree(featured.path, tmp_path / "run")
    return Run(tmp_path / "run")


@pytest.fixture
def several(tmp_path: Path) -> Run:
    """Two coders, no features yet."""
    values = {
        "coder": {"read": "1.mlp_in", "d_sae": 64, "k": 4},
        "variants": [{"k": 2}, {"k": 4}],
        "training": {"tokens": 1024, "batch": 512},
        "evaluation": {"tokens": 1024},
    }
    return api.train(Config.build(values), tmp_path / "several")


def test_features_says_what_it_takes_and_what_it_found(several: Run, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = typed(capsys, "features", several.path, "--tokens", "2e3")
    assert code == 0
    assert out.count("GB of memory") == 1, "both in one pass"
    assert out.count("64 features") == 2
    assert "left out" in out
    for member in several.members():
        assert len(api.store(member)) == 64
    code, _, err = typed(capsys, "features", several.path)
    assert code == 2
    assert "exists already; --overwrite collects anew and keeps labels" in err


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["features", "absent"], "absent: no run here"),
        (["features", "{run}", "--tokens", "many"], "--tokens"),
        (["features", "{run}", "--overwrite", "--text", "absent.txt"], "no such file or folder"),
        (["features", "{run}", "--split", "test"], "--split"),
        (["serve", "absent"], "absent: no run here"),
        (["serve", "{bare}"], "no features here; collect them with: matryoshka features"),
        (["serve", "{run}", "--port", "{taken}"], "give another --port, or 0 for any"),
        (["serve", "{run}", "--prot", "1"], "--port"),
        (["export-page", "{bare}", "page"], "no features here"),
        (["export-page", "{run}", "{run}"], "exists already"),
        (["export-page", "{run}", "{run}", "--overwrite"], "not a page, so --overwrite leaves it alone"),
        (["figures", "absent"], "absent: no run here"),
        (["steer", "{run}", "3", "--temperature", "1e-300"], "the second 0 or from 0.001 on"),
        (["steer", "{run}", "3", "--strength", "1e38"], "not finite any more"),
        (["figuers", "{run}"], "did you mean 'figures'"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], line: str, run: Run, trained: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(path.name for path in run.path.iterdir())
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        names = {"run": run.path, "bare": trained.path, "taken": listening.getsockname()[1]}
        code, out, err = typed(capsys, *(word.format(**names) for word in words))
    assert code == 2
    assert not out
    assert line in err
    assert len(err.strip().splitlines()) == 1
    assert sorted(path.name for path in run.path.iterdir()) == before


@pytest.mark.parametrize(
    "words",
    [
        "tokens --text {text}",
        "train --read 1.mlp_in --d-sae 64 --text {text} --out {out}",
        "train --read 1.mlp_in --d-sae 64 --dry-run",
    ],
)
def test_a_cache_that_cannot_be_written_is_one_line(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MATRYOSHKA_CACHE", "/dev/null/cache")
    text = tmp_path / "text.jsonl"
    text.write_text("".join(json.dumps({"text": f"document {i} " * 50}) + "\n" for i in range(100)))
    code, out, err = typed(capsys, *words.format(text=text, out=tmp_path / "run").split())
    assert code == 2
    assert not out
    assert "/dev/null" in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "words",
    [
        "train --read 1.mlp_in --d-sae 64 --out {file}/run",
        "train --read 1.mlp_in --d-sae 64 --out {long}",
        "quickstart --out /proc/x",
    ],
)
def test_a_run_that_cannot_be_written_is_refused_before_the_work(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(Session, "open", None)
    code, _, err = typed(capsys, *words.format(file=tmp_path / "file", long="x" * 300).split())
    assert code == 2
    assert "cannot be made or written into" in err


FULL = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
from matryoshka.cli import main
main(sys.argv[2:])
"""


@pytest.mark.parametrize(
    ("most", "words"),
    [
        (20_000, "train --read 1.mlp_in --d-sae 512 --k 4 --tokens 4096 --batch 512 --text.context 64 --out {new}"),
        (20_000, "features {bare} --tokens 3000"),
        (20_000, "features {run} --tokens 3000 --overwrite"),
        (500, "eval {run} --only reconstruction --tokens 1024 --overwrite"),
        (10_000, "export-page {run} {new}"),
    ],
)
def test_a_full_disk_is_one_line_and_leaves_nothing_half(
    most: int, words: str, run: Run, trained: Run, tmp_path: Path
) -> None:
    bare = Run(shutil.copytree(trained.path, tmp_path / "bare"))

    def held() -> dict[Path, bytes]:
        files = (file for root in (run, bare) for file in root.path.rglob("*") if "recording" not in file.parts)
        return {file: file.read_bytes() for file in files if file.is_file()}

    before = held()
    names = {"run": run.path, "bare": bare.path, "new": tmp_path / "new"}
    # -B: Python does not look whether the bytecode of a module that it imports first was written whole
    program = [sys.executable, "-B", "-c", FULL, str(most), *words.format(**names).split()]
    done = subprocess.run(program, capture_output=True, text=True)
    errors = [line for line in done.stderr.splitlines() if not line.startswith(("training: ", "step "))]
    assert done.returncode == 2, done.stderr
    assert len(errors) == 1, done.stderr
    assert "File too large" in errors[0]
    assert held() == before
    assert not (tmp_path / "new" / "coder").exists()
    assert not (tmp_path / "new" / "index.html").exists()


def test_names_with_brackets_are_shown_as_they_are(
    tmp_path: Path, trained: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    show_run(Run(shutil.copytree(trained.path, tmp_path / "run [v2]")))
    assert capsys.readouterr().out.count("run [v2]") == 2


def test_a_quickstart_that_is_there_is_left_alone(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = typed(capsys, "quickstart", "--out", run.path)
    assert code == 2
    assert "exists already" in err


def test_export_page_prints_what_to_open(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = typed(capsys, "export-page", run.path, tmp_path / "page")
    assert code == 0
    assert Path(out.strip()).is_file()
    assert typed(capsys, "export-page", run.path, tmp_path / "page", "--overwrite")[0] == 0


def test_the_page_of_several_coders_is_asked_for_one_by_one(several: Run, tmp_path: Path) -> None:
    with pytest.raises(MatryoshkaError, match=r"has several coders; give one of: .*k=2"):
        api.export_page(several.path, tmp_path / "page")


def test_figures_are_drawn_with_the_densities_of_the_features(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    code, out, _ = typed(capsys, "figures", run.path)
    assert code == 0
    assert {Path(line).name for line in out.split()} == {
        f"{name}.{kind}" for name in ("training", "fvu-per-prefix", "density") for kind in ("png", "svg")
    }


def test_serve_ends_at_ctrl_c_without_a_traceback(run: Run) -> None:
    import signal

    command = [sys.executable, "-m", "matryoshka", "serve", str(run.path), "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert server.stdout is not None
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/  \(Ctrl-C ends it\)\n", server.stdout.readline())
    server.send_signal(signal.SIGINT)
    _, err = server.communicate(timeout=20)
    assert "Traceback" not in err
