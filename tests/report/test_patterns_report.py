"""What is shown of activation patterns, of a real little run, from what is saved of it."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from matryoshka.analysis.joint import Joint
from matryoshka.report import drawing, patterns_report
from matryoshka.run import Run
from matryoshka.scores.result import Result
from matryoshka.scores.saved import load

from ..conftest import FEATURE_TOKENS

pytest.importorskip("matplotlib", reason="matplotlib is not installed")


@pytest.fixture(scope="module")
def result(featured: Run, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """Of a real coder of the bundled model, as it was saved."""
    run = Run(Path(shutil.copytree(featured.path, tmp_path_factory.mktemp("patterns") / "run", symlinks=True)))
    found = Joint([run], None, FEATURE_TOKENS, run.recording, "cpu").found("patterns", 0)
    saved = load(run.analysis, "patterns").result
    assert saved.details == found.details, "plain JSON values"
    assert saved.scores
    return saved


def name_of(feature: int) -> str:
    return f"a|name of {feature}"


def test_the_bundled_models_features_know_their_place_and_follow_each_other(result: Result) -> None:
    """A transcoder of 256 latents on 9,000 tokens: more than chance finds, and nothing beyond what there is."""
    details, scores = result.details, {score.measure.name: score for score in result.scores}
    assert len(details["features"]) == len(details["range"]) == len(details["position"]["bits"])
    assert max(details["lags"]) < details["context"] == 64
    for name in ("with a successor", "local"):
        assert scores[name].null is not None
        assert scores[name].value > scores[name].null + 0.05, name
    successors = details["successors"]
    assert all(lift >= lower for lift, lower in zip(successors["lift"], successors["lower"], strict=True))
    assert all(lift > back for lift, back in zip(successors["lift"], successors["backward"], strict=True))


def test_the_section_names_the_strongest_of_each_kind(result: Result) -> None:
    lines = patterns_report.section(result, name_of)
    successions = [line for line in lines if line.count(" a\\|name of ") == 2]
    best = patterns_report.strongest(result.details)
    assert 0 < len(successions) == min(len(best), patterns_report.LISTED)
    columns = result.details["successors"]
    feature, other = columns["feature"][best[0]], columns["other"][best[0]]
    assert successions[0].startswith(f"| {feature} a\\|name of {feature} | {other} a\\|name of {other} |")
    worth = [columns["share"][i] * np.log2(columns["lift"][i]) for i in best]
    assert worth == sorted(worth, reverse=True)
    shares = [line.split(" | ")[2] for line in lines if line.split(" | ")[0] in ("| single", "| local", "| middle")]
    assert sum(float(share.rstrip("%")) for share in shares) == pytest.approx(100, abs=0.2)
    assert "None." in lines, "no window is longer than 64 tokens: nothing reaches further than 32"


def test_findings_are_sentences_with_number_interval_and_chance(result: Result) -> None:
    found = patterns_report.findings(result, name_of)
    assert len(found) == 3, "nothing is said of long ranges"
    for finding in found:
        for part in ("**", "95 % interval", "by chance"):
            assert part in finding.sentence, part
    followed = found[0]
    assert "a|name of" in followed.sentence
    assert followed.strength > 1


def test_figures_show_what_is_saved(result: Result) -> None:
    with drawing.style():
        drawn = patterns_report.figures(result)
        for figure in drawn.values():
            figure.canvas.draw()
    assert {"autocorrelation", "burstiness"} <= drawn.keys()
    [axes] = drawn["autocorrelation"].axes
    lines = {
        str(line.get_label()): line.get_ydata() for line in axes.lines if not str(line.get_label()).startswith("_")
    }
    assert {name: list(r) for name, r in lines.items()} == result.details["autocorrelation"]
    [axes] = drawn["burstiness"].axes
    own, null = (patch.get_data() for patch in axes.patches)
    values = np.array([value for value in result.details["burstiness"] if value is not None])
    np.testing.assert_allclose(own.values, np.histogram(values, own.edges)[0] / len(values))
    assert null.values.sum() == pytest.approx(1)
