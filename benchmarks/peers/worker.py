"""What every contender's process shares: batches that are handed out when the benchmark asks for steps, and timed.

A contender is a training loop that takes its data from an iterator. The iterator here paces it:

    1. it loads the activations, notes the memory in use and resets the process' peak
    2. at the loop's first request it answers {"ready": true} on the original stdout and waits
    3. {"steps": n} on stdin lets n batches pass; at the request after them it answers {"seconds": seconds a step}
    4. {"quit": true} is answered with the peak memory and the FVU after the first steps and after the last ones, and
       ends the loop by an exception

So each peer runs in its own public training function, unchanged, and a step is all that its loop does from one batch to
the next. Imported inside every peer's environment: needs torch, numpy and safetensors only.
"""

import contextlib
import gc
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

STEPS = 10_000
"""Length of the run that each trainer is told, for its schedules: longer than any warm-up."""
EVALUATED_ROWS = 256
"""Few, so that judging the reconstruction never sets the peak of memory."""


class Job(NamedTuple):
    """What a contender is to train, given as JSON on its command line."""

    architecture: str
    """matryoshka, batchtopk, topk; for the floor a dtype"""
    best: bool
    """the peer's fastest options instead of its default ones"""
    d: int
    d_sae: int
    k: int
    batch: int
    widths: list[int]
    device: str
    threads: int
    activations: str
    """a safetensors file with `activations [rows, d]`"""


class Finished(BaseException):
    """Asked to quit; no Exception, so that no peer's error handling holds it up."""


class PacedBatches(Iterator[Tensor]):
    """The batches of `job` over and over, handed out as the module's docstring says.

    A contender that learns sets `reconstruct`, x [rows, d] → x_hat [rows, d], before or while it trains.
    """

    reconstruct: Callable[[Tensor], Tensor] | None = None

    def __init__(self, job: Job, answers: IO[str]) -> None:
        self.job, self.answers = job, answers
        rows = load_file(job.activations)["activations"].to(job.device, copy=True)
        self.batches = rows[: len(rows) // job.batch * job.batch].split(job.batch)
        self.given = self.left = self.asked = 0
        self.started = 0.0
        self.fvus: list[float] = []
        gc.collect()
        self.before = reset_peak(job.device)

    def __next__(self) -> Tensor:
        if self.left == 0:
            self._report()
            self._wait()
        self.left -= 1
        self.given += 1
        return self.batches[(self.given - 1) % len(self.batches)]

    def _report(self) -> None:
        if not self.asked:
            return self._answer({"ready": True})
        synchronise(self.job.device)
        self._answer({"seconds": (time.perf_counter() - self.started) / self.asked})
        if not self.fvus:
            self.fvus += self._fvu()

    def _wait(self) -> None:
        asked = json.loads(sys.stdin.readline() or '{"quit": true}')
        if "quit" in asked:
            peak = read_peak(self.job.device)
            growth = peak - self.before
            self.fvus += self._fvu()
            self._answer({"peak_growth_bytes": growth, "peak_bytes": peak, "steps": self.given, "fvu": self.fvus})
            raise Finished
        self.left = self.asked = asked["steps"]
        synchronise(self.job.device)
        self.started = time.perf_counter()

    def _answer(self, answer: dict[str, object]) -> None:
        print(json.dumps(answer), file=self.answers, flush=True)

    @torch.no_grad()
    def _fvu(self) -> list[float]:
        if self.reconstruct is None:
            return []
        x = self.batches[0][:EVALUATED_ROWS]
        error = (x - self.reconstruct(x)).double().square().sum()
        return [(error / (x - x.mean(0)).double().square().sum()).item()]


def run(train: Callable[[Job, PacedBatches], None]) -> None:
    """Train as the command line says until asked to quit. What the peer prints goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    job = Job(**json.loads(sys.argv[1]))
    torch.set_num_threads(job.threads)
    torch.manual_seed(0)
    try:
        train(job, PacedBatches(job, answers))
    except Finished:
        return
    raise SystemExit("the training loop ended before it was asked to")


def synchronise(device: str) -> None:
    """Wait until all that was queued on the device is done."""
    if device == "cuda":
        torch.cuda.synchronize()


def reset_peak(device: str) -> int:
    """Make the memory now in use the peak, where the system can; returns it in bytes."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    # no such file, or forbidden: the peak then includes that of the imports, which is below training's
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return read_peak(device)


def read_peak(device: str) -> int:
    """The largest memory in use since `reset_peak`, in bytes: allocated on a GPU, resident on a CPU."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
