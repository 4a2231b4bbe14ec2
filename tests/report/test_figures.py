"""Figures of a real little run: they show what it has saved, the same bytes each time, and refuse what is missing."""

import json
import os
import shutil
import subprocess
import sys
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from matryoshka import api
from matryoshka.errors import MatryoshkaError
from matryoshka.report import drawing, figures
from matryoshka.run import Run
from matryoshka.scores.result import Result
from matryoshka.scores.saved import load, save
from matryoshka.training.recipe import Config

matplotlib = pytest.importorskip("matplotlib", reason="matplotlib is not installed")
if TYPE_CHECKING:
    from matplotlib.axes import Axes

TINY = {
    "text": {"context": 64},
    "activations": {"chunk": 4096},
    "coder": {"read": "1.mlp_in", "write": "1.mlp_out", "d_sae": 512, "k": 4},
    "training": {
        "tokens": 6144, "batch": 512, "lr": 1e-2, "dead_after_tokens": 600, "evaluate_every": 5,
    },
    "evaluation": {"tokens": 1024},
    "log": {"every": 2},
}  # fmt: skip
WIDTHS = [32, 64, 128, 256, 512]
STEMS = ["training", "fvu-per-prefix", "density"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return api.train(Config.build(TINY), tmp_path_factory.mktemp("figures") / "run")


@pytest.fixture
def run(trained: Run, tmp_path: Path) -> Run:
    """A copy to write into and to damage."""
    return Run(Path(shutil.copytree(trained.path, tmp_path / "run", symlinks=True)))


@pytest.fixture(scope="module")
def density() -> np.ndarray:
    """Firing shares of 512 features out of 10,000 tokens, 40 of them silent: 3 in the first ring, 37 in the last."""
    share = np.random.default_rng(0).integers(1, 2000, 512) / 10_000
    share[[0, 7, 31]] = share[475:] = 0
    return share


def lines(axes: "Axes") -> dict[str, tuple[list[float], list[float]]]:
    """What is drawn, by label; matplotlib gives those without a label one with an underscore."""
    found = {str(line.get_label()): tuple(np.asarray(x).tolist() for x in line.get_data()) for line in axes.lines}
    return {label: data for label, data in found.items() if not label.startswith("_")}  # type: ignore[misc]


def texts(file: Path) -> list[str]:
    return ["".join(each.itertext()) for each in ElementTree.parse(file).iter("{http://www.w3.org/2000/svg}text")]


def records(run: Run) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Those of training, and the held-out ones."""
    found = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    return [x for x in found if "held_out" not in x], [x for x in found if "held_out" in x]


def test_every_figure_is_drawn_as_png_and_svg(run: Run, density: np.ndarray) -> None:
    files = figures.draw(run, density)
    assert [file.name for file in files] == [f"{stem}.{kind}" for stem in STEMS for kind in ("png", "svg")]
    assert {file.parent for file in files} == {run.path / "figures"}
    assert sorted(path.name for path in (run.path / "figures").iterdir()) == sorted(file.name for file in files)
    for file in files[::2]:
        image = matplotlib.image.imread(BytesIO(file.read_bytes()))
        assert image.shape[1] == int(drawing.COLUMN * figures.DPI)
        colours = len(np.unique(image.reshape(-1, image.shape[-1]), axis=0))
        assert colours > 50, "not blank"
        assert (image[[0, -1]] == 1).all(), "nothing is cut off at the top or the bottom"
        assert (image[:, [0, -1]] == 1).all(), "nor at the sides"


def test_text_in_svgs_stays_text(run: Run, density: np.ndarray) -> None:
    training, prefixes, rings = (texts(file) for file in figures.draw(run, density)[1::2])
    names = {f"first {width}" for width in WIDTHS}
    assert {"FVU", "L0 (latents)", "dead latents", "training tokens (thousands)", "held out", *names} <= set(training)
    assert {"held-out FVU", "CE recovered", "width of the prefix (latents)", "against mean ablation"} <= set(prefixes)
    assert {str(width) for width in WIDTHS} <= set(prefixes)
    assert {"40 of 512 features silent", "log₁₀ density (share of tokens it fires on)", "ring 4"} <= set(rings)
    silent = [text for text in rings if text.endswith(" silent") and "of" not in text]
    assert silent == ["3 silent", "none silent", "none silent", "none silent", "37 silent"]


def test_without_densities_their_figure_is_left_out(run: Run) -> None:
    assert {file.stem for file in figures.draw(run, None)} == {"training", "fvu-per-prefix"}


def test_a_second_call_gives_the_same_bytes_whatever_the_users_settings(run: Run, density: np.ndarray) -> None:
    first = [file.read_bytes() for file in figures.draw(run, density)]
    mine = {"font.size": 20, "svg.fonttype": "path", "savefig.bbox": "tight", "axes.grid": False}
    with matplotlib.rc_context(mine):
        again = [file.read_bytes() for file in figures.draw(run, density)]
        assert {key: matplotlib.rcParams[key] for key in mine} == mine, "and these are left as they were"
    assert first == again
    assert not any(b"<dc:date>" in content for content in first)


def test_in_another_process_too_without_display_pyplot_or_torch(run: Run, density: np.ndarray, tmp_path: Path) -> None:
    before = [file.read_bytes() for file in figures.draw(run, density)]
    np.save(tmp_path / "density.npy", density)
    code = (
        "import sys, numpy; from matryoshka.report.figures import draw; from matryoshka.run import Run;"
        "draw(Run.open(sys.argv[1]), numpy.load(sys.argv[2]));"
        "assert not {'torch', 'matplotlib.pyplot'} & sys.modules.keys()"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    environment.pop("DISPLAY", None)
    subprocess.run([sys.executable, "-c", code, run.path, tmp_path / "density.npy"], check=True, env=environment)
    assert before == [file.read_bytes() for file in figures.draw(run, density)]


def test_curves_are_what_metrics_jsonl_says(run: Run) -> None:
    training, held_out = records(run)
    fvu, l0, dead = map(lines, figures.training_figure(figures.read_metrics(run), WIDTHS).axes)
    tokens = [record["tokens"] / 1000 for record in training]
    held_out_tokens = [record["step"] * 512 / 1000 for record in held_out]
    assert len(training) == 6
    assert held_out_tokens == [2.56, 5.12, 6.144]
    for m, width in enumerate(WIDTHS):
        assert fvu[f"training, first {width}"] == (tokens, [record["fvu"][m] for record in training])
        assert fvu[f"held out, first {width}"] == (held_out_tokens, [record["fvu"][m] for record in held_out])
    assert l0["training"] == (tokens, [record["l0"] for record in training])
    assert l0["held out"] == (held_out_tokens, [record["l0"] for record in held_out])
    assert dead["dead"] == (tokens, [record["dead"] for record in training])


def test_prefixes_are_where_the_evaluation_says(run: Run) -> None:
    results = api.results(run)
    above, below = figures.prefix_figure(results).axes
    assert lines(above) == {"FVU": (WIDTHS, results.values("FVU"))}
    assert lines(below) == {
        "zero": (WIDTHS, results.values("CE recovered (zero)")),
        "mean": (WIDTHS, results.values("CE recovered")),
    }
    assert below.get_xscale() == "log"


def test_each_rings_histogram_holds_its_firing_features(density: np.ndarray) -> None:
    panels = figures.density_figure(density, WIDTHS).axes
    assert len(panels) == 5
    for axes, ring in zip(panels, np.split(density, WIDTHS[:-1]), strict=True):
        values, edges, _ = axes.patches[0].get_data()  # type: ignore[attr-defined]
        assert values.sum() == pytest.approx((ring > 0).mean())
        for low, high, value in zip(edges[:-1], edges[1:], values, strict=True):
            assert value == pytest.approx(((ring > 10**low) & (ring <= 10**high)).mean())
        median = lines(axes)["median"][0][0]
        assert 10**median == pytest.approx(np.median(ring[ring > 0]), rel=0.01)


@pytest.mark.parametrize(("firing", "words"), [(0, "all"), (1, "511"), (512, "none")])
def test_silent_features_are_told_in_words(firing: int, words: str) -> None:
    density = np.where(np.arange(512) < firing, 0.01, 0.0)
    for widths in ([512], WIDTHS):
        shown = [text.get_text() for text in figures.density_figure(density, widths).axes[0].texts]
        assert shown[2] == f"{words} of 512 features silent"


def test_a_plain_coder_and_a_young_run_are_drawn_too(run: Run) -> None:
    """One prefix, one record, nothing held out."""
    record = {**records(run)[0][0], "fvu": [0.5]}
    run.metrics.write_text(json.dumps(record) + "\n")
    results, identity = load(run.evaluation, "reconstruction")
    whole = tuple(score for score in results.scores if score.width == 512)
    save(Result(whole, {**results.details, "widths": [512]}), identity, run.evaluation, "reconstruction")
    files = figures.draw(run, np.full(512, 0.01))
    assert "first 512" in texts(files[1])
    assert "held out" not in texts(files[1])
    assert "512" in texts(files[3])


def test_a_widely_ranging_fvu_is_drawn_on_a_log_axis(run: Run) -> None:
    measured = figures.read_metrics(run)
    assert figures.training_figure(measured, WIDTHS).axes[0].get_yscale() == "linear"
    wide = measured._replace(fvu=measured.fvu * np.geomspace(1, 1e-3, len(measured.fvu))[:, None])
    assert figures.training_figure(wide, WIDTHS).axes[0].get_yscale() == "log"


def test_half_a_line_at_the_end_is_tolerated_and_only_there(run: Run) -> None:
    whole = figures.draw(run, None)[0].read_bytes()
    text = run.metrics.read_text()
    run.metrics.write_text(text + '{"step": 14, "tok')
    assert figures.draw(run, None)[0].read_bytes() == whole
    lines = text.splitlines(keepends=True)
    run.metrics.write_text("".join([*lines[:2], '{"step": 14, "tok\n', *lines[2:]]))
    with pytest.raises(MatryoshkaError, match=r"metrics\.jsonl: line 3 is damaged"):
        figures.draw(run, None)
    run.metrics.write_text(text + '{"epoch": 3}\n')
    with pytest.raises(MatryoshkaError, match=r"metrics\.jsonl: line 10 is no record of training .*'step'"):
        figures.draw(run, None)
    run.metrics.write_text(text + json.dumps({**json.loads(lines[0]), "fvu": [0.5]}) + "\n")
    with pytest.raises(MatryoshkaError, match=r"expected one number of prefixes in all lines, found \[1, 5\]"):
        figures.draw(run, None)


@pytest.mark.parametrize("content", [None, "", '{"step": 2, "tok'])
def test_a_run_without_metrics_is_refused(run: Run, content: str | None) -> None:
    run.metrics.unlink() if content is None else run.metrics.write_text(content)
    with pytest.raises(
        MatryoshkaError, match=r"no record of training yet; matryoshka train .* matryoshka resume .*run"
    ):
        figures.draw(run, None)
    assert not (run.path / "figures").exists()


def test_a_run_without_an_evaluation_of_this_coder_is_refused(run: Run) -> None:
    results, identity = load(run.evaluation, "reconstruction")
    shorter = Result(tuple(score for score in results.scores if score.width < 512), results.details)
    save(shorter, identity, run.evaluation, "reconstruction")
    with pytest.raises(MatryoshkaError, match=r"not the results of this coder .*; run: matryoshka eval .*run --overw"):
        figures.draw(run, None)
    save(Result(tuple(results.of("FVU"))), identity, run.evaluation, "reconstruction")
    with pytest.raises(MatryoshkaError, match="no score 'CE recovered"):
        figures.draw(run, None)
    (run.evaluation / "reconstruction.json").write_text("[1, 2]")
    with pytest.raises(MatryoshkaError, match=r"reconstruction.json: damaged, or written by another version"):
        figures.draw(run, None)
    (run.evaluation / "reconstruction.json").unlink()
    with pytest.raises(MatryoshkaError, match=r"no such results; measure first: matryoshka eval"):
        figures.draw(run, None)
    assert not (run.path / "figures").exists()


def test_densities_of_another_coder_are_refused_and_nothing_is_written(run: Run, density: np.ndarray) -> None:
    with pytest.raises(MatryoshkaError, match=r"shape \[511\] for 512 features; .*matryoshka features"):
        figures.draw(run, density[1:])
    for wrong in (density * 100, -density, np.where(density > 0, density, np.nan)):
        with pytest.raises(MatryoshkaError, match=r"no shares from 0 to 1; .*matryoshka features"):
            figures.draw(run, wrong)
    assert not (run.path / "figures").exists()


def test_a_run_of_several_coders_is_refused_with_their_names(run: Run, tmp_path: Path) -> None:
    parent = Run(tmp_path / "several")
    for name in ("k=4", "k=8"):
        shutil.copytree(run.path, parent.member(name).path, symlinks=True)
    with pytest.raises(MatryoshkaError, match=r"holds several coders; draw the figures of one of: .*k=4, .*k=8"):
        figures.draw(parent, None)
    assert all(len(figures.draw(member, None)) == 4 for member in parent.members())


def test_a_failure_leaves_the_old_figures_whole(run: Run, density: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    files = figures.draw(run, density)
    before = [file.read_bytes() for file in files]

    def full(path: Path) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("matryoshka.files.sync", full)
    with pytest.raises(OSError, match="No space left"):
        figures.draw(run, density / 2)
    assert [file.read_bytes() for file in files] == before
    assert len(list((run.path / "figures").iterdir())) == len(files)


def test_without_matplotlib_one_line_says_what_to_install(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MatryoshkaError, match=r"^figures need matplotlib: pip install 'matryoshka-sae\[figures\]'$"):
        figures.draw(run, None)


def test_the_palette_gets_darker_step_by_step() -> None:
    rgb = np.array([matplotlib.colors.to_rgb(colour) for colour in drawing.palette(7)])
    luminance = rgb @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(luminance) < -0.02).all()
    assert drawing.palette(1) == drawing.palette(7)[-1:]


@given(st.lists(st.floats(0, 1), max_size=8), st.floats(0.01, 0.14))
def test_labels_move_apart_in_order_and_within_the_panel(values: list[float], gap: float) -> None:
    places = drawing.apart(values, gap)
    assert len(places) == len(values)
    order = np.argsort(values, kind="stable")
    assert (np.diff(places[order]) >= gap - 1e-9).all()
    assert ((places >= -1e-9) & (places <= 1 + 1e-9)).all()
    if len(values) and (np.diff(np.sort(values)) >= gap).all():
        np.testing.assert_allclose(places, values, atol=1e-9)


@given(st.lists(st.floats(1e-9, 1), min_size=1, max_size=50))
def test_no_feature_falls_outside_the_bins(density: list[float]) -> None:
    (axes,) = figures.density_figure(np.array(density), [len(density)]).axes
    assert axes.patches[0].get_data().values.sum() == pytest.approx(1)  # type: ignore[attr-defined]
