"""Activation functions: pre-activations [batch, d_sae] → sparse latents.

    ReLU        whatever is positive (coders of others)
    TopK        the k largest of each row, where positive
    BatchTopK   the k·B largest positive ones of the batch (Bussmann et al. 2024); at inference one threshold for all
    JumpReLU    those above a threshold learned for each latent (Rajamanoharan et al. 2024)

Each does two things: `select` says which entries of the pre-activations may be active and takes them out; `activate`
makes latents of what was taken out. Where the pre-activations are of low precision, `select` takes some more than it
needs, the coder puts in exact values, and `cut` says which of these are selected. In training mode a module selects as
in training, in eval mode as at inference. Its `penalty` is its own term of the loss. A new activation is a class here,
its parameters in `config`, and a line in `build`. All are positively homogeneous once `rescale` has scaled their
thresholds along, so constants fold.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from matryoshka.coder.architecture import BatchTopKConfig, JumpReLUConfig, NonlinearityConfig, ReLUConfig, TopKConfig
from matryoshka.coder.candidates import EXACT, Candidates, Slack, shortfall
from matryoshka.coder.kernels import Entries, Pre, Values, operations
from matryoshka.coder.latents import Latents, Pattern, from_mask


class ReLU(nn.Module):
    """latents = ReLU of every pre-activation. What the others do not say otherwise, they do as this one."""

    def select(self, pre: Pre, slack: Slack = EXACT) -> Latents:
        """The entries of `pre` that may be active, with their pre-activations as values: here those above 0. Where
        these are not exact, `slack` says how many more to take."""
        return from_mask(pre, operations(pre).nonzero(pre.detach() > 0))

    def cut(self, candidates: Latents) -> Entries | None:
        """Which entries of those that `select` took with some slack it would have taken without, now that their values
        are exact; None: all. Here those that turn out below 0 may stay, as an active latent of 0 is none."""
        return None

    def shortfall(self, selected: Latents, candidates: Candidates, slack: Slack) -> Float[Tensor, ""]:
        """Latents that should have been selected but were no candidates, as an expected share of those selected."""
        return selected.values.new_zeros(())

    def activate(self, selected: Latents) -> Latents:
        """The latents of selected pre-activations: here their ReLU."""
        return selected._replace(values=selected.values.relu())

    def forward(self, pre: Pre) -> Latents:
        """Both in one go, where nothing is put in between."""
        return self.activate(self.select(pre))

    def penalty(self, selected: Latents) -> Float[Tensor, ""] | None:
        """The activation's own term of the loss, given what a training-mode `select` has taken; None if it has none."""
        return None

    def calibrate(self, pre: Pre) -> None:
        """Start from the first pre-activations, where anything depends on the data."""

    def revive(self, dead: Bool[Tensor, " d_sae"]) -> None:
        """Bring the `dead` latents within reach of what they read, where a threshold of their own keeps them out."""

    def rescale(self, factor: float) -> None:
        """Follow latents that are multiplied by `factor`, where there is a threshold."""

    def stored(self) -> dict[str, Tensor]:
        """What a file holds of it: its thresholds, by name."""
        return dict(self.state_dict())


