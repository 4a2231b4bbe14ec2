"""Adam and its learning rate."""

import math
from collections.abc import Iterable
from typing import Literal, NamedTuple, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from matryoshka.coder.kernels import Taught, operations
from matryoshka.training import automatic
from matryoshka.training.recipe import TrainingSection


class Adam:
    """Adam (Kingma & Ba 2015), with the norm of all gradients clipped on the way. The rows of `unit_rows` stay on the
    unit sphere: what would change their norms is taken out of the gradients, and what rounding and finite steps change
    is divided out. Numbers of `forgetful` weights move only in steps that have a gradient for them.

    `state` holds each parameter's `step`, `exp_avg` and `exp_avg_sq`, from the start.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        section: TrainingSection,
        unit_rows: Iterable[nn.Parameter] = (),
        forgetful: Iterable[nn.Parameter] = (),
    ) -> None:
        self.parameters, self.unit_rows, self.forgetful = list(parameters), set(unit_rows), set(forgetful)
        self.betas, self.largest_norm = section.betas, section.clip
        self.state = {
            p: {
                "step": torch.zeros((), device=p.device),
                "exp_avg": torch.zeros_like(p),
                "exp_avg_sq": torch.zeros_like(p),
            }
            for p in self.parameters
        }

    @torch.no_grad()
    def step(self, lr: float | Float[Tensor, ""]) -> Float[Tensor, ""]:
        """Learn from the gradients and drop them; returns their norm before clipping. On a GPU `lr` may be a tensor
        there, so that a graph of the step follows it."""
        taught = [self._taught(p, p.grad) for p in self.parameters if p.grad is not None]
        norm = operations(taught[0].parameter).adam_(taught, lr, self.betas, self.largest_norm)
        for p in self.parameters:
            p.grad = None
        return norm

    def _taught(self, p: nn.Parameter, gradient: Tensor) -> Taught:
        state = self.state[p]
        mean, square = _rows_first(state["exp_avg"]), _rows_first(state["exp_avg_sq"])
        tensors = _rows_first(p), _rows_first(gradient), mean, square, state["step"]
        return Taught(*tensors, p in self.unit_rows, p in self.forgetful)


def _rows_first(x: Tensor) -> Tensor:
    """The same numbers as they lie in memory: fused Adam takes twice as long over transposed ones, kernels refuse."""
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
