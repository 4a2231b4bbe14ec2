"""Coders side by side, from the command line: what is printed, written, taken again and refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from commands import typed

from matryoshka import api
from matryoshka.analysis import joint
from matryoshka.coder.coder import SparseCoder
from matryoshka.config import merged
from matryoshka.errors import MatryoshkaError
from matryoshka.lm.info import BUNDLED as LANGUAGE_MODEL
from matryoshka.lm.model import LanguageModel
from matryoshka.report.compared import Compared
from matryoshka.run import Run
from matryoshka.study.hooked import hook_all
from matryoshka.study.recording import Recording
from matryoshka.training.recipe import Config

from ..conftest import SMALL

pytest.importorskip("matplotlib", reason="matplotlib is not installed")
TOKENS = 6400


@pytest.fixture(scope="module")
def layers(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two seeds at one site, a wider coder there, and one of a later layer."""
    base = {"coder": {"read": "1.resid_post", "write": None, "d_sae": 128, "widths": [32, 128]}}
    variants = [{"seed": 0}, {"seed": 1}, {"d_sae": 256, "widths": [64, 256]}, {"read": "2.resid_post"}]
    config = merged(SMALL, {**base, "training": {"tokens": 16_384}, "variants": variants})
    return api.train(Config.build(config), tmp_path_factory.mktemp("layers") / "layers")


@pytest.fixture(scope="module")
def compared(layers: Run) -> Compared:
    return api.compare(layers, TOKENS)


def test_the_command_prints_every_pair_and_writes_the_report(
    layers: Run, compared: Compared, capsys: pytest.CaptureFixture[str]
) -> None:
    compared.report.unlink()
    code, out, _ = typed(capsys, "compare", layers.path, "--tokens", TOKENS)
    assert code == 0
    assert out.count(" → ") == 6, "every two of four coders"
    for part in (
        "kept",
        "newborn",
        "one-to-one cosine",
        "null",
        "(ceiling: seeds)",
        str(layers.comparison / "report.md"),
    ):
        assert part in out, part
    report = (layers.comparison / "report.md").read_text()
    assert report.count("(ceiling: seeds)") == 2, "in the table and as a heading"
    for link in report.split("(<")[1:]:
        assert (layers.comparison / link.split(">)")[0]).is_file()
    scores = pd.read_parquet(layers.comparison / "scores.parquet")
    assert len(scores) == len(json.loads((layers.comparison / "scores.json").read_text()))
    assert set(scores["evaluation"]) == {"correspondence"}


def test_scores_are_those_of_the_dense_latents(compared: Compared, layers: Run, lm: LanguageModel) -> None:
    """Of every token that counts for both, read and encoded again."""
    import torch

    from matryoshka.study.opening import studied
    from matryoshka.study.reader import spread_windows

    members = layers.members()
    windows = studied(members[0].coder).open_tokens(lm.vocabulary, "held_out", TOKENS).windows("held_out")
    tokens = torch.from_numpy(windows[spread_windows(windows, TOKENS)])
    coders = hook_all([member.coder for member in members], lm, windows)
    activations = lm.read(tokens, [site for hooked in coders for site in hooked.wiring.sites])
    kept = torch.stack([hooked.keep(tokens, activations) for hooked in coders])
    numbers = {member.path.name: i for i, member in enumerate(members)}
    assert len(compared.pairs) == 6
    for pair in compared.pairs:
        a, b = (numbers[name] for name in pair.name.split(" → "))
        both = kept[a] & kept[b]
        dense = [
            coders[i].coder.encode(activations[coders[i].wiring.reads[0]][both]).dense().detach().numpy()
            for i in (a, b)
        ]
        tables = pair.table("A"), pair.table("B")
        assert pair.details["tokens"] == int(both.sum())
        columns = [latents[:, table.index].astype(np.float64) for latents, table in zip(dense, tables, strict=True)]
        pearson = np.corrcoef(columns[0].T, columns[1].T)[: columns[0].shape[1], columns[0].shape[1] :]
        for table, axis in zip(tables, (1, 0), strict=True):
            np.testing.assert_allclose(table["Pearson"], pearson.max(axis), atol=1e-9)
        living = [np.flatnonzero((latents > 0).sum(0) >= 10) for latents in dense]
        assert [table.index.tolist() for table in tables] == [numbers.tolist() for numbers in living]


