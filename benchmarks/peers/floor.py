"""The floor of a step: the encoder's product alone, x [batch, d] @ W [d, d_sae], into a buffer that is reused.

`architecture` is the dtype: operands and result have it, and are converted before the timing.
"""

from typing import NoReturn

import torch
from job import Batches, Job
from worker import run


def train(job: Job, batches: Batches) -> NoReturn:
    dtype = getattr(torch, job.architecture)
    W = (torch.randn(job.d, job.d_sae, device=job.device) / job.d**0.5).to(dtype)
    product = torch.empty(job.batch, job.d_sae, device=job.device, dtype=dtype)
    x = batches.peek(job.batch).to(dtype)
    for _ in batches:
        torch.mm(x, W, out=product)
    raise SystemExit("a floor learns nothing: it is only timed")


if __name__ == "__main__":
    run(train)
