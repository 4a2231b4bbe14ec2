"""One coder in training: its optimiser, its counters, and what one step does to it."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from matryoshka.coder.coder import Forward, SparseCoder
from matryoshka.coder.kernels import has_triton, operations
from matryoshka.coder.losses import CONVENTIONS, fvu
from matryoshka.coder.scaling import Scaling
from matryoshka.coder.sparse import random_widths
from matryoshka.data.stream import Batch
from matryoshka.training.dead import REFRESH, Dead, DeadLatents
from matryoshka.training.graphs import Clock, Graphs
from matryoshka.training.optim import Adam, Schedule
from matryoshka.training.plan import Plan
from matryoshka.training.precision import choose
from matryoshka.training.recipe import TrainingSection


class Terms(NamedTuple):
    """The loss of one step and its parts, each as it enters the sum; None where there is no such part."""

    loss: Tensor
    reconstruction: Tensor
    aux: Tensor | None
    sparsity: Tensor | None


FILLS_A_GPU = 2**26
"""Pre-activations of a batch from which on a step keeps a GPU busy alone."""
AVERAGED = (*Terms._fields, "gradient_norm")


class Trainee(nn.Module):
    """A coder and all that training adds to it: the scaling around it, Adam's state, which latents are dead (listed
    every `refresh` steps), and the sums of the current log interval (buffers, so that a checkpoint has them too)."""

    sums: Tensor
    bad_step: Tensor

    def __init__(
        self,
        plan: Plan,
        coder: SparseCoder,
        section: TrainingSection,
        steps: int,
        refresh: int = REFRESH,
        beside: bool = False,
    ) -> None:
        """`beside`: others learn from the same batches; graphed steps of small coders then run side by side: `join`
        them."""
        super().__init__()
        self.plan, self.section = plan, section
        self.schedule = Schedule.of(section, steps, coder.config.d_in)
        self.coder = coder.train()
        device = coder.device
        self.scaling = Scaling(coder.config).to(device, coder.dtype)
        self.optimiser = Adam(coder.parameters(), section, coder.unit_rows, () if plan.tied else coder.forgetful)
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
        self._clock = Clock(device)
        self.unfit = _unfit_for_graphs(plan, device)
        self.graphs = None
        if device.type == "cuda" and self.unfit is None:
            aside = beside and section.batch * coder.config.d_sae < FILLS_A_GPU
            self.graphs = Graphs(self._learn, torch.cuda.Stream(device) if aside else None)

    def calibrate(self, batch: Batch) -> None:
        """Fix the scaling, and start the coder, from the first activations."""
        x, y = (values.to(self.coder.dtype) for values in batch.of(self.plan.wiring))
        self.scaling.measure(x, y)
        x = self.scaling.x(x)
        if not self.plan.tied:
            self.coder.pair(x, self.scaling.y(y))
        self.coder.calibrate(x, self.scaling.y(y.mean(0)))

    def folded(self) -> SparseCoder:
        """The coder as it stands, in raw units and in eval mode: what is measured and saved."""
        return self.scaling.fold(self.coder)

    def step(self, batch: Batch, step: int, measure: bool) -> None:
        """Learn from one batch. Its loss terms are added to `sums`; with `measure`, `report` will tell its FVU and
        L0."""
        x, y = batch.of(self.plan.wiring)
        listed = self.dead.listed_at(step) if self._aux_weight else None
        self._clock.set(step, self.schedule.rate(step))
        learn = self._learn if self.graphs is None else self.graphs
        learn(measure, x, y, listed, self._widths(step))

    def join(self) -> None:
        """What follows on a GPU comes after the steps so far."""
        if self.graphs is not None:
            self.graphs.join()

    def _learn(self, measure: bool, x: Tensor, y: Tensor, listed: Tensor | None, widths: Tensor | None) -> None:
        """The step as the device does it: it asks the host nothing, and all that stays is written in place."""
        coder = self.coder
        dead = None if listed is None else self.dead.part(coder, listed)
        with self.autocast:
            forward = coder(self.scaling.x(x), self.scaling.y(y), widths)
            terms = self.loss(forward, dead)
        terms.loss.backward()
        if dead is not None:
            coder.add_gradients(dead.subset)

        norm = self.optimiser.step(self._clock.rate)

        self._count(forward, (*terms, norm))
        if measure:
            for name, value in self._measure(forward).items():
                self._measures.setdefault(name, torch.empty_like(value)).copy_(value)

    def loss(self, forward: Forward, dead: Dead | None) -> Terms:
        """The convention's main term, plus the dead latents' term, plus the activation's own."""
        coder, section = self.coder, self.section
        reconstruction = self.convention.reconstruction(forward.errors, forward.total_error, forward.y, forward.bias)
        aux = sparsity = None
        if dead is not None:
            k = section.aux_k or max(1, coder.config.d_out // 2)
            r_hat = dead.subset.reconstruct(forward.x, dead.now, k)
            aux = self._aux_weight * self.convention.aux(forward.residual, r_hat.to(forward.y.dtype)) * dead.now.any()
        if (penalty := coder.activation.penalty(forward.selected)) is not None:
            sparsity = section.l0_coefficient * penalty
        loss = reconstruction
        for term in (aux, sparsity):
            loss = loss if term is None else loss + term
        return Terms(loss, reconstruction, aux, sparsity)

    def _widths(self, step: int) -> Tensor | None:
        """Where a step draws its widths: a tensor, since they change from step to step."""
        if not self.plan.section.random_widths:
            return None
        widths = self.coder.widths
        # from (seed, step) alone, so that a resumed run draws the same
        generator = torch.Generator().manual_seed(self.plan.section.seed * 1_000_003 + step)
        drawn = random_widths(len(widths), widths[-1], generator)
        return torch.tensor(drawn).to(self.coder.device, non_blocking=True)

    @torch.no_grad()
    def _count(self, forward: Forward, terms: tuple[Tensor | None, ...]) -> None:
        self.dead.count(forward.latents)
        self.coder.activation.revive(self.dead.now)
        # a NaN input could pass the selection unseen, so inputs are looked at too
        operations(self.sums).tally_(self.sums, terms, forward.x, self.bad_step, self._clock.step)

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


def _unfit_for_graphs(plan: Plan, device: torch.device) -> str | None:
    """Why a GPU's steps cannot be graphs; None where they can, and on other devices."""
    if device.type != "cuda":
        return None
    if not has_triton():
        return "Triton is not installed"
    if plan.section.activation == "jumprelu":
        return "a threshold lets through how many latents it will"
    return None
