"""From a coder to findings: what is made, taken, gone on with after a kill, and what the report says and looks like."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from commands import typed
from torch import Tensor

from matryoshka import api
from matryoshka.coder.coder import SparseCoder
from matryoshka.config import merged
from matryoshka.errors import MatryoshkaError
from matryoshka.lm.model import LanguageModel
from matryoshka.report import pipeline
from matryoshka.report.analysed import Analysed
from matryoshka.report.finding import Finding, outstanding
from matryoshka.run import Run
from matryoshka.training.recipe import Config

from ..conftest import FEATURE_TOKENS, SMALL

pytest.importorskip("matplotlib", reason="matplotlib is not installed")
CHROMIUM = shutil.which("chromium")
SCREENSHOTS = Path(__file__).parents[2] / "build" / "screenshots"
SOME = ["reconstruction", "densities"]
NASTY = "<script>alert(1)</script> [x](http://evil.example) |*_"


def copied(run: Run, folder: Path) -> Run:
    return Run(Path(shutil.copytree(run.path, folder)))


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the windows of each batch that a language model reads, but for the one that it is checked on."""
    batches: list[int] = []
    forward: Callable = LanguageModel.read

    def counting(self: LanguageModel, tokens: Tensor, *rest: object) -> object:
        batches.extend([len(tokens)] if len(tokens) > 1 else [])
        return forward(self, tokens, *rest)

    monkeypatch.setattr(LanguageModel, "read", counting)
    return batches


@pytest.fixture(scope="module")
def analysed(featured: Run, tmp_path_factory: pytest.TempPathFactory) -> Analysed:
    """Of a run whose densest feature has a label that is none."""
    run = copied(featured, tmp_path_factory.mktemp("analysed") / "run")
    store = api.store(run)
    store.annotate(store.ranking("count")[0], label=NASTY)
    store.close()
    return api.analyze(run, SOME, FEATURE_TOKENS)


def test_one_pass_serves_features_and_analyses_and_nothing_is_found_twice(
    trained: Run, tmp_path: Path, read: list[int]
) -> None:
    api.features(copied(trained, tmp_path / "one"), FEATURE_TOKENS)
    features = list(read)
    read.clear()
    run = copied(trained, tmp_path / "two")
    first = api.analyze(run, ["densities"], FEATURE_TOKENS)
    assert read == features
    assert sum(features) >= FEATURE_TOKENS // 64
    read.clear()
    files = {file: file.stat().st_mtime_ns for file in (run.features_file, *run.analysis.iterdir())}
    again = api.analyze(run, ["densities"], FEATURE_TOKENS)
    assert not read
    assert files == {file: file.stat().st_mtime_ns for file in files}
    assert {file.name for file in run.analysis.iterdir()} >= {"densities.json", "names.json"}
    assert first.report.read_bytes() == again.report.read_bytes()
    anew = api.analyze(run, ["densities"], FEATURE_TOKENS, overwrite=True)
    assert all(file.stat().st_mtime_ns > before for file, before in files.items() if file.stem != "names")
    assert anew["densities"].result.values("living") == first["densities"].result.values("living")


