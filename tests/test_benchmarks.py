"""What the benchmarks measure with: the fast step learns what the dense one learns, and the timing harness works."""

from pathlib import Path

import pytest

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
