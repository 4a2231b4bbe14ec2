"""Training: several coders from one stream, exact resume, and stopping with nothing lost."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors.torch import load_file

from matryoshka import api
from matryoshka.coder.coder import SparseCoder
from matryoshka.config import merged
from matryoshka.errors import MatryoshkaError
from matryoshka.run import Run
from matryoshka.study.opening import read_card
from matryoshka.training import checkpoint
from matryoshka.training.plan import check
from matryoshka.training.recipe import Config
from matryoshka.training.trainee import Trainee

TINY = {
    "text": {"context": 64},
    "activations": {"chunk": 4096},
    "coder": {"read": "1.mlp_in", "write": "1.mlp_out", "d_sae": 512, "k": 4},
    "training": {
        "tokens": 10_240, "batch": 512, "lr": 1e-2, "dead_after_tokens": 600, "checkpoint_every": 6,
        "evaluate_every": 8,
    },
    "evaluation": {"tokens": 1024},
    "log": {"every": 4},
}  # fmt: skip


def config(**values: Any) -> Config:
    return Config.build(merged(TINY, values))


def l0(run: Run) -> float:
    return api.results(run).values("L0")[-1]


def records(run: Run) -> list[dict[str, Any]]:
    """metrics.jsonl without the clock."""
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "tokens_per_second"} for line in lines]


def same_weights(a: Path, b: Path) -> bool:
    x, y = load_file(a / "weights.safetensors"), load_file(b / "weights.safetensors")
    return x.keys() == y.keys() and all(x[name].equal(y[name]) for name in x)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A tiny run, never interrupted."""
    return api.train(config(), tmp_path_factory.mktemp("whole") / "run")


def test_a_run_learns_and_holds_all_that_it_should(whole: Run) -> None:
    log = [record for record in records(whole) if not record.get("held_out")]
    assert [record["step"] for record in log] == [4, 8, 12, 16, 20]
    assert log[-1]["fvu"][-1] < 0.8 * log[0]["fvu"][-1]
    assert log[-1]["fvu"][0] < log[0]["fvu"][0]
    assert log[-1]["fvu"] == sorted(log[-1]["fvu"], reverse=True)
    names = {path.name for path in whole.path.iterdir()}
    assert names == {
        "config.yaml", "provenance.json", "metrics.jsonl", "checkpoints", "coder", "best", "evaluation",
    }  # fmt: skip
    assert sorted(path.name for path in whole.checkpoints.iterdir()) == ["latest", "step_18", "step_20"]
    results = api.results(whole)
    assert results.details["tokens"] + results.details["tokens_left_out"] == 1024
    assert len(results.values("FVU")) == len(results.values("CE")) == 5
    coder = SparseCoder.load(whole.path)
    torch.testing.assert_close(coder.W_dec.norm(dim=1), torch.ones(512))
    assert coder.card is not None
    (source,) = coder.card.sources
    assert (source.reads, source.writes) == (("1.mlp_in",), ("1.mlp_out",))


def test_dead_latents_are_counted_and_the_counters_are_saved(whole: Run) -> None:
    counters = load_file(whole.checkpoints / "step_20" / "coder.safetensors")["dead.tokens_since_fired"]
    card = read_card(whole.coder)
    assert card.trained is not None
    assert card.trained.dead_after_tokens == 600
    assert card.trained.dead == tuple((counters >= 600).nonzero().flatten().tolist())
    dead = len(card.trained.dead) / 512
    assert 0 < dead < 1
    assert api.results(whole).values("dead")[-1] == dead == records(whole)[-2]["dead"]


def test_the_saved_configuration_repeats_the_run(whole: Run, tmp_path: Path) -> None:
    again = api.train(Config.load(whole.config_file), tmp_path / "again")
    assert same_weights(whole.coder, again.coder)
    assert records(whole) == records(again)


def train_in_a_process(folder: Path, **values: Any) -> subprocess.Popen[str]:
    recipe = folder.with_suffix(".yaml")
    recipe.write_text(config(**values).to_yaml())
    command = [sys.executable, "-m", "matryoshka", "train", str(recipe), "--out", str(folder)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ})


def wait_for_step(run: Run, step: int) -> None:
    for _ in range(3000):
        if run.metrics.exists() and any(f'"step": {step},' in line for line in run.metrics.open()):
            return
        time.sleep(0.02)
    raise AssertionError(f"step {step} was never logged")


SLOW = {"training": {"tokens": 30_720, "checkpoint_every": 7}, "evaluation": {"tokens": 4096}}


