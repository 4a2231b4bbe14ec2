"""Coders of one run in two processes that torchrun starts: the same, byte for byte, as in one."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from matryoshka import api
from matryoshka.distributed import World
from matryoshka.errors import MatryoshkaError
from matryoshka.files import parse_json
from matryoshka.run import Run
from matryoshka.training.plan import check
from matryoshka.training.recipe import Config
from matryoshka.training.spread import cost, spread

RECIPE = """
model: {name: bundled}
coder: {read: 2.resid_post, d_sae: 128, k: 8}
training: {tokens: 24_000, batch: 256, checkpoint_every: 30, evaluate_every: 40}
activations: {lm_batch: 8, chunk: 8192}
evaluation: {tokens: 2_000}
log: {every: 10}
variants:
  - {d_sae: 128}
  - {d_sae: 256, widths: [32, 256]}
  - {d_sae: 128, seed: 1, read: 1.resid_post}
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("several") / "recipe.yaml"
    file.write_text(RECIPE)
    return file


@pytest.fixture(scope="module")
def alone(recipe: Path) -> Run:
    """Trained by one process."""
    return api.train(Config.load(recipe), recipe.parent / "alone")


def torchrun(*command: str) -> subprocess.Popen[str]:
    """`matryoshka COMMAND` in two processes."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "matryoshka"]
    # the same sums as in one process
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(os.cpu_count()))}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([*start, *command], env=environment, **pipes)


def weights(run: Run) -> dict[str, bytes]:
    return {file.parent.parent.name: file.read_bytes() for file in run.path.glob("*/coder/weights.safetensors")}


def lines(run: Run) -> dict[str, list[dict[str, object]]]:
    """What metrics.jsonl says, but for the time it took."""
    records = {
        member.path.name: [parse_json(line, "metrics") for line in member.metrics.read_bytes().splitlines()]
        for member in run.members()
    }
    return {
        label: [{name: value for name, value in record.items() if name != "tokens_per_second"} for record in of_coder]
        for label, of_coder in records.items()
    }


def test_two_processes_give_the_same_coders_numbers_and_scores_and_one_of_them_speaks(recipe: Path, alone: Run) -> None:
    folder = recipe.parent / "together"
    process = torchrun("train", str(recipe), "--out", str(folder))
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said
    together = Run.open(folder)
    assert weights(together) == weights(alone)
    assert len(weights(alone)) == 3
    assert lines(together) == lines(alone)
    assert said.count(f"run: {folder}") == 1
    assert said.count("3 coders in 2 processes") == 1
    for ours, theirs in zip(together.members(), alone.members(), strict=True):
        assert api.results(ours).values("FVU") == api.results(theirs).values("FVU")


def test_a_killed_process_ends_all_and_one_goes_on_to_the_same_coders(recipe: Path, alone: Run) -> None:
    folder = recipe.parent / "killed"
    process = torchrun("train", str(recipe), "--out", str(folder))
    while not (folder / "checkpoints" / "latest").is_file():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    os.kill(_process(process.pid, rank=1), signal.SIGKILL)
    said, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "process 0 of 2 waits for another one that has ended" in said or "Signal 9" in said
    assert weights(Run.open(folder)) == {}
    assert weights(api.resume(folder)) == weights(alone)


def _process(parent: int, rank: int) -> int:
    """The process of this rank, among those that torchrun has started."""
    for folder in Path("/proc").iterdir():
        with suppress(OSError, IndexError):  # it has ended meanwhile, or is no process
            of = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            if int(of) == parent and f"RANK={rank}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                return int(folder.name)
    raise AssertionError(f"no process of rank {rank}")


def test_coders_are_spread_so_that_no_process_has_much_more_to_do() -> None:
    config = Config.build(
        {
            "coder": {"read": "2.resid_post", "d_sae": 64},
            "variants": [{"d_sae": 64 * n, "seed": seed} for seed, n in enumerate((1, 5, 3, 4, 2, 1))],
        }
    )
    plans = check(config)[1]
    parts = spread(plans, 2)
    assert [plan.section.d_sae // 64 for part in parts for plan in part] == [1, 5, 2, 3, 4, 1]
    assert [sum(cost(plan) for plan in part) for part in parts] == [8 * cost(plans[0])] * 2
    assert spread(plans, 1) == [plans]
    with pytest.raises(MatryoshkaError, match="7 processes for 6 coders: a coder is trained by one of them, so start"):
        spread(plans, 7)


def test_alone_a_process_hears_itself() -> None:
    with World() as world:
        assert world.gathered({"a": [1, 2.5]}) == [{"a": [1, 2.5]}]
        assert world.told("x") == "x"
        assert world.any(True)
        assert not world.any(False)
