"""dictionary_learning as a contender: `trainSAE` on our batches, with its trainers' own defaults.

Its warm-up of 1000 steps has to be shorter than the run, and its threshold is tracked from step 1000 on: where the run
has no more steps, the warm-up takes a tenth of it and the threshold begins in its middle. With a learning rate that is
set, also the decay of its published runs, linear over the last fifth of the steps, and a warm-up of at most a twentieth
of them.

On a GPU with its bfloat16 autocast, which its documentation recommends there; on a CPU it has no autocast.
"""

import sys
from itertools import pairwise
from typing import Any

import torch
from canonical import Canonical
from job import Batches, Job
from torch import Tensor, nn
from worker import run

# its dependencies bring torchvision, which fails at import where it was built for another torch; none of this uses it
sys.modules["torchvision"] = None  # type: ignore[assignment]
from dictionary_learning.trainers import batch_top_k, matryoshka_batch_top_k, top_k  # noqa: E402
from dictionary_learning.training import trainSAE  # noqa: E402

ITS_STEPS = 1000
"""Its own warm-up, and start of its threshold."""
CLASSES = {
    "matryoshka": (matryoshka_batch_top_k.MatryoshkaBatchTopKTrainer, matryoshka_batch_top_k.MatryoshkaBatchTopKSAE),
    "batchtopk": (batch_top_k.BatchTopKTrainer, batch_top_k.BatchTopKSAE),
    "topk": (top_k.TopKTrainer, top_k.AutoEncoderTopK),
}
"""The peer's trainer and its dictionary."""


def schedule(job: Job) -> dict[str, Any]:
    """What its trainer is told of the schedule, as the module's docstring says."""
    threshold = {"threshold_start_step": min(ITS_STEPS, job.steps // 2)}
    if job.lr is not None:
        warm_up, decay = min(ITS_STEPS, job.steps // 20), job.steps * 4 // 5
        return {"lr": job.lr, "warmup_steps": warm_up, "decay_start": decay, **threshold}
    return {"warmup_steps": job.steps // 10, **threshold} if job.steps <= ITS_STEPS else {}


def canonical(ae: Any, architecture: str) -> Canonical:
    """With the bias that it takes off its input folded. It has no threshold where it never came to track one."""
    if architecture == "matryoshka":
        W_enc, b_enc, W_dec = ae.W_enc, ae.b_enc, ae.W_dec
    else:
        W_enc, b_enc, W_dec = ae.encoder.weight.T, ae.encoder.bias, ae.decoder.weight.T
    threshold = ae.threshold if ae.threshold >= 0 else None
    return Canonical(W_enc, b_enc - ae.b_dec @ W_enc, W_dec, ae.b_dec, threshold)


def train(job: Job, batches: Batches) -> Canonical:
    trainer, dictionary = CLASSES[job.architecture]
    built: list[nn.Module] = []

    def build(*sizes: Any) -> nn.Module:
        # the trainer is made inside trainSAE: this is where its dictionary can be seen
        ae = dictionary(*sizes)

        def reconstruct(x: Tensor) -> Tensor:
            return ae.decode(ae.encode(x, use_threshold=False))

        batches.reconstruct = reconstruct
        built.append(ae)
        return ae

    config = {
        "trainer": trainer,
        "dict_class": build,
        "steps": job.steps,
        "activation_dim": job.d,
        "dict_size": job.d_sae,
        "k": job.k,
        "layer": 0,
        "lm_name": "none",
        "seed": job.seed,
        "device": job.device,
        **schedule(job),
    }
    if job.architecture == "matryoshka":
        config["group_fractions"] = [(b - a) / job.d_sae for a, b in pairwise([0, *job.widths])]
    dtype = torch.bfloat16 if job.device == "cuda" else torch.float32
    trainSAE(batches, [config], job.steps, device=job.device, autocast_dtype=dtype)
    with torch.no_grad():
        return canonical(built[0], job.architecture)


if __name__ == "__main__":
    run(train)