@pytest.fixture(scope="module")
def whole_slow(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return api.train(config(**SLOW), tmp_path_factory.mktemp("slow") / "run")


def test_after_kill_9_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(whole_slow: Run, tmp_path: Path) -> None:
    run = Run(tmp_path / "killed")
    process = train_in_a_process(run.path, **SLOW)
    wait_for_step(run, 24)
    process.kill()
    process.communicate()
    assert not run.coder.exists(), "it really was interrupted"
    stopped = json.loads((checkpoint.latest(run.checkpoints) / "state.json").read_text())["step"]
    assert 0 < stopped < 60
    assert stopped % 4, "in the middle of a log interval, and of a chunk"
    api.resume(run.path)
    assert same_weights(whole_slow.coder, run.coder)
    assert same_weights(whole_slow.best, run.best)
    assert records(whole_slow) == records(run)
    file = Path("evaluation", "reconstruction.json")
    assert (whole_slow.path / file).read_bytes() == (run.path / file).read_bytes()


def test_sigterm_saves_and_exits_with_a_message(whole_slow: Run, tmp_path: Path) -> None:
    run = Run(tmp_path / "stopped")
    process = train_in_a_process(run.path, **SLOW)
    wait_for_step(run, 4)
    process.send_signal(signal.SIGTERM)
    _, shown = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "stopped at step" in shown
    assert f"matryoshka resume {run.path}" in shown
    api.resume(run.path)
    assert same_weights(whole_slow.coder, run.coder)


def test_resuming_a_finished_run_changes_nothing(whole: Run) -> None:
    before = load_file(whole.coder / "weights.safetensors")
    log = whole.metrics.read_text()
    api.resume(whole.path)
    after = load_file(whole.coder / "weights.safetensors")
    assert all(before[name].equal(after[name]) for name in before)
    assert whole.metrics.read_text() == log


def test_one_of_several_coders_equals_the_same_coder_alone(whole: Run, tmp_path: Path) -> None:
    variants = ({"k": 8}, {"seed": 0}, {"seed": 1}, {"widths": (512,)})
    run = api.train(config(variants=variants), tmp_path / "several")
    members = {member.path.name: member for member in run.members()}
    assert members.keys() == {"k=8", "seed=0", "seed=1", "widths=512"}
    assert same_weights(members["seed=0"].coder, whole.coder)
    assert not same_weights(members["seed=1"].coder, whole.coder)
    assert not same_weights(members["widths=512"].coder, whole.coder)
    assert records(members["seed=0"]) == records(whole)
    assert l0(members["k=8"]) > 1.5 * l0(members["seed=0"])
    alone = api.train(Config.load(members["k=8"].config_file), tmp_path / "alone")
    assert same_weights(members["k=8"].coder, alone.coder)


def test_the_section_itself_may_be_one_of_several(whole: Run, tmp_path: Path) -> None:
    run = api.train(config(variants=({}, {"k": 8})), tmp_path / "run")
    members = {member.path.name: member for member in run.trained()}
    assert members.keys() == {"unchanged", "k=8"}
    assert same_weights(members["unchanged"].coder, whole.coder)
    assert records(members["unchanged"]) == records(whole)
    for member in members.values():
        results = api.results(member)
        assert len(results.values("FVU")) == len(results.values("CE")) == 5
    assert api.results(members["unchanged"]).values("FVU") == api.results(whole).values("FVU")
    assert l0(members["k=8"]) > 1.5 * l0(members["unchanged"])


def test_several_layers_are_read_in_one_pass(tmp_path: Path) -> None:
    variants = ({"read": "0.mlp_in", "write": "0.mlp_out"}, {"read": "1.resid_post", "write": "2.resid_post"})
    run = api.train(config(variants=variants), tmp_path / "layers")
    cards = [read_card(member.coder) for member in run.members()]
    assert {card.sources[0].reads for card in cards} == {("0.mlp_in",), ("1.resid_post",)}
    assert {card.sources[0].writes for card in cards} == {("0.mlp_out",), ("2.resid_post",)}


def test_training_from_a_cache_equals_live_training(whole: Run, tmp_path: Path) -> None:
    values = {"activations": {"cache": tmp_path / "cache"}}
    written = api.train(config(**values), tmp_path / "first")
    index = (tmp_path / "cache" / "index.json").stat().st_mtime_ns
    read = api.train(config(**values), tmp_path / "second")
    assert (tmp_path / "cache" / "index.json").stat().st_mtime_ns == index, "written once"
    assert same_weights(whole.coder, written.coder)
    assert same_weights(whole.coder, read.coder)


def test_the_inference_threshold_gives_k_on_held_out_text(tmp_path: Path) -> None:
    values = {"coder": {"k": 16}, "training": {"tokens": 40_960, "lr": 2e-3}, "evaluation": {"tokens": 8192}}
    run = api.train(config(**values), tmp_path / "run")
    assert l0(run) == pytest.approx(16, rel=0.1)


@pytest.mark.parametrize("activation", ["topk", "jumprelu"])
def test_every_activation_trains(activation: str, tmp_path: Path) -> None:
    values = {"coder": {"activation": activation, "skip": True}, "training": {"lr": 2e-3}}
    run = api.train(config(**values), tmp_path / "run")
    log = [record for record in records(run) if not record.get("held_out")]
    assert log[-1]["reconstruction"] < log[0]["reconstruction"]


def test_random_widths_report_the_fixed_ones(tmp_path: Path) -> None:
    run = api.train(config(coder={"random_widths": True}), tmp_path / "run")
    assert all(len(record["fvu"]) == 5 for record in records(run))
    assert api.results(run).details["widths"] == [32, 64, 128, 256, 512]


def test_a_run_that_exists_is_refused_unless_overwritten(whole: Run, tmp_path: Path) -> None:
    before = whole.metrics.read_bytes()
    with pytest.raises(MatryoshkaError, match=r"exists already; .*--overwrite; to go on with it: matryoshka resume"):
        api.train(config(), whole.path)
    assert whole.metrics.read_bytes() == before
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("years of work")
    with pytest.raises(MatryoshkaError, match="not a run, so --overwrite leaves it alone"):
        api.train(config(), mine, overwrite=True)
    assert (mine / "thesis.tex").read_text() == "years of work"


def test_a_loss_that_is_not_finite_stops_with_the_facts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Trainee.step

    def poison(self: Trainee, batch: Any, number: int, measure: bool) -> None:
        if number == 9:
            batch.activations[self.plan.wiring.writes[0]][0, 0] = float("inf")
        step(self, batch, number, measure)

    monkeypatch.setattr(Trainee, "step", poison)
    with pytest.raises(
        MatryoshkaError,
        match=r"not finite at step 10 \(epoch 0, chunk \d, .*last good checkpoint is .*step_6",
    ):
        api.train(config(), tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("step_*")) == ["step_6"]
    monkeypatch.undo()
    api.resume(tmp_path / "run")


def test_a_damaged_checkpoint_is_refused_by_name(whole: Run, tmp_path: Path) -> None:
    run = api.train(config(), tmp_path / "run")
    file = run.checkpoints / "step_20" / "coder.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(MatryoshkaError, match=r"step_20: damaged checkpoint .*go on from step_18"):
        api.resume(run.path)
    import shutil

    shutil.rmtree(run.checkpoints / "step_20")
    api.resume(run.path)
    assert same_weights(whole.coder, run.coder)


def test_text_that_changed_since_is_refused(tmp_path: Path) -> None:
    text = tmp_path / "text.jsonl"
    text.write_text("".join(json.dumps({"text": f"{i} " * 200}) + "\n" for i in range(300)))
    run = api.train(config(text={"source": str(text), "held_out": 0.1}), tmp_path / "run")
    with text.open("a") as file:
        file.write('{"text": "more"}\n')
    with pytest.raises(MatryoshkaError, match=r"was trained on tokens .* now gives"):
        api.resume(run.path)


def test_wandb_offline_gets_the_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="W&B is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = api.train(config(log={"wandb": "tests", "tensorboard": True}), tmp_path / "run")
    assert list((run.path / "wandb").glob("offline-run-*/*.wandb"))
    assert list((run.path / "tensorboard").iterdir())


def test_a_failing_wandb_does_not_stop_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    wandb = pytest.importorskip("wandb", reason="W&B is not installed")

    class Broken:
        def log(self, *_: Any, **__: Any) -> None:
            raise RuntimeError("the network went away\nwith a long trace")

        def finish(self) -> None:
            raise RuntimeError("still away")

    monkeypatch.setattr(wandb, "init", lambda **_: Broken())
    run = api.train(config(log={"wandb": "tests"}), tmp_path / "run")
    assert run.coder.exists()
    assert [r.getMessage() for r in caplog.records if "W&B" in r.getMessage()] == [
        "W&B failed (the network went away); the run goes on without it"
    ]


def test_a_wandb_that_cannot_start_falls_back_to_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    wandb = pytest.importorskip("wandb", reason="W&B is not installed")
    start = wandb.init

    def unreachable(**options: Any) -> Any:
        if options.get("mode") != "offline":
            raise TimeoutError("no answer in 60 seconds")
        return start(**options)

    monkeypatch.setattr(wandb, "init", unreachable)
    run = api.train(config(log={"wandb": "tests"}), tmp_path / "run")
    assert list((run.path / "wandb").glob("offline-run-*/*.wandb"))
    assert "W&B cannot start (no answer in 60 seconds); logging to it offline instead" in caplog.text


def test_a_resumed_run_goes_on_with_its_run_of_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb", reason="W&B is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    start, started = wandb.init, []

    def noted(**options: Any) -> Any:
        started.append((options["id"], options["resume"]))
        return start(**options)

    monkeypatch.setattr(wandb, "init", noted)
    run = api.train(config(log={"wandb": "tests"}), tmp_path / "run")
    api.resume(run)
    api.train(config(log={"wandb": "tests"}), run.path, overwrite=True)
    (first, allowed), again, other = started
    assert allowed == "allow"
    assert again[0] == first != other[0]


def test_what_cannot_be_trained_on_leaves_no_run(tmp_path: Path) -> None:
    text = tmp_path / "one.jsonl"
    text.write_text(json.dumps({"text": "a single document " * 2000}) + "\n")
    with pytest.raises(MatryoshkaError, match="held_out split has 0 tokens"):
        api.train(config(text={"source": str(text)}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_book_can_be_trained_on(tmp_path: Path) -> None:
    book = tmp_path / "book.txt"
    sentence = "It was the best of times, it was the worst of times. "
    book.write_text("\n\n".join(sentence * (5 + i % 7) for i in range(400)))
    run = api.train(config(text={"source": str(book), "held_out": 0.2}), tmp_path / "run")
    assert api.results(run).details["tokens"] > 0
    assert Config.load(run.config_file).text.source == str(book), "whole, so that it holds from any folder"


def test_a_run_is_at_work_in_one_process_only(whole: Run, tmp_path: Path) -> None:
    copy = Run(shutil.copytree(whole.path, tmp_path / "run"))
    with copy.held("train"), pytest.raises(MatryoshkaError, match="`matryoshka train` is at work on it already"):
        api.resume(copy)


def test_speed_is_that_of_training_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure = api.held_out_metrics

    def slow(*args: Any) -> Any:
        time.sleep(1)
        return measure(*args)

    monkeypatch.setattr(api, "held_out_metrics", slow)
    run = api.train(config(training={"evaluate_every": 5}, log={"every": 10}), tmp_path / "run")
    lines = map(json.loads, run.metrics.read_text().splitlines())
    speeds = [line["tokens_per_second"] for line in lines if "tokens_per_second" in line]
    assert min(speeds) > 10 * Config.load(run.config_file).training.batch / 2, "two pauses in ten steps do not count"


def changed(data: bytes, name: str, place: Any, value: float) -> bytes:
    tensors = safetensors.torch.load(data)
    tensors[name][place] = value
    return safetensors.torch.save(tensors)


@pytest.mark.parametrize(
    ("file", "damage", "said"),
    [
        ("state.json", lambda text: text.replace(b'"step": ', b'"step": -'), "step"),
        ("state.json", lambda text: text.replace(b'"step": ', b'"step": 9'), "the run has"),
        ("state.json", lambda text: b"[" * 100_000, "nested too deeply"),
        ("coder.safetensors", lambda data: changed(data, "coder.W_dec", (3, 4), math.nan), "W_dec holds NaN"),
        ("coder.safetensors", lambda data: changed(data, "scaling.scale_in", (), 0.0), "scale_in is 0, expected more"),
    ],
    ids=["negative", "beyond the end", "deep", "NaN", "a scale of 0"],
)
def test_a_checkpoint_that_training_cannot_go_on_from_is_refused(
    file: str, damage: Callable[[bytes], bytes], said: str, whole: Run, tmp_path: Path
) -> None:
    copy = Run(shutil.copytree(whole.path, tmp_path / "run"))
    damaged = checkpoint.latest(copy.checkpoints) / file
    damaged.write_bytes(damage(damaged.read_bytes()))
    with pytest.raises(MatryoshkaError, match=f"damaged checkpoint .*{said}"):
        api.resume(copy)


def test_a_damaged_line_of_metrics_is_left_behind(whole: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    copy = Run(shutil.copytree(whole.path, tmp_path / "run"))
    before = copy.metrics.read_bytes().splitlines(keepends=True)
    copy.metrics.write_bytes(b"".join([before[0], b'{"step": \n', b"\xff\xff\n", *before[1:]]))
    api.resume(copy)
    assert copy.metrics.read_bytes().splitlines(keepends=True) == before
    assert caplog.text.count("a damaged line is left behind") == 2


def test_a_cache_that_a_longer_run_would_go_round_in_is_refused(tmp_path: Path) -> None:
    stored = {"activations": {"cache": str(tmp_path / "cache")}}
    api.train(config(**stored, training={"tokens": 2048}), tmp_path / "short")
    with pytest.raises(MatryoshkaError, match=r"holds the activations of [\d,]+ tokens, this run reads [\d,]+"):
        api.train(config(**stored, training={"tokens": 60_000}), tmp_path / "long")
    assert not (tmp_path / "long").exists()


def test_a_coder_that_differs_in_many_fields_has_a_name_that_a_folder_can_have() -> None:
    many = {"widths": list(range(1, 65)), "d_sae": 64}
    names = [plan.label for plan in check(config(variants=[many, many | {"seed": 1}]))[1]]
    assert all(len(name) <= 120 for name in names)
    assert names[0] != names[1]
