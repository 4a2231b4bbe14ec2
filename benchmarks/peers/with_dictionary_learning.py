"""dictionary_learning as a contender: `trainSAE` on our batches, with its trainers' own defaults.

On a GPU with its bfloat16 autocast, which its documentation recommends there; on a CPU it has no autocast.
"""

import sys
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from worker import STEPS, Job, PacedBatches, run


def classes(architecture: str) -> tuple[type, type]:
    """The peer's trainer and its dictionary."""
    # its dependencies bring torchvision, which fails at import where it was built for another torch; none of this
    # uses it
    sys.modules["torchvision"] = None  # type: ignore[assignment]
    from dictionary_learning.trainers import batch_top_k, matryoshka_batch_top_k, top_k

    return {
        "matryoshka": (
            matryoshka_batch_top_k.MatryoshkaBatchTopKTrainer,
            matryoshka_batch_top_k.MatryoshkaBatchTopKSAE,
        ),
        "batchtopk": (batch_top_k.BatchTopKTrainer, batch_top_k.BatchTopKSAE),
        "topk": (top_k.TopKTrainer, top_k.AutoEncoderTopK),
    }[architecture]


def train(job: Job, batches: PacedBatches) -> None:
    trainer, dictionary = classes(job.architecture)
    from dictionary_learning.training import trainSAE

    def build(*sizes: Any) -> nn.Module:
        # the trainer is made inside trainSAE: this is where its dictionary can be seen
        ae = dictionary(*sizes)

        def reconstruct(x: Tensor) -> Tensor:
            return ae.decode(ae.encode(x, use_threshold=False))

        batches.reconstruct = reconstruct
        return ae

    config = {
        "trainer": trainer,
        "dict_class": build,
        "steps": STEPS,
        "activation_dim": job.d,
        "dict_size": job.d_sae,
        "k": job.k,
        "layer": 0,
        "lm_name": "none",
        "device": job.device,
    }
    if job.architecture == "matryoshka":
        config["group_fractions"] = [(b - a) / job.d_sae for a, b in pairwise([0, *job.widths])]
    dtype = torch.bfloat16 if job.device == "cuda" else torch.float32
    trainSAE(batches, [config], STEPS, device=job.device, autocast_dtype=dtype)


if __name__ == "__main__":
    run(train)
