"""Our trainer as a contender: `Trainee.step`, as `matryoshka train` calls it between two log records.

Like `matryoshka train` it tunes the allocator itself, so that with --plain-malloc every project runs as it comes.
"""

import torch
from torch import Tensor
from worker import STEPS, Job, PacedBatches, run

from matryoshka.coder.architecture import CoderConfig
from matryoshka.coder.coder import SparseCoder
from matryoshka.data.stream import Batch
from matryoshka.lm.sites import Site, Wiring
from matryoshka.training.allocator import keep_freed_memory
from matryoshka.training.plan import Plan
from matryoshka.training.recipe import Config
from matryoshka.training.trainee import Trainee

SITE = Site("resid_post", 0)


def new_trainee(job: Job) -> Trainee:
    """A coder in training with our defaults; a site is only a name here."""
    widths = job.widths if job.architecture == "matryoshka" else [job.d_sae]
    activation = "topk" if job.architecture == "topk" else "batchtopk"
    coder = {"read": str(SITE), "d_sae": job.d_sae, "k": job.k, "widths": widths, "activation": activation}
    config = Config.build({"coder": coder, "training": {"batch": job.batch, "tokens": STEPS * job.batch}})
    sizes = CoderConfig(
        reads=(job.d,),
        writes=(job.d,),
        d_sae=job.d_sae,
        widths=tuple(widths),
        activation={"kind": activation, "k": job.k},
    )
    plan = Plan("coder", config.coder, Wiring.of([SITE], [SITE]), sizes)
    return Trainee(plan, SparseCoder(sizes).initialise(0, tied=True).to(job.device), config.training, config.steps)


def train(job: Job, batches: PacedBatches) -> None:
    keep_freed_memory()
    trainee = new_trainee(job)
    coder, scaling = trainee.coder, trainee.scaling
    positions = torch.arange(job.batch, device=job.device)
    trainee.calibrate(Batch({SITE: batches.batches[0]}, positions))

    def reconstruct(x: Tensor) -> Tensor:
        return coder.decode(coder.encode(scaling.x(x)))[-1] / scaling.scale_out

    batches.reconstruct = reconstruct
    for step, x in enumerate(batches):
        trainee.step(Batch({SITE: x}, positions), step, measure=False)


if __name__ == "__main__":
    run(train)
