"""Streaming measures of a coder over any number of batches, exact however the data is cut into batches."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from matryoshka.coder.architecture import CoderConfig
from matryoshka.coder.latents import Latents
from matryoshka.coder.losses import Prefixes, Target


class Meter(nn.Module):
    """FVU of each prefix at each written site, L0 and firing counts over all batches seen.

    FVU = Σ‖y − ŷ‖² / Σ‖y − ȳ‖², ȳ the mean of each dimension over *all* rows seen; sums in float64 on the device,
    merged batch by batch as Chan et al. (1979) do, so that a large mean costs no digits; nothing is read back unasked.
    """

    rows: Tensor
    mean: Tensor
    scatter: Tensor
    errors: Tensor
    active: Tensor
    fired: Tensor

    def __init__(self, config: CoderConfig) -> None:
        super().__init__()
        self.sizes = config.writes
        self.register_buffer("rows", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(config.d_out, dtype=torch.float64))
        self.register_buffer("scatter", torch.zeros(len(config.writes), dtype=torch.float64))
        self.register_buffer("errors", torch.zeros(len(config.widths), len(config.writes), dtype=torch.float64))
        self.register_buffer("active", torch.zeros((), dtype=torch.float64))
        self.register_buffer("fired", torch.zeros(config.d_sae, dtype=torch.int64))

    @torch.no_grad()
    def update(self, y: Target, y_hat: Prefixes, latents: Latents) -> None:
        """Add one batch of targets, their nested reconstructions and the latents behind them."""
        if len(y) == 0:
            return
        y = y.double()
        n, mean = len(y), y.mean(0)
        shift = mean - self.mean
        total = self.rows + n
        self.scatter += self._by_site((y - mean).square()) + self._by_site(shift.square()) * self.rows * n / total
        self.mean += shift * n / total
        self.rows.fill_(total)
        self.errors += torch.stack([self._by_site((y - prefix.double()).square()) for prefix in y_hat])
        self.active += (latents.values > 0).sum()
        self.fired += latents.fired()

    def _by_site(self, squares: Float[Tensor, "*batch d_out"]) -> Float[Tensor, " site"]:
        return torch.stack([site.sum() for site in squares.split(self.sizes, dim=-1)])

    def fvu(self) -> list[float]:
        """Fraction of variance unexplained by each prefix; of several written sites the mean."""
        return (self.errors / self.scatter).mean(1).tolist()

    def fvu_of_sites(self) -> list[list[float]]:
        """[written site][prefix]."""
        return (self.errors / self.scatter).T.tolist()

    def l0(self) -> float:
        """Mean number of active latents a row."""
        return (self.active / self.rows).item()

    def silent(self) -> float:
        """Share of the dictionary that was never active on these rows."""
        return (self.fired == 0).double().mean().item()
