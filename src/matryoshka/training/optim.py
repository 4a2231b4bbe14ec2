"""Adam and its learning rate."""

import math
from collections.abc import Iterable
from typing import Literal, NamedTuple, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim.adam import adam

from matryoshka.training import automatic
from matryoshka.training.recipe import TrainingSection

DOT_LIMIT = 2**30
"""Numbers in one dot product: BLAS counts them in 32 bits."""


class Adam:
    """Adam (Kingma & Ba 2015), torch's fused version, with the norm of all gradients clipped on the way.

    `state` holds each parameter's `step`, `exp_avg` and `exp_avg_sq`, from the start.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], section: TrainingSection) -> None:
        self.parameters, self.betas, self.largest_norm = list(parameters), section.betas, section.clip
        self.state = {
            p: {
                "step": torch.zeros((), device=p.device),
                "exp_avg": torch.zeros_like(p),
                "exp_avg_sq": torch.zeros_like(p),
            }
            for p in self.parameters
        }

    @torch.no_grad()
    def step(self, lr: float | Tensor) -> Float[Tensor, ""]:
        """Learn from the gradients and drop them; returns their norm before clipping."""
        taught = [p for p in self.parameters if p.grad is not None]
        states = [self.state[p] for p in taught]
        gradients = [_rows_first(p.grad) for p in taught if p.grad is not None]
        norm = total_norm(gradients)
        divisor = (norm / self.largest_norm).clamp(min=1)
        divides = divisor.device.type != "cpu" or divisor > 1  # a GPU is not waited for
        adam(
            [_rows_first(p) for p in taught],
            gradients,
            [_rows_first(state["exp_avg"]) for state in states],
            [_rows_first(state["exp_avg_sq"]) for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            # divided while they are read: no pass of its own over the gradients
            grad_scale=divisor if divides else None,
            amsgrad=False,
            beta1=self.betas[0],
            beta2=self.betas[1],
            lr=lr,
            weight_decay=0,
            eps=1e-8,
            maximize=False,
        )
        for p in taught:
            p.grad = None
        return norm


def total_norm(gradients: Iterable[Tensor], dot_limit: int = DOT_LIMIT) -> Float[Tensor, ""]:
    """√Σ g² of them all; by dot products of at most `dot_limit` numbers, which on a CPU read memory twice as fast as
    norms do."""
    parts = [part for gradient in gradients for part in gradient.flatten().split(dot_limit)]
    return torch.stack([part.dot(part) for part in parts]).sum().sqrt()


def _rows_first(x: Tensor) -> Tensor:
    """The same numbers as they lie in memory: on a CPU fused Adam takes twice as long over transposed ones."""
    return x if x.is_contiguous() else x.T


class Schedule(NamedTuple):
    """The learning rate of a run: linear warm-up, constant, then linear or cosine decay towards 0."""

    peak: float
    steps: int
    warm_up: int
    """Steps until the peak is reached."""
    decay_start: int
    """The step where the decay begins."""
    decay: Literal["none", "linear", "cosine"]

    @classmethod
    def of(cls, section: TrainingSection, steps: int, d: int) -> Self:
        """As `section` says for a coder that reads `d` activations."""
        warm_up = _steps(section.warm_up, steps)
        start = max(_steps(section.decay_start, steps), warm_up)
        return cls(peak_rate(section, steps, d), steps, warm_up, start, section.decay)

    def rate(self, step: int) -> float:
        """That of `step`, from 0."""
        if step < self.warm_up:
            return self.peak * (step + 1) / self.warm_up
        if self.decay == "none" or step < self.decay_start:
            return self.peak
        done = (step - self.decay_start) / max(1, self.steps - self.decay_start)
        return self.peak * (1 - done if self.decay == "linear" else 0.5 * (1 + math.cos(math.pi * done)))


def peak_rate(section: TrainingSection, steps: int, d: int) -> float:
    """The learning rate that is set, or the automatic one of a coder that reads `d` activations."""
    return automatic.learning_rate(d, section.batch, steps) if section.lr == "auto" else section.lr


def _steps(value: int | float, steps: int) -> int:
    return value if isinstance(value, int) else round(value * steps)
