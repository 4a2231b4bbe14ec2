"""Adam, its learning rate, and the constraint of unit decoder rows."""

import math
from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from matryoshka.training.config import TrainingSection


def adam(parameters: Iterable[nn.Parameter], section: TrainingSection) -> torch.optim.Adam:
    """Fused Adam; its rate is set each step (`learning_rate`)."""
    return torch.optim.Adam(parameters, lr=section.lr, betas=section.betas, fused=True)


def learning_rate(step: int, steps: int, section: TrainingSection) -> float:
    """The rate of `step` (from 0) of `steps`: linear warm-up, constant, then linear or cosine decay towards 0."""
    warm_up = _steps(section.warm_up, steps)
    start = max(_steps(section.decay_start, steps), warm_up)
    if step < warm_up:
        return section.lr * (step + 1) / warm_up
    if section.decay == "none" or step < start:
        return section.lr
    done = (step - start) / max(1, steps - start)
    return section.lr * (1 - done if section.decay == "linear" else 0.5 * (1 + math.cos(math.pi * done)))


def _steps(value: int | float, steps: int) -> int:
    return value if isinstance(value, int) else round(value * steps)


@torch.no_grad()
def project_rows(W_dec: nn.Parameter) -> None:
    """Remove from W_dec's gradient what would change its rows' norms: the part parallel to each (unit) row."""
    if W_dec.grad is not None:
        parallel = (W_dec.grad * W_dec).sum(dim=1, keepdim=True)
        W_dec.grad.addcmul_(parallel, W_dec, value=-1)


@torch.no_grad()
def normalise_rows(W_dec: Float[Tensor, "d_sae d_out"]) -> None:
    """Bring the rows back to norm 1; to be called AFTER the optimiser's step, which leaves the sphere."""
    W_dec.div_(W_dec.norm(dim=1, keepdim=True).clamp(min=torch.finfo(W_dec.dtype).tiny))
