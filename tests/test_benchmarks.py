"""What the benchmarks measure with: the fast step learns what the dense one learns, the timing harness works, the
race's judge says what our own measures say, and probes of all letters at once are absorption's own."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from matryoshka.coder.coder import SparseCoder
from matryoshka.coder.metrics import Meter
from matryoshka.data.stream import Batch
from matryoshka.evaluation.shared.probes import fit_activations
from matryoshka.evaluation.shared.spelling import first_letters
from matryoshka.lm.model import load
from matryoshka.lm.sites import Site
from matryoshka.run import Run
from matryoshka.training.recipe import Config

BENCHMARKS = str(Path(__file__).parent.parent / "benchmarks")


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scripts import each other as `python benchmarks/…` lets them."""
    monkeypatch.syspath_prepend(BENCHMARKS)


def test_the_fast_step_learns_what_the_dense_reference_learns() -> None:
    """Held-out FVU of every prefix within 1 %, with dead latents at work and the selection in either precision."""
    from quality import compare

    coder = {"read": "2.mlp_in", "write": "2.mlp_out", "d_sae": 512, "k": 16}
    training = {"tokens": 120_000, "batch": 512, "lr": 3e-3, "dead_after_tokens": 5000}
    results = compare(Config.build({"coder": coder, "training": training, "evaluation": {"tokens": 8192}}), seeds=1)
    dense = results["dense"][0]
    assert dense == sorted(dense, reverse=True)
    assert dense[-1] < 0.6
    for name in ("bfloat16", "float32"):
        assert results[name][0] == pytest.approx(dense, rel=0.01), name


def test_contenders_take_turns_and_report(tmp_path: Path) -> None:
    from harness import Effort, Setting, Size, match, memory
    from step import floors, ours

    size = Size(64, 512, 4, 256)
    setting = Setting("cpu", 1, tuned=True, peers=tmp_path, data=tmp_path)
    mine, floor = ours(size)["matryoshka"], floors(size, "cpu")[0]
    timings = match([mine, floor], setting, Effort(rounds=3, seconds=60, foreign=1.0))
    assert [len(each.seconds) for each in timings.values()] == [3, 3]
    assert timings[mine.name].seconds > timings[floor.name].seconds
    before, after = timings[mine.name].end["fvu"]
    assert after < before, "it really trains"
    assert memory(mine, setting)["peak_growth_bytes"] > 4 * 4 * size.d * size.d_sae, "weights, gradients, two moments"


def test_a_race_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    from harness import Size
    from race import Course, cells, finished, hold
    from standings import markdown
    from step import ours
    from write_rows import stored_rows

    index = stored_rows(tmp_path / "rows", "bundled", "1.resid_post", 20_000)
    assert (index["train"], index["held_out"], index["whole_text"]) == (20_000, 32_768, False)
    size = Size(index["d"], 256, 8, 1024)
    course, file = Course(size, tmp_path / "rows", tmp_path, 1), tmp_path / "cells.jsonl"
    planned = list(cells(ours(size).values(), [20_000], 1, [1e-3], "bundled", "1.resid_post"))
    assert [cell.name for cell, _ in planned[:2]] == ["ours-matryoshka-default", "ours-matryoshka-0.001"]
    assert hold(planned[:1], course, file) == []
    first = file.read_text()
    assert hold(planned[:2], course, file) == []
    assert file.read_text().startswith(first)
    assert [cell for cell, _ in finished(file)] == [cell for cell, _ in planned[:2]]
    nowhere = [(cell, contender._replace(program="no_such.py")) for cell, contender in planned[1:3]]
    assert hold(nowhere, course, file) == ["[1/1] ours-batchtopk-default, 20,000 tokens, seed 0"], "the other is there"
    records = [{**cell._asdict(), **result} for cell, result in finished(file)]
    assert all(record["fvu"] == sorted(record["fvu"], reverse=True) for record in records)
    assert all(0.1 < record["fvu"][-1] < 0.9 and record["l0"] == pytest.approx(8, rel=0.01) for record in records)
    about = {"hardware": "a", "threads": 1, "date": "", "torch": ""}
    sizes = {**size._asdict(), "widths": size.widths}
    table = markdown({"machine": about, "size": sizes, "rows": index, "command": "", "cells": records})
    assert "| ours | lr 0.001 of 1 | 1 |" in table