def test_the_report_holds_findings_scores_figures_and_commands(analysed: Analysed) -> None:
    folder, [coder] = analysed.report.parent, analysed.coders
    text, page = (folder / "report.md").read_text(), analysed.report.read_text()
    findings = json.loads((folder / "findings.json").read_text())
    assert [finding["sentence"] for finding in findings] == [finding.sentence for _, finding in analysed.findings]
    assert {source for source, _ in analysed.findings} == set(SOME)
    assert all(f"\n{number}. " in text for number in range(1, 1 + len(findings)))
    tokens = f" --tokens {FEATURE_TOKENS}"
    for part in (
        f"`matryoshka eval {coder.run.path} --only reconstruction{tokens}`",
        f"`matryoshka analyze {coder.run.path} --only densities{tokens}`",
        f"`matryoshka analyze {coder.run.path}{tokens}`",
        "prefixes 32, 96, 256",
        "1.mlp\\_in → 1.mlp\\_out",
        "| CE recovered (zero) ↑ |",
        "| densities | activation of ring 2 | 256 |",
        "Null: rings exchanged.",
        f"http://127.0.0.1:8421/#/0/{coder.store.ranking('count')[0]})",
    ):
        assert part in text, part
    for link in re.findall(r"\(<(figures/.*?\.svg)>\)", text):
        assert (folder / link).is_file()
        assert (folder / link).with_suffix(".png").is_file()
    assert page.count("<svg") == text.count("](<figures/") == 4, "training, prefixes, densities, rings"
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt; [x](http://evil.example) |*_" in page
    links = set(re.findall(r'(?:href|src)="(?!#)([^"]*)"', page))
    assert {link.partition("#")[0] for link in links} == {"http://127.0.0.1:8421/"}
    scores = pd.read_parquet(folder / "scores.parquet")
    assert {"reconstruction", "densities", "names"} == set(scores["evaluation"])
    assert len(scores) == len(json.loads((folder / "scores.json").read_text()))


def test_an_exported_page_is_linked_where_it_lies_in_the_run(analysed: Analysed, tmp_path: Path) -> None:
    run = copied(analysed.coders[0].run, tmp_path / "run")
    api.export_page(run, run.path / "page")
    report = api.analyze(run, ["densities"], FEATURE_TOKENS).report
    links = set(re.findall(r'href="([^"#]+)#/0/\d+"', report.read_text()))
    assert links == {"../page/index.html"}
    assert (report.parent / links.pop()).is_file()


def test_in_python_each_analysis_has_a_table_and_figures(analysed: Analysed) -> None:
    from matplotlib.figure import Figure

    found = analysed["densities"]
    table = found.table()
    assert table.loc["living", "value"] == found.result.values("living")[0]
    assert table.loc["activation of ring 0", "low"] < table.loc["activation of ring 0", "value"]
    assert isinstance(found.plot(), Figure)
    widths = [bar.get_width() for bar in analysed.plot("densities", "rings").axes[0].patches]  # type: ignore[attr-defined]
    assert widths[-3:] == pytest.approx([ring["activation"] for ring in found.result.details["rings"]])
    assert analysed.table().loc["run", "FVU ↓"] == analysed.coders[0].evaluations["reconstruction"].values("FVU")[-1]
    with pytest.raises(MatryoshkaError, match=r"no analysis 'densites' here .did you mean 'densities'"):
        _ = analysed["densites"]
    with pytest.raises(MatryoshkaError, match=r"densities has no figure 'ring' .did you mean 'rings'"):
        found.plot("ring")


def test_several_coders_are_compared_each_with_the_next_layer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], read: list[int]
) -> None:
    base = {"coder": {"read": "2.resid_post", "write": None, "d_sae": 64, "widths": [16, 64]}}
    values = merged(SMALL, {**base, "training": {"tokens": 4096}, "variants": [{}, {"read": "0.resid_post"}]})
    run = api.train(Config.build(values), tmp_path / "layers")
    [second, first] = sorted(run.members(), key=lambda member: "0.resid" in member.path.name)
    read.clear()
    monkeypatch.chdir(tmp_path)
    code, out, err = typed(
        capsys, "analyze", second.path, first.path, "--only", "densities", "comparison", "--tokens", 4096
    )
    assert code == 0, err
    once = [16] * (4096 // 64 // 16 + 1)
    assert read[: len(once)] == once, "one pass for both, and a look at the final norm"
    assert set(read[len(once) :]) < {*range(1, 17)}, "what follows are the passages in which links are tried"
    assert "step 4 of 5 · comparison" in err
    assert "report: report/report.html" in out
    text = Path("report", "report.md").read_text()
    assert text.count(f"{first.path.name} → {second.path.name}") >= 2, "in the order of the layers"
    assert f"#/1/{api.store(first).ranking('count')[0]})" in text, "as the page of both runs calls them"
    for link in re.findall(r"\(<?((?:comparison/)?figures/[^>)]*\.svg)>?\)", text):
        assert Path("report", link).is_file()
    found = api.analyze([second, first], ["densities", "comparison"], 4096)
    assert found.compared is not None
    assert [pair.stem for pair in found.compared.pairs] == [f"{first.path.name}--{second.path.name}"]
    assert found[first.path.name, "densities"].coder.run == first
    with pytest.raises(MatryoshkaError, match="several coders: give one of"):
        _ = found["densities"]


def test_what_is_not_measurable_is_said_and_the_report_goes_on(trained: Run, tmp_path: Path) -> None:
    import torch

    run = copied(trained, tmp_path / "silent")
    coder = SparseCoder.load(run.coder)
    with torch.no_grad():
        coder.b_enc -= 1e6
    coder.save(run.coder)
    found = api.analyze(run, ["densities"], 1024)
    assert str(found["densities"].result.reason).startswith("no feature of silent fires on 1,0")
    assert "Not measured: no feature of silent" in found.report.read_text()
    assert not found.findings
    with pytest.raises(MatryoshkaError, match="densities of silent: nothing to show: no feature"):
        found["densities"].table()


def test_what_cannot_be_is_one_line_and_nothing_is_written(
    trained: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = copied(trained, tmp_path / "other")
    file = other.coder / "config.json"
    file.write_text(file.read_text().replace('"bundled"', '"gpt2"'))
    refused = {
        "no such evaluation or analysis (did you mean 'densities'?)": [trained.path, "--only", "densites"],
        "is one coder; a comparison takes two or more": [trained.path, "--only", "comparison"],
        "are of different language models": [trained.path, other.path],
        "cannot be made or written into": [trained.path, "--out", "/proc/x"],
        "no run here": [tmp_path / "absent"],
    }
    for line, words in refused.items():
        code, out, err = typed(capsys, "analyze", "--tokens", "1e3", "--out", tmp_path / "out", *words)
        assert (code, out) == (2, ""), line
        assert line in err
        assert len(err.strip().splitlines()) == 1
        assert not (tmp_path / "out").exists()
    with trained.held("analyze"):
        code, _, err = typed(capsys, "analyze", trained.path, "--out", tmp_path / "out")
    assert code == 2
    assert f"`matryoshka analyze` is at work on it already (process {os.getpid()})" in err


def test_ctrl_c_says_how_to_go_on(
    trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "named_once", interrupted)
    run = copied(trained, tmp_path / "run")
    code, _, err = typed(capsys, "analyze", run.path, "--only", "densities", "--tokens", 2000)
    assert code == 130
    assert err.splitlines()[-1] == "interrupted; the same command goes on from here"
    assert not list(run.path.rglob(".lock-*"))


def test_killed_twice_the_same_command_goes_on(trained: Run, tmp_path: Path) -> None:
    run = copied(trained, tmp_path / "run")
    words = ["analyze", str(run.path), "--only", *SOME, "--tokens", str(FEATURE_TOKENS)]
    kept: dict[Path, int] = {}
    for step, files in ((2, [run.features_file]), (5, [run.evaluation, run.analysis])):
        process = subprocess.Popen([sys.executable, "-m", "matryoshka", *words], stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        assert any(line.startswith(f"step {step} of 5") for line in process.stderr), "it has come so far"
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert all(file.stat().st_ino == before for file, before in kept.items()), "it went on"
        found = [file for place in files for file in (place.rglob("[!.]*") if place.is_dir() else [place])]
        kept |= {file: file.stat().st_ino for file in found if file.stem not in ("report", "scores")}
    assert {file.stem for file in kept} >= {"features", "reconstruction", "densities", "names"}
    whole = api.analyze(run, SOME, FEATURE_TOKENS)
    assert whole.report.is_file()
    assert all(file.stat().st_ino == before for file, before in kept.items())
    assert not [file for file in run.path.rglob(".*") if file.name.startswith((".new-", ".old-", ".lock-"))]


def test_the_strongest_findings_stand_first_two_a_source() -> None:
    findings = {
        "one": [Finding(f"one {strength}", strength) for strength in (9.0, 3.0, 7.0)],
        "two": [Finding("two", 8.0), Finding("chance", 0.9)],
        "three": [Finding("three", 2.0)],
    }
    assert [finding.sentence for _, finding in outstanding(findings)] == ["one 9.0", "two", "one 7.0", "three"]


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: apt-get install chromium")
@pytest.mark.xdist_group("browser")
def test_the_report_is_accessible_and_fits_a_telephone_and_paper(analysed: Analysed, tmp_path: Path) -> None:
    from axe_playwright_python.sync_playwright import Axe
    from playwright.sync_api import sync_playwright

    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    address = analysed.report.resolve().as_uri()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        for scheme in ("light", "dark"):
            context = browser.new_context(bypass_csp=True, color_scheme=scheme)  # pyright: ignore[reportArgumentType]
            page = context.new_page()
            faults: list[str] = []
            page.on("console", lambda message, faults=faults: faults.append(message.text))
            page.on("request", lambda asked, faults=faults: asked.url == address or faults.append(asked.url))
            page.goto(address)
            assert page.get_by_role("img").count() == 4
            page.screenshot(path=SCREENSHOTS / f"report-{scheme}.png", full_page=True)
            assert [found["id"] for found in Axe().run(page).response["violations"]] == []
            assert not faults
            context.close()
        page = browser.new_page(viewport={"width": 390, "height": 844})
        page.goto(address)
        page.screenshot(path=SCREENSHOTS / "report-narrow.png", full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        page.pdf(path=tmp_path / "report.pdf", format="A4")
        browser.close()
    assert (tmp_path / "report.pdf").read_bytes()[:4] == b"%PDF"
