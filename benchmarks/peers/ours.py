"""Our trainer as a contender: `Trainee.step`, as `matryoshka train` calls it between two log records.

Like `matryoshka train` it tunes the allocator itself, so that with --plain-malloc every project runs as it comes.
"""

import torch
from torch import Tensor
from worker import STEPS, Job, PacedBatches, run

from matryoshka.coder.coder import CoderConfig, SparseCoder
from matryoshka.data.activations import Batch
from matryoshka.lm.sites import Site
from matryoshka.training.allocator import keep_freed_memory
from matryoshka.training.config import Config
from matryoshka.training.plan import Plan
from matryoshka.training.trainee import Trainee

SITE = Site("resid_post", 0)


def new_trainee(job: Job) -> Trainee:
    """A coder in training with our defaults; a site is only a name here."""
    widths = job.widths if job.architecture == "matryoshka" else [job.d_sae]
    activation = "topk" if job.architecture == "topk" else "batchtopk"
    coder = {"read": str(SITE), "d_sae": job.d_sae, "k": job.k, "widths": widths, "activation": activation}
    config = Config.build({"coder": coder, "training": {"batch": job.batch, "tokens": STEPS * job.batch}})
    sizes = CoderConfig(d_in=job.d, d_out=job.d, d_sae=job.d_sae, widths=tuple(widths), activation=activation, k=job.k)
    plan = Plan("coder", config.coder, SITE, SITE, sizes)
    return Trainee(plan, SparseCoder(sizes).initialise(0, tied=True).to(job.device), config.training, config.steps)


def train(job: Job, batches: PacedBatches) -> None:
    keep_freed_memory()
    trainee = new_trainee(job)
    coder = trainee.coder
    coder.calibrate(batches.batches[0], batches.batches[0])
    positions = torch.arange(job.batch, device=job.device)

    def reconstruct(x: Tensor) -> Tensor:
        return coder.decode(coder.encode(x))[-1]

    batches.reconstruct = reconstruct
    for step, x in enumerate(batches):
        trainee.step(Batch({SITE: x}, positions), step, measure=False)


if __name__ == "__main__":
    run(train)
