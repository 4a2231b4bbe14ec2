"""One coder in training: its optimiser, its counters, and what one step does to it."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from matryoshka.coder.activations import JumpReLU
from matryoshka.coder.coder import Forward, SparseCoder
from matryoshka.coder.losses import CONVENTIONS, l0_deviation, residual_reconstruction
from matryoshka.coder.metrics import Meter
from matryoshka.coder.nesting import random_widths
from matryoshka.data.activations import Batch
from matryoshka.training.config import Plan, TrainingSection
from matryoshka.training.optim import adam, learning_rate, normalise_rows, project_rows

AVERAGED = ("loss", "reconstruction", "aux", "sparsity", "gradient_norm")


class Terms(NamedTuple):
    """The loss of one step and its parts, each as it enters the sum."""

    loss: Tensor
    reconstruction: Tensor
    aux: Tensor
    sparsity: Tensor


class Trainee(nn.Module):
    """A coder, its Adam state, and the sums of the current log interval (a buffer, so that a checkpoint has it too)."""

    sums: Tensor
    bad_step: Tensor

    def __init__(self, plan: Plan, coder: SparseCoder, section: TrainingSection, steps: int) -> None:
        super().__init__()
        self.plan, self.section, self.steps = plan, section, steps
        self.coder = coder.train()
        self.optimiser = adam(coder.parameters(), section)
        self.convention = CONVENTIONS[section.loss]
        device = coder.W_enc.device
        self.meter = Meter(len(coder.config.widths), coder.config.d_out, coder.config.d_sae).to(device)
        self.register_buffer("sums", torch.zeros(len(AVERAGED), dtype=torch.float64, device=device))
        self.register_buffer("bad_step", torch.tensor(-1, device=device))

    def step(self, batch: Batch, step: int, measure: bool) -> None:
        """Learn from one batch. Its loss terms are added to `sums`; with `measure`, its FVU and L0 are put into
        `meter`."""
        coder = self.coder
        x, y = batch.activations[self.plan.read], batch.activations[self.plan.write]
        with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=self._autocast(x.device.type)):
            forward = coder(x, self._widths(step))
        y = coder.scaled_target(y)
        terms = self.loss(forward, y)
        terms.loss.backward()

        project_rows(coder.W_dec)
        norm = nn.utils.clip_grad_norm_(coder.parameters(), self.section.clip)
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(step, self.steps, self.section)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=False)
        normalise_rows(coder.W_dec)

        self._count(forward, torch.stack([*terms, norm]).detach(), step)
        if measure:
            self._measure(forward, y)

    def loss(self, forward: Forward, y: Tensor) -> Terms:
        """The convention's main term, plus the dead latents' term, plus the activation's own sparsity term."""
        coder, section = self.coder, self.section
        reconstruction = self.convention.reconstruction(y, forward.y_hat, coder.b_dec)
        aux = sparsity = reconstruction.new_zeros(())
        dead = coder.dead(section.dead_after_tokens)
        weight = self.convention.aux_coefficient if section.aux_coefficient is None else section.aux_coefficient
        if weight and dead.any():
            residual = (y - forward.y_hat[-1]).detach()
            k_aux = section.aux_k or max(1, coder.config.d_out // 2)
            aux = weight * self.convention.aux(residual, residual_reconstruction(forward.pre, dead, coder.W_dec, k_aux))
        if isinstance(coder.activation, JumpReLU):
            l0 = coder.activation.l0(forward.pre, forward.latents)
            sparsity = section.l0_coefficient * l0_deviation(l0, coder.config.k)
        return Terms(reconstruction + aux + sparsity, reconstruction, aux, sparsity)

    def _widths(self, step: int) -> tuple[int, ...]:
        widths = self.coder.config.widths
        if not self.plan.section.random_widths:
            return widths
        # from (seed, step) alone, so that a resumed run draws the same
        generator = torch.Generator().manual_seed(self.plan.section.seed * 1_000_003 + step)
        return random_widths(len(widths), widths[-1], generator)

    def _autocast(self, device: str) -> bool:
        return self.section.autocast == "bfloat16" or (self.section.autocast == "auto" and device == "cuda")

    @torch.no_grad()
    def _count(self, forward: Forward, values: Tensor, step: int) -> None:
        fired = forward.latents.fired() > 0
        self.coder.tokens_since_fired.add_(len(forward.inputs)).masked_fill_(fired, 0)
        self.sums += values
        # a NaN input could pass the selection unseen, so inputs are looked at too
        finite = values.isfinite().all() & forward.inputs.isfinite().all()
        first = (self.bad_step < 0) & ~finite
        self.bad_step.copy_(torch.where(first, step, self.bad_step))

    @torch.no_grad()
    def _measure(self, forward: Forward, y: Tensor) -> None:
        y_hat = forward.y_hat
        if self.plan.section.random_widths:  # these teach; what is reported are the fixed widths
            y_hat = self.coder.reconstruct(forward.latents, forward.inputs, self.coder.config.widths)
        self.meter.reset()
        self.meter.update(y, y_hat, forward.latents)

    def report(self, every: int) -> dict[str, float | list[float]]:
        """The means of the log interval of `every` steps that ends here, and the measures of its last step."""
        values: dict[str, float | list[float]] = dict(zip(AVERAGED, (self.sums / every).tolist(), strict=True))
        values |= {"fvu": self.meter.fvu(), "l0": self.meter.l0()}
        values["dead"] = self.coder.dead(self.section.dead_after_tokens).double().mean().item()
        self.sums.zero_()
        return values