def test_seeds_are_the_ceiling_and_nothing_matches_by_chance(compared: Compared) -> None:
    [ceiling] = [pair for pair in compared.pairs if pair.ceiling]
    assert ceiling.name == "seed=0 → seed=1"
    for pair in compared.pairs:
        for side in "AB":
            [kept] = pair.result.of(f"kept of {side}")
            assert kept.null is not None
            assert kept.null <= 0.02 < kept.value
            [pearson], [cosine] = pair.result.of(f"Pearson of {side}"), pair.result.of(f"cosine of {side}")
            assert pearson.interval.low < pearson.value < pearson.interval.high
            assert (pearson.null or 1) < pearson.value
            assert (cosine.null or 1) < cosine.value
        classes = [pair.result.values(name)[0] for name in ("kept of A", "processed of A", "vanished")]
        assert sum(classes) == pytest.approx(1)
    assert len(compared.table()) == 6


def test_a_wider_coder_has_more_latents_of_its_own(compared: Compared) -> None:
    [pair] = [pair for pair in compared.pairs if pair.name.startswith("d_sae=256") and "seed=0" in pair.name]
    a, b = pair.table("A"), pair.table("B")
    assert a.index.max() >= 128 > b.index.max()
    assert set(a["by Pearson"]) <= set(b.index)
    paired = a["one to one"].dropna()
    assert paired.is_unique
    assert len(paired) == min(len(a), len(b))
    assert b.loc[paired.astype(int), "one to one"].tolist() == paired.index.tolist()
    with pytest.raises(MatryoshkaError, match="no side 'C' in a pair"):
        pair.table("C")


def test_figures_show_what_was_found(compared: Compared, layers: Run) -> None:
    from matplotlib.figure import Figure

    from matryoshka.report.match_figures import densities_figure

    pair = compared.pairs[0]
    bars = compared.plot().axes[0].patches[:6]
    shares = [pair.result.values(name)[0] for name in ("kept of A", "processed of A", "vanished")]
    assert [bar.get_width() for bar in bars[:3]] == pytest.approx(shares)  # type: ignore[attr-defined]
    above, below = pair.plot().axes
    assert above.patches[0].get_data().values.sum() == pytest.approx(1)  # type: ignore[attr-defined]
    for axes, side in zip(densities_figure(pair.details).axes, "AB", strict=True):
        tops = [patch.get_data() for patch in axes.patches]  # type: ignore[attr-defined]
        counted = sum(float((top.values - top.baseline).sum()) for top in tops)
        assert counted == len(pair.table(side)) == pair.details["sides"][side]["living"]
    assert isinstance(below.figure, Figure)
    stems = {file.stem for file in (layers.comparison / "figures").iterdir()}
    assert len(stems) == 1 + 2 * 6


