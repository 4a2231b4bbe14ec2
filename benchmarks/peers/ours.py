"""Our trainer as a contender: `Trainee.step`, as `matryoshka train` calls it between two log records.

Like `matryoshka train` it tunes the allocator itself, so that with --plain-malloc every project runs as it comes.
"""

import torch
from canonical import Canonical
from job import Batches, Job
from torch import Tensor
from worker import run

from matryoshka.coder.architecture import CoderConfig
from matryoshka.coder.coder import SparseCoder
from matryoshka.coder.nonlinearity import BatchTopK, JumpReLU
from matryoshka.data.stream import Batch
from matryoshka.lm.sites import Site, Wiring
from matryoshka.training.allocator import keep_freed_memory
from matryoshka.training.plan import Plan
from matryoshka.training.recipe import Config
from matryoshka.training.session import CALIBRATION_ROWS
from matryoshka.training.trainee import Trainee

SITE = Site("resid_post", 0)


def planned(job: Job) -> tuple[Plan, Config]:
    """A coder with our defaults, and the configuration of its training; a site is only a name here."""
    widths = job.widths if job.architecture == "matryoshka" else [job.d_sae]
    activation = "batchtopk" if job.architecture == "matryoshka" else job.architecture
    coder = {"read": str(SITE), "d_sae": job.d_sae, "k": job.k, "widths": widths, "activation": activation}
    training = {"batch": job.batch, "tokens": job.steps * job.batch} | ({} if job.lr is None else {"lr": job.lr})
    config = Config.build({"coder": coder, "training": training})
    sizes = CoderConfig(
        reads=(job.d,),
        writes=(job.d,),
        d_sae=job.d_sae,
        widths=tuple(widths),
        activation=config.coder.nonlinearity,
    )
    return Plan("coder", config.coder, Wiring.of([SITE], [SITE]), sizes), config


def new_trainee(job: Job) -> Trainee:
    """That coder, initialised, in training."""
    plan, config = planned(job)
    start = SparseCoder(plan.coder).initialise(job.seed, tied=True)
    return Trainee(plan, start.to(job.device), config.training, config.steps)


def canonical(trainee: Trainee) -> Canonical:
    """As it is saved: the scaling is folded."""
    coder = trainee.folded()
    match coder.activation:
        case BatchTopK(threshold=threshold):
            pass
        case JumpReLU(theta=theta):
            threshold = theta.detach()
        case _:
            threshold = None
    return Canonical(coder.W_enc.detach(), coder.b_enc.detach(), coder.W_dec.detach(), coder.b_dec.detach(), threshold)


def train(job: Job, batches: Batches) -> Canonical:
    keep_freed_memory()
    trainee = new_trainee(job)
    coder, scaling = trainee.coder, trainee.scaling
    first = batches.peek(max(CALIBRATION_ROWS, job.batch))
    trainee.calibrate(Batch({SITE: first}, torch.arange(len(first), device=job.device)))

    def reconstruct(x: Tensor) -> Tensor:
        return coder.decode(coder.encode(scaling.x(x)))[-1] / scaling.scale_out

    batches.reconstruct = reconstruct
    positions = torch.arange(job.batch, device=job.device)
    for step, x in enumerate(batches):
        trainee.step(Batch({SITE: x}, positions), step, measure=False)
    return canonical(trainee)


if __name__ == "__main__":
    run(train)