def test_every_contender_of_a_seed_gets_the_same_rows(tmp_path: Path) -> None:
    from peers.rows import StoredRows, training_order

    (tmp_path / "index.json").write_text(json.dumps({"d": 3}))
    (tmp_path / "train.f32").write_bytes(torch.arange(30.0).numpy().tobytes())
    rows = StoredRows(tmp_path, "train")
    order = training_order(len(rows), steps=6, batch=4, seed=1)
    assert sorted(order.flatten()[:10]) == sorted(order.flatten()[10:20]) == list(range(10)), "epochs"
    assert (order == training_order(10, 6, 4, 1)).all()
    assert (order != training_order(10, 6, 4, 2)).any()
    assert set(training_order(1000, 2, 4, 0).flatten()) == set(range(8)), "no more rows than are needed"
    assert rows.take(order[0]).tolist() == [[3 * n, 3 * n + 1, 3 * n + 2] for n in order[0]]


def test_the_judge_says_what_our_own_measures_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """FVU of every prefix and L0, by exact selection and by threshold; and it sees what was made worse."""
    monkeypatch.syspath_prepend(str(Path(BENCHMARKS) / "peers"))
    from activations import synthetic
    from harness import Size, new_job
    from job import Job
    from judge import judge
    from ours import SITE, canonical, new_trainee
    from step import ours

    size, x = Size(32, 256, 6, 256), synthetic(4096, 32)
    trainee = new_trainee(Job(**new_job(ours(size)["matryoshka"], "cpu", 1, steps=40, lr=1e-2)))
    batches = [Batch({SITE: rows}, torch.arange(256)) for rows in x[:2560].split(256)]
    trainee.calibrate(batches[0])
    for step in range(40):
        trainee.step(batches[step % 10], step, measure=False)
    held_out, weights = x[2560:], canonical(trainee)
    said = judge(weights, "matryoshka", size, held_out, [x[:256]])
    coder = trainee.folded()
    assert said["fvu_by_threshold"] == pytest.approx(_measured(coder, held_out).fvu(), rel=1e-5)
    assert said["l0_by_threshold"] == pytest.approx(_measured(coder, held_out).l0())
    exact = _measured(coder.train(), held_out)
    assert (said["fvu"], said["l0"]) == (pytest.approx(exact.fvu(), rel=1e-5), pytest.approx(exact.l0()))
    assert said["silent"] <= exact.silent()
    worse = weights._replace(W_dec=weights.W_dec.roll(1, 0))
    assert all(a > b for a, b in zip(judge(worse, "matryoshka", size, held_out, [])["fvu"], said["fvu"], strict=True))
    assert judge(weights._replace(b_enc=weights.b_enc / 0), "matryoshka", size, held_out, []) == {"finite": False}


def _measured(coder: SparseCoder, x: torch.Tensor) -> Meter:
    return _measured_at(coder, x, x)


@torch.no_grad()
def _measured_at(coder: SparseCoder, x: torch.Tensor, y: torch.Tensor) -> Meter:
    meter = Meter(coder.config)
    for rows, targets in zip(x.split(256), y.split(256), strict=True):
        latents = coder.encode(rows)
        meter.update(targets, coder.decode(latents), latents)
    return meter


def test_probes_of_all_letters_at_once_are_those_of_absorption() -> None:
    """Of planted directions, beside a coordinate a hundred times as large; letters of random words are not told."""
    from letter_probes import HOUSE_C, fit, held_out_f1, tuned_strength

    generator = torch.Generator().manual_seed(0)
    letter = torch.randint(3, (600,), generator=generator)
    labels = torch.stack([letter == 0, (letter == 1) & (torch.arange(600) % 4 == 0)], dim=1)
    planted = torch.randn(2, 16, generator=generator)
    x = torch.randn(600, 16, generator=generator) + 3 * labels.float() @ planted
    x[:, 0] *= 100
    probes = fit(x, labels, (0.1, HOUSE_C))[HOUSE_C]
    for column in range(2):
        expected = fit_activations(x.double().numpy(), labels[:, column].numpy())
        scores = (x @ probes.directions + probes.biases)[:, column]
        torch.testing.assert_close(
            scores.double(), torch.from_numpy(expected.scores(x.double().numpy())), rtol=0.02, atol=0.02
        )

    test, validation = torch.arange(600) < 200, torch.arange(400) < 100
    C = tuned_strength(x[~test], labels[~test], validation)
    [told] = held_out_f1(x, labels, test, C)
    [shuffled] = held_out_f1(x, labels[torch.randperm(600, generator=generator)], test, C)
    assert (told > 0.9).all()
    assert (shuffled < 0.6).all()