def test_what_was_found_is_taken_and_what_was_read_is_not_read_again(
    layers: Run, compared: Compared, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = Run(Path(shutil.copytree(layers.path, tmp_path / "layers")))
    passes: list[int] = []
    forward = LanguageModel._forward
    monkeypatch.setattr(LanguageModel, "_forward", lambda self, tokens: passes.append(1) or forward(self, tokens))
    again = api.compare(run, TOKENS)
    assert not passes
    assert [pair.result.scores[0].value for pair in again.pairs] == [
        pair.result.scores[0].value for pair in compared.pairs
    ]
    monkeypatch.setattr(joint.correspondence, "VERSION", 0)
    api.compare(run, TOKENS)
    assert len(passes) <= 1, "the recording is there; the model is only checked"


def test_many_coders_read_the_text_as_often_as_two(
    layers: Run, trained: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Coders of several runs too, those that write what shares no basis among them."""
    passes: list[int] = []
    forward = LanguageModel._forward
    monkeypatch.setattr(LanguageModel, "_forward", lambda self, tokens: passes.append(1) or forward(self, tokens))
    monkeypatch.chdir(tmp_path)
    one = layers.members()[0]
    found = api.compare([one, trained], 1024 * 2)
    of_two = len(passes)
    passes.clear()
    more = api.compare([*layers.members(), trained], 1024 * 2, out="more")
    assert len(passes) == of_two
    assert [len(compared.pairs) for compared in (found, more)] == [1, 10]
    assert found.report == Path("comparison", "report.md")
    assert len(Recording(tmp_path / "more" / "recording").head.coders) == 5
    assert found.chains is None
    assert more.chains is None


@pytest.fixture(scope="module")
def chained(layers: Run, compared: Compared, tmp_path_factory: pytest.TempPathFactory) -> Compared:
    """Each of the four with the next, on what is recorded: in the order of their layers, not of their names."""
    run = Run(Path(shutil.copytree(layers.path, tmp_path_factory.mktemp("chained") / "layers")))
    return api.compare(run, TOKENS, consecutive=True)


def test_chains_are_those_of_the_pairs(chained: Compared) -> None:
    assert chained.chains is not None
    details, table = chained.chains.details, chained.chains.table()
    assert len(table) == len(details["chains"]["born"])
    starts = {coder["name"]: number for number, coder in enumerate(details["coders"])}
    partners = [pair.table("A")["partner"] for pair in chained.pairs]
    for born, latents in zip(table["born"], table["latents"], strict=True):
        for pair, a, b in zip(partners[starts[born] :], latents, latents[1:], strict=False):
            assert pair[a] == b
        following = starts[born] + len(latents) - 1
        assert following == 3 or np.isnan(partners[following].get(latents[-1], np.nan))
    assert table["links"].max() == 3
    for spans, pair in zip(details["spans"], [None, *chained.pairs], strict=True):
        newborn = details["coders"][0]["living"] if pair is None else (pair.table("B")["class"] == "newborn").sum()
        assert sum(spans) == newborn
    assert [pair["ceiling"] for pair in details["pairs"]] == [False, True, False]


def test_a_predecessor_takes_more_than_another_latent_and_chance_links_none(chained: Compared) -> None:
    assert chained.chains is not None
    result = chained.chains.result
    for name in ("fall", "died", *(f"fall: {pair.name}" for pair in chained.pairs)):
        [score] = result.of(name)
        assert score.null is not None
        assert max(score.null, 0) < score.interval.low
    [length] = result.of("chain length from d_sae=256,widths=64-256")
    assert length.null is not None
    assert length.null < 0.05 < length.interval.low
    [composed] = result.of("composed one to one")
    assert (composed.null or 1) < composed.interval.low
    for pair in result.details["pairs"]:
        assert 0 < len(pair["tried"]["fall"]) <= 64
        assert pair["tried"]["pearson"] == sorted(pair["tried"]["pearson"])


def test_the_report_and_the_command_show_the_chains(
    chained: Compared, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = chained.report.parent
    report = chained.report.read_text()
    assert "## Chains" in report
    for link in report.split("](figures/chains-")[1:]:
        assert (folder / "figures" / f"chains-{link.split(')')[0]}").is_file()
    assert report.count("](figures/chains-") == 3
    monkeypatch.setattr(LanguageModel, "_forward", None)  # nothing is read again
    code, out, _ = typed(capsys, "compare", folder.parent, "--tokens", TOKENS, "--consecutive")
    assert code == 0
    for part in ("chains", "fall", "died", "chain length", "composed one to one"):
        assert part in out, part


def test_figures_of_chains_show_what_was_found(chained: Compared) -> None:
    from matryoshka.report import drawing
    from matryoshka.report.chains_report import figures, findings

    assert chained.chains is not None
    result = chained.chains.result
    [axes] = chained.chains.plot().axes
    shares = axes.patches[0].get_data().values  # type: ignore[attr-defined]
    assert shares @ np.arange(4) == pytest.approx(result.values("chain length from d_sae=256,widths=64-256")[0])
    with drawing.style():
        drawn = figures(result)
    tried = sum(len(pair["tried"]["fall"]) for pair in result.details["pairs"])
    for axes in drawn["chains-falls"].axes:
        assert [int(patch.get_data().values.sum()) for patch in axes.patches] == [tried, tried]  # type: ignore[attr-defined]
    assert len(drawn["chains-profiles"].axes) == 4
    assert [len(axes.patches) for axes in drawn["chains-profiles"].axes] == [4] * 4
    assert {finding.strength > 1 for finding in findings(result, lambda coder, latent: f"{latent}")} == {True}


def test_coders_of_one_weights_match_everywhere(trained: Run, tmp_path: Path) -> None:
    copy = shutil.copytree(trained.path, tmp_path / "copy")
    [pair] = api.compare([trained, copy], TOKENS, out=tmp_path / "out").pairs
    assert not pair.ceiling
    for side in "AB":
        table = pair.table(side)
        assert (table["class"] == "kept").all()
        assert table["Pearson"].to_numpy() == pytest.approx(1)
        assert (table["Jaccard"] == 1).all()
        assert table["cosine"].to_numpy() == pytest.approx(1, abs=1e-6)
        assert table["one to one"].tolist() == table.index.tolist()


def test_chains_name_features_and_say_what_cannot_be_tried(featured: Run, trained: Run, tmp_path: Path) -> None:
    """Three times one transcoder, which writes behind what the next one reads; the first has features."""
    copies = [shutil.copytree(trained.path, tmp_path / name) for name in ("second", "third")]
    chained = api.compare([featured, *copies], 1024 * 2, consecutive=True, out=tmp_path / "out")
    assert chained.chains is not None
    table, details = chained.chains.table(), chained.chains.details
    assert {tuple(latents) for latents in table["latents"]} == {(i, i, i) for i in chained.pairs[0].table("A").index}
    assert [pair["tried"] for pair in details["pairs"]] == [None, None]
    assert "logit effect" in details["profiles"][0]
    report = chained.report.read_text()
    assert "nothing was tried causally" in report
    assert "chains-falls" not in report
    first = int(table.sort_values("weakest", ascending=False)["latents"].iloc[0][0])
    brief = " ".join(api.store(featured).brief([first])[first].name.split())
    assert f"| {first} ({brief}) → {first} → {first} |".replace(" ", "") in report.replace("\\|", "|").replace(" ", "")


def test_where_nothing_fires_often_enough_it_is_said(
    trained: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    silent = Run(Path(shutil.copytree(trained.path, tmp_path / "silent")))
    coder = SparseCoder.load(silent.coder)
    with torch.no_grad():
        coder.b_enc -= 1e6
    coder.save(silent.coder)
    code, out, _ = typed(capsys, "compare", trained.path, silent.path, "--tokens", 1024, "--out", tmp_path / "out")
    assert code == 0
    assert "not measured: no latent of silent fires on 10 of the" in out
    assert "Not measured: no latent of silent" in (tmp_path / "out" / "report.md").read_text()


def changed(run: Run, folder: Path, **card: object) -> Run:
    """A copy whose card says something else."""
    copy = Run(Path(shutil.copytree(run.path, folder)))
    file = copy.coder / "config.json"
    content = json.loads(file.read_text())
    content["card"] |= card
    file.write_text(json.dumps(content))
    return copy


def test_coders_of_other_models_are_compared_on_words(
    trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same model by another name reads the same; in windows of half the length nearly the same."""
    card = json.loads((trained.coder / "config.json").read_text())["card"]
    model = shutil.copytree(LANGUAGE_MODEL, tmp_path / "model")
    shorter = card["trained"] | {"text": card["trained"]["text"] | {"context": 32}}
    others = [
        changed(trained, tmp_path / "other", model=card["model"] | {"name": str(model)}),
        changed(trained, tmp_path / "shorter", context=32, trained=shorter),
    ]
    code, out, _ = typed(
        capsys, "compare", trained.path, *(run.path for run in others), "--tokens", TOKENS, "--out", tmp_path / "out"
    )
    assert code == 0
    assert out.count(" → ") == 3
    passes: list[int] = []
    forward = LanguageModel._forward
    monkeypatch.setattr(LanguageModel, "_forward", lambda self, tokens: passes.append(1) or forward(self, tokens))
    renamed, shortened, _ = api.compare([trained, *others], TOKENS, out=tmp_path / "out").pairs
    assert not passes, "all is saved"
    for pair in (renamed, shortened):
        assert pair.details["places"] == "words"
        assert 0.5 * TOKENS < pair.details["tokens"] < 1.5 * TOKENS, "whole documents, more than a token a word"
    assert "different language models" in renamed.details["directions"]
    assert shortened.details["directions"] is None
    for side in "AB":
        table = renamed.table(side)
        assert (table["class"] == "kept").all()
        assert table["Pearson"].to_numpy() == pytest.approx(1, abs=1e-6)
        assert renamed.result.values(f"one-to-one of {side}") == [1]
        assert renamed.result.values(f"many-to-one of {side}") == [0]
        assert shortened.result.values(f"kept of {side} (words)")[0] > 0.8
        assert 0 < (table["letters"] <= 0.1).sum() < len(table) / 2
    [geometry] = renamed.result.of("geometry")
    assert geometry.value == pytest.approx(1)
    assert geometry.null == pytest.approx(0, abs=0.05)
    assert "words of" in (tmp_path / "out" / "report.md").read_text()


def test_what_cannot_be_compared_is_one_line_and_nothing_is_written(
    trained: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = json.loads((trained.coder / "config.json").read_text())["card"]
    other_text = card["trained"] | {"text": card["trained"]["text"] | {"source": "other.txt"}}
    (tmp_path / "other.txt").write_text("words " * 1000)
    refused = {
        "is one coder; a comparison takes two or more: give another run as well": trained,
        "other: the Hugging Face hub cannot be reached": changed(
            trained, tmp_path / "model", model=card["model"] | {"name": "other"}
        ),
        f"know different texts (source: bundled, {tmp_path / 'other.txt'}); give one with --text": changed(
            trained,
            tmp_path / "text",
            trained=other_text | {"text": other_text["text"] | {"source": str(tmp_path / "other.txt")}},
        ),
    }
    for line, other in refused.items():
        code, out, err = typed(capsys, "compare", trained.path, other.path, "--out", tmp_path / "out")
        assert code == 2, line
        assert not out
        assert len(err.strip().splitlines()) == 1
        assert line in err
        assert not (tmp_path / "out").exists()
    assert typed(capsys, "compare", trained.path, tmp_path / "absent")[0] == 2
