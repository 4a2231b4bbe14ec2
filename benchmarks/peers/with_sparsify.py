"""sparsify as a contender: `Trainer.fit` with its own defaults, on a model that is nothing but our batches.

`fit` hooks a module of a language model and trains in the hook. The model here has one module, the identity; its
forward pass puts the next batch through it. So the loop is the peer's own, whole and unchanged; what it adds to a step
besides training is one copy of the activations and a data loader of token ids. TopK only: it has no Matryoshka.

What it has learned is what it saves: its default optimiser trains at other weights than those, which are a mean over
the steps. A learning rate that is set needs no decay beside it, for the same reason.
"""

import contextlib
import os
import sys
import tempfile
from types import SimpleNamespace

import torch
from canonical import Canonical
from job import Batches, Job
from torch import Tensor, nn
from torch.utils.data import Dataset
from worker import read_job, run

if read_job().device == "cpu":
    os.environ["SPARSIFY_DISABLE_TRITON"] = "1"  # read at import; its Triton kernels are for GPUs
with contextlib.redirect_stdout(sys.stderr):  # it says something, and stdout is for answers
    from sparsify import SaeConfig, SparseCoder, TrainConfig, Trainer

SEQUENCES = 32
"""Its default batch: sequences, not tokens."""


class Model(nn.Module):
    """The least that `Trainer` takes for a language model."""

    def __init__(self, job: Job, batches: Batches) -> None:
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
    """As many windows as the run has; what stands in them is never read."""

    def __init__(self, job: Job) -> None:
        self.windows = job.steps * SEQUENCES
        self.window = {"input_ids": torch.zeros(job.batch // SEQUENCES, dtype=torch.int64)}

    def __len__(self) -> int:
        return self.windows

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.window


def train(job: Job, batches: Batches) -> Canonical:
    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(
            SaeConfig(num_latents=job.d_sae, k=job.k),
            batch_size=SEQUENCES,
            lr=job.lr,
            init_seeds=[job.seed],
            hookpoints=["site"],
            save_every=2 * job.steps,  # at the end alone
            save_dir=folder,
            log_to_wandb=False,
        )
        trainer = Trainer(config, Tokens(job), Model(job, batches))  # type: ignore[arg-type]
        [learning] = trainer.saes.values()
        batches.reconstruct = lambda x: learning(x).sae_out
        trainer.fit()
        saved = SparseCoder.load_from_disk(f"{folder}/unnamed/site", device=job.device)
    batches.reconstruct = lambda x: saved(x).sae_out
    with torch.no_grad():
        W_enc = saved.encoder.weight.T
        return Canonical(W_enc, saved.encoder.bias - saved.b_dec @ W_enc, saved.W_dec, saved.b_dec, None)


if __name__ == "__main__":
    run(train)