def test_words_are_read_where_they_stand(tmp_path: Path) -> None:
    """Each once in the lists, whose lines are those of absorption's own prompts; and again from the file."""
    from spelt_words import LINE, _lists, read_words, vocabulary_words

    lm = load("bundled")
    example = first_letters(lm, 20).examples[0]
    shown = example.text.removeprefix("\n").split("\n")[0]
    word = " " + shown.split()[0]
    assert LINE.format(word=word, answer=word[1].upper()) == "\n" + shown

    words = vocabulary_words(lm.token_bytes, 130)
    lists = list(_lists(lm, words))
    for part in lists:
        assert part.tokens[part.asked].tolist() == [words[number].token for number in part.words]
    assert sorted(number for part in lists for number in part.words) == list(range(130))

    file, site = tmp_path / "alone.safetensors", Site("resid_post", 1)
    rows = read_words(lm, words, "alone", [0, 1], file)
    expected = lm.read(torch.tensor([[lm.bos, word.token] for word in words[:20]]), [site])[site][:, 1]
    torch.testing.assert_close(rows.layers[1][:20], expected)
    again = read_words(lm, words, "alone", [0, 1], file)
    assert torch.equal(again.word, rows.word)
    assert torch.equal(again.layers[1], rows.layers[1])


def test_the_gpu_report_measures_every_part_and_says_what_it_leaves_out(tmp_path: Path) -> None:
    """Tiny, on a CPU, where there are neither graphs nor FP8."""
    from gpu_report import main

    main(["--device", "cpu", "--tiny", "--out", str(tmp_path / "report")])
    [file] = (tmp_path / "report").glob("*-gpu.json")
    results, table = json.loads(file.read_text()), file.with_suffix(".md").read_text()
    assert [row["dtype"] for row in results["floor"]] == ["bfloat16"] * 3
    steps = {(row["case"], row["d_sae"]): row for row in results["steps"]}
    for size in (128, 96, 64):
        for case in ("matryoshka", "topk", "one prefix", "10 % dead"):
            assert (case, size) in steps
        assert steps["matryoshka", size]["dead"] == 0
        assert steps["10 % dead", size]["dead"] == pytest.approx(0.1, abs=0.02), "they stay so"
    assert steps["6 coders", 64]["ms"]["median"] > 2 * steps["matryoshka", 64]["ms"]["median"]
    for kernels in results["kernels"]:
        assert kernels["ms"] >= sum(kernel["ms"] for kernel in kernels["kernels"]) > 0
    for text in results["text"]:
        assert text["chunks"] >= 1
        rates = text["tokens_per_second"]
        assert 0 < rates["end to end"] < 1.5 * min(rates["language model alone"], rates["coder alone"])
    assert all(line.startswith("peers: ") for line in results["left_out"])
    assert all(name in table for name in ("## Floor", "| 6 coders | eager |", "tiny Gemma-2", "## Left out"))


def test_a_gpu_report_goes_on_after_a_failure_and_stops_at_its_budget(tmp_path: Path) -> None:
    from gpu_report import Measurement, Report

    def copies(rate: float) -> dict[str, float]:
        return {"bytes": 2**30, "terabytes_per_second": rate}

    def fails() -> Iterator[dict[str, float]]:
        yield copies(1.0)
        raise RuntimeError("this card cannot")

    report = Report("a command", "cpu", tmp_path, budget=60)
    report.take(Measurement("copy", "one that fails", 1, fails))
    report.take(Measurement("copy", "one that is too long", 100, lambda: [copies(2.0)]))
    report.take(Measurement("copy", "one that works", 1, lambda: [copies(3.0)]))
    assert json.loads(report.file.read_text())["copy"] == [copies(1.0), copies(3.0)]
    failed, late = report.results["left_out"]
    assert failed == "copy: one that fails: RuntimeError: this card cannot"
    assert late.startswith("copy: one that is too long: ")
    assert late.endswith(" s of 60 s are left")


