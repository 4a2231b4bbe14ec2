"""The floor of a step: the encoder's product alone, x [batch, d] @ W [d, d_sae], into a buffer that is reused.

`architecture` is the dtype: operands and result have it, and are converted before the timing.
"""

import torch
from worker import Job, PacedBatches, run


def train(job: Job, batches: PacedBatches) -> None:
    dtype = getattr(torch, job.architecture)
    W = (torch.randn(job.d, job.d_sae, device=job.device) / job.d**0.5).to(dtype)
    product = torch.empty(job.batch, job.d_sae, device=job.device, dtype=dtype)
    x = batches.batches[0].to(dtype)
    for _ in batches:
        torch.mm(x, W, out=product)


if __name__ == "__main__":
    run(train)
