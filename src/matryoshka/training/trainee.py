"""One coder in training: its optimiser, its counters, and what one step does to it."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from matryoshka.coder.coder import Forward, SparseCoder
from matryoshka.coder.losses import CONVENTIONS, fvu
from matryoshka.coder.scaling import Scaling
from matryoshka.coder.sparse import random_widths
from matryoshka.data.stream import Batch
from matryoshka.training.dead import REFRESH, Dead, DeadLatents
from matryoshka.training.optim import Adam, Schedule
from matryoshka.training.plan import Plan
from matryoshka.training.precision import choose
from matryoshka.training.recipe import TrainingSection


class Terms(NamedTuple):
    """The loss of one step and its parts, each as it enters the sum."""

    loss: Tensor
    reconstruction: Tensor
    aux: Tensor
    sparsity: Tensor


AVERAGED = (*Terms._fields, "gradient_norm")


class Trainee(nn.Module):
    """A coder and all that training adds to it: the scaling around it, Adam's state, which latents are dead (listed
    every `refresh` steps), and the sums of the current log interval (buffers, so that a checkpoint has them too)."""

    sums: Tensor
    bad_step: Tensor

    def __init__(
        self, plan: Plan, coder: SparseCoder, section: TrainingSection, steps: int, refresh: int = REFRESH
    ) -> None:
        super().__init__()
        self.plan, self.section = plan, section
        self.schedule = Schedule.of(section, steps, coder.config.d_in)
        self.coder = coder.train()
        device = coder.device
        self.scaling = Scaling(coder.config).to(device, coder.dtype)
        self.optimiser = Adam(coder.parameters(), section)
        self.convention = CONVENTIONS[section.loss]
        weight = section.aux_coefficient
        self._aux_weight = self.convention.aux_coefficient if weight is None else weight
        self.dead = DeadLatents(coder.config.d_sae, section.dead_after_tokens, refresh).to(device)
        self.register_buffer("sums", torch.zeros(len(AVERAGED), dtype=torch.float64, device=device))
        self.register_buffer("bad_step", torch.tensor(-1, device=device))
        coder.precision = choose(section.select, coder.config.d_in, coder.config.d_sae, device)
        # of the other dense products: the dead latents' and a skip connection's
        self.autocast = torch.autocast(device.type, torch.bfloat16, enabled=coder.precision != "float32")
        self._measures: dict[str, Tensor] = {}

    def calibrate(self, batch: Batch) -> None:
        """Fix the scaling, and start the coder, from the first activations."""
        x, y = (values.to(self.coder.dtype) for values in batch.of(self.plan.wiring))
        self.scaling.measure(x, y)
        self.coder.calibrate(self.scaling.x(x), self.scaling.y(y.mean(0)))

    def folded(self) -> SparseCoder:
        """The coder as it stands, in raw units and in eval mode: what is measured and saved."""
        return self.scaling.fold(self.coder)

    def step(self, batch: Batch, step: int, measure: bool) -> None:
        """Learn from one batch. Its loss terms are added to `sums`; with `measure`, `report` will tell its FVU and
        L0."""
        coder, (x, y) = self.coder, batch.of(self.plan.wiring)
        dead = self.dead.part(coder, step) if self._aux_weight else None
        with self.autocast:
            forward = coder(self.scaling.x(x), self.scaling.y(y), self._widths(step))
            terms = self.loss(forward, dead)
        terms.loss.backward()
        if dead is not None:
            coder.add_gradients(dead.subset)

        coder.keep_gradients_on_the_sphere()
        norm = self.optimiser.step(self.schedule.rate(step))
        coder.normalise_rows()

        self._count(forward, torch.stack([*terms, norm]).detach(), step)
        if measure:
            self._measures = self._measure(forward)

    def loss(self, forward: Forward, dead: Dead | None) -> Terms:
        """The convention's main term, plus the dead latents' term, plus the activation's own."""
        coder, section = self.coder, self.section
        reconstruction = self.convention.reconstruction(forward.errors, forward.y, forward.bias)
        aux = sparsity = reconstruction.new_zeros(())
        if dead is not None:
            k = section.aux_k or max(1, coder.config.d_out // 2)
            r_hat = dead.subset.reconstruct(forward.x, dead.still, k)
            aux = self._aux_weight * self.convention.aux(forward.residual, r_hat.to(aux.dtype)) * dead.still.any()
        if (penalty := coder.activation.penalty(forward.selected)) is not None:
            sparsity = section.l0_coefficient * penalty
        return Terms(reconstruction + aux + sparsity, reconstruction, aux, sparsity)

    def _widths(self, step: int) -> tuple[int, ...]:
        widths = self.coder.widths
        if not self.plan.section.random_widths:
            return widths
        # from (seed, step) alone, so that a resumed run draws the same
        generator = torch.Generator().manual_seed(self.plan.section.seed * 1_000_003 + step)
        return random_widths(len(widths), widths[-1], generator)

    @torch.no_grad()
    def _count(self, forward: Forward, values: Tensor, step: int) -> None:
        self.dead.count(forward.latents)
        self.coder.activation.revive(self.dead.now)
        self.sums += values
        # a NaN input could pass the selection unseen, so inputs are looked at too
        finite = values.isfinite().all() & forward.x.sum().isfinite()
        first = (self.bad_step < 0) & ~finite
        self.bad_step.copy_(torch.where(first, step, self.bad_step))

    @torch.no_grad()
    def _measure(self, forward: Forward) -> dict[str, Tensor]:
        """Of one batch: FVU of each of the coder's own prefixes, L0, and the share of what was selected that something
        may exceed which the product of low precision did not propose."""
        errors = forward.errors
        if self.plan.section.random_widths:  # these teach; what is reported are the fixed widths
            errors = self.coder.errors(forward.latents, forward.x, forward.y, self.coder.widths)[0]
        l0 = (forward.latents.values > 0).sum() / len(forward.y)
        return {"fvu": fvu(errors, forward.y), "l0": l0, "short": self.coder.shortfall(forward)}

    def report(self, every: int) -> dict[str, float | list[float]]:
        """The means of the log interval of `every` steps that ends here, and the measures of its last step."""
        if not self._measures:
            raise RuntimeError("nothing to report: no step was measured")
        values: dict[str, float | list[float]] = dict(zip(AVERAGED, (self.sums / every).tolist(), strict=True))
        values |= {name: x.tolist() for name, x in self._measures.items()}
        values["dead"] = self.dead.now.double().mean().item()
        self.sums.zero_()
        return values