def test_steps_are_timed_as_they_are_taken_and_then_launched_by_python(monkeypatch: pytest.MonkeyPatch) -> None:
    import gpu_steps
    from gpu_clock import Pace
    from harness import Size

    launched = []

    class Counted:
        """In place of graphs."""

        def __init__(self, work: Callable[..., None]) -> None:
            self.work = work

        def __call__(self, *inputs: object) -> None:
            launched.append("graph")
            self.work(*inputs)

        def join(self) -> None:
            launched.append("join")

    class Graphed(gpu_steps.Bench):
        """Where there are graphs."""

        def __init__(self, case: gpu_steps.Case, rows: torch.Tensor) -> None:
            super().__init__(case, rows)
            for trainee in self.trainees:
                trainee.graphs = Counted(trainee._learn)

    monkeypatch.setattr(gpu_steps, "Bench", Graphed)
    size = Size(16, 64, 4, 32)
    case, rows = gpu_steps.Case("two", "matryoshka", size, coders=2), gpu_steps.make_rows([size], "cpu")[16]
    graph, eager = gpu_steps.measure_steps(case, rows, Pace(1, 0.001))
    assert (graph["mode"], eager["mode"]) == ("graph", "eager")
    steps = gpu_steps.WARM_UP + 2 + graph["ms"]["calls"]
    assert launched == ["graph", "graph", "join", "join"] * steps, "of each coder, and none afterwards"


def test_what_peers_are_held_against_is_what_our_coder_computes(trained: Run) -> None:
    """Of a prefix: its own latents alone, in float64, and every smaller prefix beside it."""
    from exports import TOKENS, numbers

    said, coder = numbers(trained, 96), SparseCoder.load(trained.path)
    assert 0.9 * TOKENS < len(said["x"]) < TOKENS, "activations of text, but for first tokens and sinks"
    assert said["latents"].shape == (len(said["x"]), 96)
    latents = coder.encode(torch.from_numpy(said["x"]))
    torch.testing.assert_close(torch.from_numpy(said["latents"]), latents.dense()[:, :96])
    y_hat = coder.decode(latents, widths=(32, 96))
    torch.testing.assert_close(torch.from_numpy(said["out"]), y_hat[1])
    assert said["widths"].tolist() == [32, 96]
    torch.testing.assert_close(torch.from_numpy(said["out_prefixes"]), y_hat)


def test_a_peer_is_believed_only_when_it_has_said_so(tmp_path: Path) -> None:
    from interop import judge

    one, other = tmp_path / "export-1", tmp_path / "export-10"
    good = "  ok   encode: max abs 1.00e-01, max rel 2.00e-07\n  ok   forward: max abs 0.00e+00, max rel 0.00e+00\n"
    bad = "  ok   encode: max abs 0.00e+00, max rel 0.00e+00\n  FAIL forward: max abs 1.00e-01, max rel 3.00e-01\n"
    sections = f"a warning\n{one} (peer 1.0)\n{good}{other} (peer 1.0)\n"
    assert judge([one, other], f"{sections}{good}all good\n", "noise") == {one: (2e-7, None), other: (2e-7, None)}
    disagrees = judge([one, other], f"{sections}{bad}FAILED: forward\n", "noise")
    assert disagrees == {one: (2e-7, None), other: (0.3, "forward: max abs 1.00e-01, max rel 3.00e-01")}
    crashed = judge([one, other], sections, "Traceback\nKeyError: 'k'\n")
    assert crashed == {one: (2e-7, None), other: (None, "KeyError: 'k'")}
    untried = f"{one}\n  note its own classes were not tried\nall good\n"
    assert judge([one], untried, "noise") == {one: (None, "its own classes were not tried")}
    assert judge([one, other], "", "")[one] == (None, "it said nothing of it")
    assert judge([one, other], f"{one}: d_in 4\n{good}all good\n", "noise")[other] == (None, "it said nothing of it")


def test_numbers_of_both_sides_agree_or_not(trained: Run) -> None:
    from at_work import Number, as_table, measure
    from exports import read_text

    _, hooked, rows = read_text(trained)
    [fvu], [l0] = measure(hooked, rows).values()
    meter = _measured_at(hooked[0].coder, rows.x(hooked[0]), rows.y(hooked[0]))
    assert (fvu, l0) == (pytest.approx(meter.fvu()[-1]), pytest.approx(meter.l0()))
    numbers = [Number("peer", "FVU", fvu, fvu * 1.0005), Number("peer", "L0", l0, l0 * 1.01)]
    assert [number.agrees for number in numbers] == [True, False]
    assert as_table(numbers).count("**differs**") == 1
    assert as_table([]) == ""
