"""Recovery of known features: closed forms on coders made by hand, and a real little run."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from matryoshka import api
from matryoshka.coder.architecture import CoderConfig
from matryoshka.coder.coder import SparseCoder
from matryoshka.config import merged
from matryoshka.data.sections import SyntheticConfig
from matryoshka.data.synthetic import HELD_OUT, SITE, SyntheticModel
from matryoshka.errors import MatryoshkaError
from matryoshka.evaluation.recovery import evaluate
from matryoshka.evaluation.subject import KnownBench
from matryoshka.lm.sites import Wiring
from matryoshka.run import Run
from matryoshka.scores.result import Result
from matryoshka.study.hooked import EVERY_ROW, HookedCoder
from matryoshka.training.recipe import Config

SAMPLES = 4000
KNOWN = SyntheticConfig(
    features=32, dimension=32, trees=4, branching=3, depth=1, p_max=0.4, p_min=0.1, factors=4, correlation=0.05,
    magnitude_first=2.0, magnitude_last=1.0, deviation_mean=0.1, deviation_spread=0.0, bias=0.5,
    orthogonal_steps=400, orthogonal_lr=1e-2,
)  # fmt: skip
"""As many features as dimensions: their directions are all but orthogonal, so that a coder can be perfect. 4 parents of
3 children each, and 16 that stand alone."""
PARENTS, INSIDE = 4, 16


@pytest.fixture(scope="module")
def model() -> SyntheticModel:
    made = SyntheticModel(KNOWN, torch.device("cpu"))
    exact = torch.linalg.qr(made.forest.directions.T).Q.T
    made.forest = made.forest._replace(directions=exact * (exact * made.forest.directions).sum(1, keepdim=True).sign())
    return made


def made(encoder: Tensor, decoder: Tensor, bias: Tensor, widths: tuple[int, ...] = ()) -> SparseCoder:
    """relu((x − bias) · encoder − 0.05), decoded by rows: below 0.05 there is only rounding."""
    d_sae, d = decoder.shape
    config = CoderConfig(reads=(d,), writes=(d,), d_sae=d_sae, widths=widths or (d_sae,), activation={"kind": "relu"})
    coder = SparseCoder(config)
    with torch.no_grad():
        coder.W_enc.copy_(encoder.T)
        coder.b_enc.copy_(-(encoder @ bias) - 0.05)
        coder.W_dec.copy_(decoder)
        coder.b_dec.copy_(bias)
    return coder.eval()


def measured(model: SyntheticModel, coder: SparseCoder, dead: tuple[int, ...] | None = None) -> Result:
    hooked = HookedCoder(coder, Wiring.of([SITE], [SITE]), EVERY_ROW, dead=dead)
    [subject] = KnownBench(model, [hooked], SAMPLES).subjects()
    return evaluate(subject)


def values(result: Result) -> dict[str, float]:
    """Of the whole dictionary."""
    return {score.measure.name: score.value for score in result.scores}


def truth(model: SyntheticModel) -> Tensor:
    """Whether each feature is on, on the samples that are measured."""
    parts = []
    for part in model.draw(SAMPLES, HELD_OUT):
        on = torch.zeros(len(part.x), KNOWN.features, dtype=torch.bool)
        on[part.rows, part.features] = True
        parts.append(on)
    return torch.cat(parts)


def test_a_perfect_coder_scores_perfectly(model: SyntheticModel) -> None:
    directions, bias = model.forest.directions, model.forest.bias
    result = measured(model, made(directions, directions, bias), dead=(3,))
    score = values(result)
    assert score["F1"] == score["uniqueness"] == score["features tracked"] == 1
    assert score["MCC"] == pytest.approx(1, abs=1e-5)
    assert score["variance explained"] == pytest.approx(1, abs=0.01), "each active latent is 0.05 too small"
    assert score["parents' recall, child on"] == score["parents' recall, no child on"] == 1
    assert score["absorbed"] == score["silent"] == 0
    assert score["dead"] == 1 / 32
    on = truth(model)
    assert score["L0"] == pytest.approx(on.sum(1).float().mean().item())
    assert result.details["true_l0"] == pytest.approx(score["L0"])
    assert result.details["precision"] == result.details["recall"] == result.details["accuracy"] == 1


def test_the_order_and_the_scale_of_latents_do_not_matter(model: SyntheticModel) -> None:
    order = torch.randperm(32, generator=torch.Generator().manual_seed(0))
    directions, scales = model.forest.directions[order], torch.linspace(0.5, 2, 32)[:, None]
    score = values(measured(model, made(directions / scales, directions * scales, model.forest.bias)))
    assert score["F1"] == pytest.approx(1, abs=1e-3)
    assert score["MCC"] == pytest.approx(1, abs=1e-5)


def test_a_coder_whose_latents_read_other_features_scores_as_chance_does(model: SyntheticModel) -> None:
    directions, bias = model.forest.directions, model.forest.bias
    shuffled = values(measured(model, made(directions.roll(7, 0), directions, bias)))
    assert shuffled["MCC"] == pytest.approx(1, abs=1e-5), "directions are as they were"
    on = truth(model).double()
    both, count = (on * on.roll(7, 1)).sum(0), on.sum(0)
    assert shuffled["F1"] == pytest.approx((2 * both / (count + count.roll(7))).mean().item(), abs=1e-6)
    perfect = measured(model, made(directions, directions, bias))
    null = perfect.of("F1")[0].null
    assert null is not None
    assert null == pytest.approx(shuffled["F1"], abs=0.05)
    assert shuffled["variance explained"] < 0


def test_random_directions_have_the_mcc_that_the_null_says(model: SyntheticModel) -> None:
    rows = torch.randn(32, 32, generator=torch.Generator().manual_seed(5))
    rows /= rows.norm(dim=1, keepdim=True)
    [mcc] = measured(model, made(rows, rows, model.forest.bias)).of("MCC")
    assert mcc.null is not None
    assert mcc.value == pytest.approx(mcc.null, abs=0.05)
    assert mcc.value < 0.5


def test_an_absorbed_parent_is_seen_exactly(model: SyntheticModel) -> None:
    """Each child's latent also writes its parent, and silences the parent's own."""
    directions, bias, means = model.forest.directions, model.forest.bias, model.forest.means
    encoder, decoder = directions.clone(), directions.clone()
    children = torch.arange(PARENTS, INSIDE)
    parents = model.forest.parents[children]
    for child, parent in zip(children.tolist(), parents.tolist(), strict=True):
        encoder[parent] -= 20 * directions[child]
        decoder[child] += 0.3 * directions[parent] * means[parent] / means[child]
    score = values(measured(model, made(encoder, decoder, bias)))
    assert score["parents' recall, child on"] == pytest.approx(0, abs=0.01)
    assert score["parents' recall, no child on"] == 1
    assert score["absorbed"] == pytest.approx(1, abs=0.01)
    on = truth(model)
    with_child = torch.stack([on[:, PARENTS + 3 * p : PARENTS + 3 * p + 3].any(1) & on[:, p] for p in range(PARENTS)])
    recall = 1 - with_child.sum(1) / on[:, :PARENTS].sum(0)
    f1 = torch.cat([2 * recall / (1 + recall), torch.ones(28)]).mean().item()
    assert score["F1"] == pytest.approx(f1, abs=0.01)


def test_two_latents_of_one_feature_are_not_unique_and_a_silent_one_detects_nothing(model: SyntheticModel) -> None:
    directions = model.forest.directions.clone()
    directions[1] = directions[0]
    encoder = directions.clone()
    encoder[2] = 0
    score = values(measured(model, made(encoder, directions, model.forest.bias)))
    assert score["uniqueness"] == 31 / 32
    assert score["F1"] == pytest.approx(31 / 32)
    assert score["silent"] == 1 / 32
    assert score["MCC"] == pytest.approx((31 + 0) / 32, abs=1e-3), (
        "the other of the two is left the direction of nobody"
    )


def test_prefixes_are_scored_apart(model: SyntheticModel) -> None:
    directions, bias = model.forest.directions, model.forest.bias
    result = measured(model, made(directions, directions, bias, widths=(8, 32)))
    assert [score.width for score in result.of("F1")] == [8, 32]
    assert result.values("F1") == [1, 1]
    first, whole = result.values("variance explained")
    assert 0 < first < whole
    on = truth(model).float()
    assert result.values("L0") == pytest.approx([on[:, :8].sum(1).mean().item(), on.sum(1).mean().item()])
    for score in result.scores:
        if len(score.units) > 1:
            low, high = score.interval
            assert low <= score.value + 1e-9
            assert score.value <= high + 1e-9


def test_coders_that_are_measured_together_get_what_they_get_alone(model: SyntheticModel) -> None:
    directions, bias = model.forest.directions, model.forest.bias
    coders = [made(directions, directions, bias), made(directions.roll(3, 0), directions, bias)]
    hooked = [HookedCoder(coder, Wiring.of([SITE], [SITE]), EVERY_ROW) for coder in coders]
    together = [values(evaluate(subject)) for subject in KnownBench(model, hooked, SAMPLES).subjects()]
    assert together == [values(measured(model, coder)) for coder in coders]


# --- a run

TINY = {
    "synthetic": {
        "features": 64, "dimension": 24, "trees": 4, "branching": 3, "depth": 1, "p_max": 0.3, "p_min": 0.02,
        "factors": 4, "orthogonal_steps": 3,
    },
    "coder": {"read": "0.resid_post", "d_sae": 32, "k": 4, "widths": [8, 32]},
    "training": {
        "tokens": 20_480, "batch": 256, "lr": 3e-3, "dead_after_tokens": 4000, "evaluate_every": 30,
        "checkpoint_every": 25,
    },
    "evaluation": {"tokens": 3000},
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return api.train(Config.build(TINY), tmp_path_factory.mktemp("synthetic") / "run")


def test_a_run_is_trained_watched_and_measured(run: Run) -> None:
    records = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    watched = [record for record in records if record.get("held_out")]
    assert [record["step"] for record in watched] == [30, 60, 80]
    assert watched[-1]["fvu"][-1] < watched[0]["fvu"][-1] < 1
    result = api.results(run)
    assert 1 - result.values("variance explained")[-1] == pytest.approx(watched[-1]["fvu"][-1], rel=1e-4)
    assert result.values("MCC")[-1] > result.of("MCC")[-1].null  # type: ignore[operator]
    config = run.config_file.read_text()
    assert "text" not in config
    assert "bundled" not in config
    assert Config.load(run.config_file) == Config.build(TINY)
    assert (run.best / "weights.safetensors").is_file()


def test_it_goes_on_from_a_checkpoint_bit_for_bit(run: Run, tmp_path: Path) -> None:
    copy = Run(Path(shutil.copytree(run.path, tmp_path / "run")))
    shutil.rmtree(copy.checkpoints / "step_80")
    (copy.checkpoints / "latest").write_text("step_75\n")
    shutil.rmtree(copy.coder)
    again = api.resume(copy)
    assert (again.coder / "weights.safetensors").read_bytes() == (run.coder / "weights.safetensors").read_bytes()


def test_the_suite_measures_what_can_be_and_says_why_not_the_rest(run: Run, tmp_path: Path) -> None:
    [entry] = api.evaluate([run], out=tmp_path, tokens=2000).entries
    [results] = entry.seeds
    assert list(results) == ["recovery"]
    assert entry.target.model.startswith("synthetic-64-")
    [asked] = api.evaluate([run], only=["absorption", "recovery"], out=tmp_path, tokens=2000).entries
    assert asked.seeds[0]["absorption"].reason == "it needs a language model, and this coder is of synthetic features"
    assert asked.seeds[0]["recovery"].values("F1") == results["recovery"].values("F1")


def test_what_needs_a_language_model_refuses_it_in_one_line(run: Run) -> None:
    for verb in (api.features, lambda run: api.steer(run, 3), api.figures):
        with pytest.raises(MatryoshkaError, match=r"is of synthetic features, and this needs a language model") as line:
            verb(run)
        assert "\n" not in str(line.value)
    with pytest.raises(MatryoshkaError, match=r"reads no text; leave --text out"):
        api.evaluate([run], text="bundled")


@pytest.mark.parametrize(
    ("section", "line"),
    [
        ({"text": {"context": 64}}, r"^text: a run with a section synthetic has no language model"),
        ({"model": {"name": "gpt2"}}, r"^model: "),
        ({"activations": {"cache": "somewhere"}}, r"^activations: "),
        ({"synthetic": {"p_max": 0.01}}, r"^synthetic: p_min is 0\.02"),
        ({"synthetic": {"tree": 3}}, r"^synthetic\.tree: unknown field \(did you mean 'trees'"),
    ],
)
def test_what_a_synthetic_run_does_not_read_is_refused(section: dict[str, object], line: str) -> None:
    with pytest.raises(MatryoshkaError, match=line):
        Config.build(merged(TINY, section))


def test_the_small_recipe_shows_what_nesting_gains(tmp_path: Path) -> None:
    """The same samples, one seed each; a gap of published size (arXiv:2602.14687) needs the large one."""
    recipe = Path(__file__).parents[2] / "recipes" / "synthsaebench-small.yaml"
    made = api.train(Config.load(recipe), tmp_path / "run")
    plain, nested = (api.results(made.member(label)) for label in ("widths=1.0", "widths=16-64-128"))
    assert nested.values("F1")[-1] > plain.values("F1")[-1] + 0.03
    assert nested.values("MCC")[-1] > plain.values("MCC")[-1] > 0.5
    assert nested.values("variance explained")[-1] < plain.values("variance explained")[-1], "its price"


def test_another_site_is_refused_before_anything_is_made() -> None:
    with pytest.raises(MatryoshkaError, match=r"coder\.read: site 1\.mlp_in: a synthetic model has one site alone"):
        api.preview(Config.build({**TINY, "coder": {**TINY["coder"], "read": "1.mlp_in"}}))
