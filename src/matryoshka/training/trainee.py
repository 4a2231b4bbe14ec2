"""One coder in training: its optimiser, its counters, and what one step does to it."""

import logging
from typing import NamedTuple

import torch
from torch import Tensor, nn

from matryoshka.coder.activations import JumpReLU
from matryoshka.coder.coder import Forward, SparseCoder
from matryoshka.coder.kernels.cpu import has_bfloat16_product, has_native_bfloat16
from matryoshka.coder.losses import CONVENTIONS, fvu, l0_deviation
from matryoshka.coder.nesting import random_widths
from matryoshka.data.activations import Batch
from matryoshka.training.config import TrainingSection
from matryoshka.training.dead import DeadLatents, DeadPart
from matryoshka.training.optim import Adam, learning_rate, normalise_rows, project_rows
from matryoshka.training.plan import Plan

logger = logging.getLogger("matryoshka")
AVERAGED = ("loss", "reconstruction", "aux", "sparsity", "gradient_norm")


class Terms(NamedTuple):
    """The loss of one step and its parts, each as it enters the sum."""

    loss: Tensor
    reconstruction: Tensor
    aux: Tensor
    sparsity: Tensor


class Measures(NamedTuple):
    """Of one batch: FVU of each of the coder's own prefixes, and L0."""

    fvu: Tensor
    l0: Tensor


class Trainee(nn.Module):
    """A coder, its Adam state, and the sums of the current log interval (a buffer, so that a checkpoint has it too)."""

    sums: Tensor
    bad_step: Tensor

    def __init__(self, plan: Plan, coder: SparseCoder, section: TrainingSection, steps: int) -> None:
        super().__init__()
        self.plan, self.section, self.steps = plan, section, steps
        self.coder = coder.train()
        self.optimiser = Adam(coder.parameters(), section)
        self.convention = CONVENTIONS[section.loss]
        self.dead = DeadLatents(coder, section.dead_after_tokens)
        device = coder.W_enc.device
        self.register_buffer("sums", torch.zeros(len(AVERAGED), dtype=torch.float64, device=device))
        self.register_buffer("bad_step", torch.tensor(-1, device=device))
        self.autocast = torch.autocast(device.type, torch.bfloat16, enabled=_low_precision(section, device))
        self._measures: Measures | None = None

    def step(self, batch: Batch, step: int, measure: bool) -> None:
        """Learn from one batch. Its loss terms are added to `sums`; with `measure`, `report` will tell its FVU and
        L0."""
        coder = self.coder
        dead = self.dead.part(coder, step) if self._aux_weight else None
        with self.autocast:
            forward = coder(batch.activations[self.plan.read], batch.activations[self.plan.write], self._widths(step))
            terms = self.loss(forward, dead)
        terms.loss.backward()
        if dead is not None:
            dead.add_gradients(coder)

        project_rows(coder.W_dec)
        norm = self.optimiser.step(learning_rate(step, self.steps, self.section))
        normalise_rows(coder.W_dec)

        self._count(forward, torch.stack([*terms, norm]).detach(), step)
        if measure:
            self._measures = self._measure(forward)

    def loss(self, forward: Forward, dead: DeadPart | None) -> Terms:
        """The convention's main term, plus the dead latents' term, plus the activation's own sparsity term."""
        coder, section = self.coder, self.section
        reconstruction = self.convention.reconstruction(forward.errors, forward.y, coder.b_dec)
        aux = sparsity = reconstruction.new_zeros(())
        if dead is not None:
            r_hat = dead.reconstruct(forward.inputs, section.aux_k or max(1, coder.config.d_out // 2))
            aux = self._aux_weight * self.convention.aux(forward.residual, r_hat.to(aux.dtype)) * dead.still.any()
        if isinstance(coder.activation, JumpReLU):
            l0 = coder.activation.l0(forward.selected)
            sparsity = section.l0_coefficient * l0_deviation(l0, coder.config.k)
        return Terms(reconstruction + aux + sparsity, reconstruction, aux, sparsity)

    @property
    def _aux_weight(self) -> float:
        given = self.section.aux_coefficient
        return self.convention.aux_coefficient if given is None else given

    def _widths(self, step: int) -> tuple[int, ...]:
        widths = self.coder.config.widths
        if not self.plan.section.random_widths:
            return widths
        # from (seed, step) alone, so that a resumed run draws the same
        generator = torch.Generator().manual_seed(self.plan.section.seed * 1_000_003 + step)
        return random_widths(len(widths), widths[-1], generator)

    @torch.no_grad()
    def _count(self, forward: Forward, values: Tensor, step: int) -> None:
        silent, latents = self.coder.tokens_since_fired, forward.latents
        silent += len(forward.inputs)
        silent.scatter_reduce_(
            0, latents.indices, torch.where(latents.values > 0, 0, torch.iinfo(silent.dtype).max), "amin"
        )
        self.sums += values
        # a NaN input could pass the selection unseen, so inputs are looked at too
        finite = values.isfinite().all() & forward.inputs.sum().isfinite()
        first = (self.bad_step < 0) & ~finite
        self.bad_step.copy_(torch.where(first, step, self.bad_step))

    @torch.no_grad()
    def _measure(self, forward: Forward) -> Measures:
        errors = forward.errors
        if self.plan.section.random_widths:  # these teach; what is reported are the fixed widths
            errors = self.coder.errors(forward.latents, forward.y, forward.inputs, self.coder.config.widths)[0]
        return Measures(fvu(errors, forward.y), (forward.latents.values > 0).sum() / len(forward.y))

    def report(self, every: int) -> dict[str, float | list[float]]:
        """The means of the log interval of `every` steps that ends here, and the measures of its last step."""
        if self._measures is None:
            raise RuntimeError("nothing to report: no step was measured")
        values: dict[str, float | list[float]] = dict(zip(AVERAGED, (self.sums / every).tolist(), strict=True))
        values |= {name: x.tolist() for name, x in self._measures._asdict().items()}
        values["dead"] = self.coder.dead(self.section.dead_after_tokens).double().mean().item()
        self.sums.zero_()
        return values


def _low_precision(section: TrainingSection, device: torch.device) -> bool:
    """Whether the encoder's product is bfloat16: where it is configured and the device has such a product, or where
    that is the faster one."""
    match section.autocast:
        case "off":
            return False
        case "auto":
            return device.type == "cuda" or (device.type == "cpu" and has_native_bfloat16())
        case "bfloat16":
            if device.type == "cpu" and not has_bfloat16_product():
                logger.warning("training.autocast bfloat16: this processor has no such product; float32 is used")
                return False
            return True
