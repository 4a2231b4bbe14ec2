"""Batches that are handed out when the benchmark asks for steps, and timed.

    1. it loads the activations, notes the memory in use and resets the process' peak
    2. at the loop's first request it answers {"ready": true} and waits
    3. {"steps": n} on stdin lets n batches pass; at the request after them it answers {"seconds": seconds a step}
    4. {"quit": true} is answered with the peak memory and the FVU after the first steps and after the last ones, and
       ends the loop by an exception

So each peer runs in its own public training function, unchanged, and a step is all that its loop does from one batch to
the next.
"""

import gc
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from job import Batches, Job
from memory import read_peak, reset_peak, synchronise
from safetensors.torch import load_file
from torch import Tensor

EVALUATED_ROWS = 256
"""Few, so that judging the reconstruction never sets the peak of memory."""


class Finished(BaseException):
    """Asked to quit; no Exception, so that no peer's error handling holds it up."""


class PacedBatches(Batches):
    """The batches in a safetensors file with `activations [rows, d]` over and over, handed out as the module's
    docstring says."""

    def __init__(self, job: Job, file: str, answer: Callable[[dict[str, Any]], None]) -> None:
        self.job, self.answer = job, answer
        rows = load_file(file)["activations"].to(job.device, copy=True)
        self.rows = rows[: len(rows) // job.batch * job.batch]
        self.batches = self.rows.split(job.batch)
        self.given = self.left = self.asked = 0
        self.started = 0.0
        self.fvus: list[float] = []
        gc.collect()
        self.before = reset_peak(job.device)

    def peek(self, rows: int) -> Tensor:
        return self.rows[:rows]

    def __next__(self) -> Tensor:
        if self.left == 0:
            self._report()
            self._wait()
        self.left -= 1
        self.given += 1
        return self.batches[(self.given - 1) % len(self.batches)]

    def _report(self) -> None:
        if not self.asked:
            return self.answer({"ready": True})
        synchronise(self.job.device)
        self.answer({"seconds": (time.perf_counter() - self.started) / self.asked})
        if not self.fvus:
            self.fvus += self._fvu()

    def _wait(self) -> None:
        asked = json.loads(sys.stdin.readline() or '{"quit": true}')
        if "quit" in asked:
            peak = read_peak(self.job.device)
            growth = peak - self.before
            self.fvus += self._fvu()
            self.answer({"peak_growth_bytes": growth, "peak_bytes": peak, "steps": self.given, "fvu": self.fvus})
            raise Finished
        self.left = self.asked = asked["steps"]
        synchronise(self.job.device)
        self.started = time.perf_counter()

    @torch.no_grad()
    def _fvu(self) -> list[float]:
        if self.reconstruct is None:
            return []
        x = self.rows[:EVALUATED_ROWS]
        error = (x - self.reconstruct(x)).double().square().sum()
        return [(error / (x - x.mean(0)).double().square().sum()).item()]


def pace(
    train: Callable[[Job, Batches], object], job: Job, answer: Callable[[dict[str, Any]], None], activations: str
) -> None:
    """Train until asked to quit."""
    try:
        train(job, PacedBatches(job, activations, answer))
    except Finished:
        return
    raise SystemExit("the training loop ended before it was asked to")
