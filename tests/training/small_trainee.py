"""A small transcoder in training, for tests."""

import torch

from matryoshka.coder.architecture import CoderConfig
from matryoshka.coder.coder import SparseCoder
from matryoshka.data.stream import Batch
from matryoshka.lm.sites import Site, Wiring
from matryoshka.training.dead import REFRESH
from matryoshka.training.plan import Plan
from matryoshka.training.recipe import CoderSection, TrainingSection
from matryoshka.training.trainee import Trainee

READ, WRITE = Site.parse("0.mlp_in"), Site.parse("0.mlp_out")
D_IN, D_OUT, D_SAE, K, WIDTHS = 12, 10, 96, 4, (8, 24, 96)


def normal(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def batch(seed, rows=64, device="cpu"):
    """Activations of which the written ones are a function of those read."""
    x = normal(rows, D_IN, seed=seed) + 1
    y = torch.tanh(x @ normal(D_IN, D_OUT, seed=999))
    return Batch({READ: x.to(device), WRITE: y.to(device)}, torch.arange(rows))


def make(activation="batchtopk", device="cpu", refresh=REFRESH, beside=False, **training):
    section = CoderSection(read=str(READ), write=str(WRITE), d_sae=D_SAE, k=K, activation=activation)
    config = CoderConfig(
        reads=(D_IN,), writes=(D_OUT,), d_sae=D_SAE, widths=WIDTHS, activation={"kind": activation, "k": K}
    )
    coder = SparseCoder(config).initialise(0, tied=False).to(device)
    values = {"select": "float32", "lr": 1e-2, "dead_after_tokens": 65, "warm_up": 2, **training}
    one = Plan("coder", section, Wiring.of([READ], [WRITE]), config)
    trainee = Trainee(one, coder, TrainingSection(**values), 30, refresh, beside)
    trainee.calibrate(batch(0, device=device))
    return trainee
