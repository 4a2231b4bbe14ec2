"""sparsify as a contender: `Trainer.fit` with its own defaults, on a model that is nothing but our batches.

`fit` hooks a module of a language model and trains in the hook. The model here has one module, the identity; its
forward pass puts the next batch through it. So the loop is the peer's own, whole and unchanged; what it adds to a step
besides training is one copy of the activations and a data loader of token ids. TopK only: it has no Matryoshka.
"""

import os
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from worker import STEPS, Job, PacedBatches, run

SEQUENCES = 32
"""Its default batch: sequences, not tokens."""


class Model(nn.Module):
    """The least that `Trainer` takes for a language model."""

    def __init__(self, job: Job, batches: PacedBatches) -> None:
        super().__init__()
        self.job, self.batches = job, batches
        self.site = nn.Identity()
        self.config = SimpleNamespace(num_hidden_layers=1)
        self.dummy_inputs = {"dummy": torch.zeros(1, 1, job.d)}

    @property
    def device(self) -> torch.device:
        return torch.device(self.job.device)

    @property
    def base_model(self) -> "Model":
        return self

    def forward(self, tokens: Tensor | None = None, dummy: Tensor | None = None) -> Tensor:
        return self.site(next(self.batches).view(SEQUENCES, -1, self.job.d) if dummy is None else dummy)


class Tokens(Dataset):
    """As many windows as a long run has; what stands in them is never read."""

    def __init__(self, context: int) -> None:
        self.window = {"input_ids": torch.zeros(context, dtype=torch.int64)}

    def __len__(self) -> int:
        return STEPS * SEQUENCES

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.window


def train(job: Job, batches: PacedBatches) -> None:
    if job.device == "cpu":
        os.environ["SPARSIFY_DISABLE_TRITON"] = "1"  # read at import; its Triton kernels are for GPUs
    from sparsify import SaeConfig, TrainConfig, Trainer

    sae = SaeConfig(num_latents=job.d_sae, k=job.k)
    config = TrainConfig(sae, batch_size=SEQUENCES, hookpoints=["site"], log_to_wandb=False)
    trainer = Trainer(config, Tokens(job.batch // SEQUENCES), Model(job, batches))  # type: ignore[arg-type]
    (coder,) = trainer.saes.values()

    def reconstruct(x: Tensor) -> Tensor:
        return coder(x).sae_out

    batches.reconstruct = reconstruct
    trainer.fit()


if __name__ == "__main__":
    run(train)
