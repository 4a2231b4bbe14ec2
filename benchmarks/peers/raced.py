"""A contender's whole run on stored rows, and what it has learned.

1. batches in the order of the job's seed, the same for every contender; the clocks start at the first one
2. the training function returns canonical weights: that they are the contender's own function is proved on a batch
3. they are written to a file; the answer says the seconds, the peak of memory and which rows were handed out
"""

import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from canonical import Canonical
from job import Batches, Job
from memory import read_peak, reset_peak
from rows import StoredRows, fingerprint, training_order
from torch import Tensor

CLOSE = 1e-4
"""Of a row's reconstruction from b_dec: how far rounding may take two ways to compute it apart."""
UNDECIDED = 0.005
"""Share of the rows that may be further apart: rounding decides which of two equal values is the last one selected."""


class RacedBatches(Batches):
    """Each of the job's batches once."""

    def __init__(self, job: Job, folder: Path) -> None:
        self.job, self.rows, self.given = job, StoredRows(folder, "train"), 0
        self.order = training_order(len(self.rows), job.steps, job.batch, job.seed)
        self.wall = self.processor = 0.0
        gc.collect()
        self.before = reset_peak(job.device)

    def peek(self, rows: int) -> Tensor:
        return self.rows.take(self.order.flatten()[:rows]).to(self.job.device)

    def __next__(self) -> Tensor:
        if self.given == len(self.order):
            raise StopIteration
        if self.given == 0:
            self.wall, self.processor = time.perf_counter(), time.process_time()
        self.given += 1
        return self.rows.take(self.order[self.given - 1]).to(self.job.device)

    def spent(self) -> dict[str, float]:
        """Since the first batch was asked for."""
        if self.given != len(self.order):
            raise SystemExit(f"the training loop took {self.given} batches of {len(self.order)}")
        wall, processor = time.perf_counter() - self.wall, time.process_time() - self.processor
        return {
            "seconds": wall,
            "processor_seconds": processor,
            "peak_growth_bytes": read_peak(self.job.device) - self.before,
        }


def race(
    train: Callable[[Job, Batches], Canonical],
    job: Job,
    answer: Callable[[dict[str, Any]], None],
    rows: str,
    weights: str,
) -> None:
    """Train to the end, write the weights and answer."""
    batches = RacedBatches(job, Path(rows))
    canonical = train(job, batches)
    spent = batches.spent()
    if canonical.finite:
        prove(canonical, job, batches)
    canonical.save(Path(weights))
    answer({**spent, "order": fingerprint(batches.order)})


@torch.no_grad()
def prove(canonical: Canonical, job: Job, batches: Batches) -> None:
    """Stop unless the canonical weights reconstruct a batch as the contender itself does, to rounding."""
    assert batches.reconstruct is not None, "a contender in a race says how it reconstructs"
    torch.set_float32_matmul_precision("highest")  # which a trainer may have lowered
    x = batches.peek(job.batch)
    own = batches.reconstruct(x)
    folded = canonical.decode(canonical.select(job.architecture, canonical.pre(x), job.k))
    apart = (own - folded).norm(dim=1) / (own - canonical.b_dec).norm(dim=1).clamp(min=1e-6)
    if (share := (apart > CLOSE).double().mean().item()) > UNDECIDED:
        largest = apart.max().item()
        raise SystemExit(f"the folded weights are another function: {share:.1%} of the rows differ, by {largest:.2e}")