class TopK(ReLU):
    """latents = ReLU of the k largest pre-activations of each row, in training and at inference alike."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k

    def select(self, pre: Pre, slack: Slack = EXACT) -> Latents:
        """The k largest of each row."""
        k = slack.number(self.k, pre.shape[1])
        indices = operations(pre).topk(pre.detach(), k)
        offsets = torch.arange(0, indices.numel() + 1, k, device=pre.device)
        rows = torch.arange(len(pre), device=pre.device)[:, None].expand(-1, k)
        pattern = Pattern.of((indices.flatten(), rows.flatten(), offsets), pre.shape[1])
        return Latents(pattern, pre.gather(1, indices).flatten())

    def cut(self, candidates: Latents) -> Entries | None:
        """The k largest of each row."""
        rows = candidates.values.view(candidates.pattern.batch, -1)
        first = candidates.offsets[:-1, None]
        return (first + operations(rows).topk(rows, self.k)).flatten()

    def shortfall(self, selected: Latents, candidates: Candidates, slack: Slack) -> Float[Tensor, ""]:
        """Row by row."""
        return _shortfall(selected, candidates, selected.pattern.batch, self.k)


class BatchTopK(ReLU):
    """The k·B largest positive pre-activations of the batch; at inference those above `threshold`.

    `threshold` follows the smallest selected value of each training step, and moves in no other: a mean over the first
    steps, an exponential one after. It is float32 whatever autocast does (in bfloat16 such an average stalls).
    """

    DECAY = 0.8  # about 5 steps: the cut of k·B values hardly has noise, and a longer memory lags behind training
    threshold: Tensor
    steps: Tensor

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k
        self.register_buffer("threshold", torch.zeros((), dtype=torch.float32))
        # of training alone: it lies in checkpoints, not with the weights
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64), persistent=False)

    def select(self, pre: Pre, slack: Slack = EXACT) -> Latents:
        """The k·B largest of the batch; at inference those above the threshold."""
        return from_mask(pre, self._positions(pre.detach(), slack.number(self.k * len(pre), pre.numel())))

    def cut(self, candidates: Latents) -> Entries | None:
        """As it selects."""
        return self._positions(candidates.values[None], self.k * candidates.pattern.batch)

    def _positions(self, values: Pre, n: int) -> Entries:
        ops = operations(values)
        return ops.batch_topk(values, n) if self.training else ops.nonzero(values > self.threshold)

    def shortfall(self, selected: Latents, candidates: Candidates, slack: Slack) -> Float[Tensor, ""]:
        """Of the whole batch at once."""
        return _shortfall(selected, candidates, 1, self.k * selected.pattern.batch)

    def activate(self, selected: Latents) -> Latents:
        """Their ReLU; in a training step the threshold follows the smallest of them."""
        latents = super().activate(selected)
        if self.training and torch.is_grad_enabled() and len(latents.values):
            self._track(latents.values.detach())
        return latents

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "BatchTopK":
        threshold = self.threshold
        super()._apply(fn, recurse)
        self.threshold = threshold.to(self.threshold.device)  # `coder.bfloat16()` does not cast it
        return self

    def _track(self, values: Values) -> None:
        operations(values).follow_smallest_(self.threshold, self.steps, values, self.DECAY)

    def rescale(self, factor: float) -> None:
        """The threshold is one of latents."""
        self.threshold *= factor


class JumpReLU(ReLU):
    """latents = pre · H(pre − θ), with a threshold θ = threshold · exp(log_growth) ≥ 0 of its own for each latent.

    Training moves `log_growth` alone; what is stored is θ, to the last bit. H has no gradient: θ learns by the
    straight-through estimators of Rajamanoharan et al. (2024), a rectangle kernel of `bandwidth` around θ. In training,
    entries within half a bandwidth below θ therefore stay in the pattern, as 0.
    """

    threshold: Tensor

    def __init__(self, k: int | None, d_sae: int, bandwidth: float) -> None:
        super().__init__()
        self.k, self.bandwidth = k, bandwidth
        self.register_buffer("threshold", torch.ones(d_sae))
        self.log_growth = nn.Parameter(torch.zeros(d_sae))

    @property
    def theta(self) -> Float[Tensor, " d_sae"]:
        """The thresholds, differentiable."""
        return self.threshold * self.log_growth.exp()

    def select(self, pre: Pre, slack: Slack = EXACT) -> Latents:
        """Those above their threshold; in training also those within half a bandwidth below it. Candidates that turn
        out to lie below that stay, as 0 and without a gradient."""
        return from_mask(pre, operations(pre).nonzero(pre.detach() > self._reach() - slack.margin))

    def _reach(self) -> Float[Tensor, " d_sae"]:
        return self.theta.detach() - (self.bandwidth / 2 if self.training else 0)

    def shortfall(self, selected: Latents, candidates: Candidates, slack: Slack) -> Float[Tensor, ""]:
        """By all thresholds together: candidates begin by the same margin below each."""
        exact, rough, reach = (
            values[None] for values in (selected.values, candidates.of_selected, self._reach()[selected.indices])
        )
        gap = torch.full_like(exact[:, :1], slack.margin)
        return shortfall(exact, rough, reach.clamp(min=0), gap, rough - reach + slack.margin)

    def activate(self, selected: Latents) -> Latents:
        """What exceeds its threshold, otherwise 0."""
        threshold = self.theta[selected.indices]
        return selected._replace(values=_Jump.apply(selected.values, threshold, self.bandwidth, False))

    def penalty(self, selected: Latents) -> Float[Tensor, ""] | None:
        """(L0/k − 1)²: aims at k active latents a row, as Rajamanoharan et al. (2024) suggest."""
        return None if self.k is None else (self.l0(selected) / self.k - 1).square()

    def l0(self, selected: Latents) -> Float[Tensor, ""]:
        """Mean number of active latents a row, differentiable in the thresholds. `selected` are those of a
        training-mode `select`: their pattern holds every entry that has a gradient."""
        threshold = self.theta[selected.indices]
        return _Jump.apply(selected.values.detach(), threshold, self.bandwidth, True).sum() / selected.pattern.batch

    @torch.no_grad()
    def calibrate(self, pre: Pre) -> None:
        """Start from the threshold that leaves k latents active a row on `pre`."""
        if self.k is None:
            raise ValueError("a JumpReLU without k has nothing to aim at")
        values = pre.flatten()[operations(pre).batch_topk(pre, self.k * len(pre))]
        if (values > 0).any():
            self.threshold.fill_(1)
            self.log_growth.fill_(values[values > 0].min().log().item())

    @torch.no_grad()
    def revive(self, dead: Bool[Tensor, " d_sae"]) -> None:
        """Lower the thresholds of the dead to the median of the living: the estimators give no gradient to one that
        nothing comes near, while those of the living come down as they learn."""
        log_start = self.threshold.log()
        log_theta = log_start + self.log_growth
        living = torch.where(dead, torch.nan, log_theta).nanmedian()
        lower = dead & (living < log_theta)  # of no living ones the median is NaN: nothing is lower
        self.log_growth.copy_(torch.where(lower, living - log_start, self.log_growth))

    @torch.no_grad()
    def rescale(self, factor: float) -> None:
        """Thresholds and the kernel around them are ones of latents."""
        self.threshold *= factor
        self.bandwidth *= factor

    def stored(self) -> dict[str, Tensor]:
        """θ alone: what training has moved is in it."""
        return {"threshold": self.theta.detach()}


class _Jump(torch.autograd.Function):
    """z · H(z − θ), or H(z − θ) where `unit`; ∂/∂z = H(z − θ), or none, ∂/∂θ = −(θ or 1)/ε · rect((z − θ)/ε)."""

    @staticmethod
    def forward(ctx, z: Tensor, threshold: Tensor, bandwidth: float, unit: bool) -> Tensor:
        ctx.save_for_backward(z, threshold)
        ctx.bandwidth, ctx.unit = bandwidth, unit
        return (z > threshold).to(z.dtype) if unit else z * (z > threshold)

    @staticmethod
    def backward(ctx, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor, None, None]:
        (grad,), (z, threshold) = grad_outputs, ctx.saved_tensors
        near = (z - threshold).abs() < ctx.bandwidth / 2
        of_z = None if ctx.unit else grad * (z > threshold)
        return of_z, -(1 if ctx.unit else threshold) / ctx.bandwidth * near * grad, None, None


def _shortfall(selected: Latents, candidates: Candidates, groups: int, wanted: int) -> Float[Tensor, ""]:
    """Where so many are `wanted` of each of the `groups`."""
    exact, rough, proposed = (
        values.view(groups, -1) for values in (selected.values, candidates.of_selected, candidates.rough.values.float())
    )
    everything = selected.pattern.batch * selected.d_sae // groups
    if exact.shape[1] < wanted or proposed.shape[1] == everything:
        return exact.new_zeros(())  # all that were positive, or all there are, were candidates
    cut = torch.where(exact > 0, exact, torch.inf).amin(1, keepdim=True)
    first = proposed.amin(1, keepdim=True).clamp(min=0)
    return shortfall(exact, rough, cut, torch.where(cut.isfinite(), cut - first, 0), proposed - first)


def build(config: NonlinearityConfig, d_sae: int) -> ReLU:
    """The module that `config` describes."""
    match config:
        case ReLUConfig():
            return ReLU()
        case TopKConfig(k=k):
            return TopK(k)
        case BatchTopKConfig(k=k):
            return BatchTopK(k)
        case JumpReLUConfig(k=k, bandwidth=bandwidth):
            return JumpReLU(k, d_sae, bandwidth)
