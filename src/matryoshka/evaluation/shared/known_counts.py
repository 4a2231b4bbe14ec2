"""What recovery counts over fresh samples of known features, of several coders from the same samples.

matches   of each latent the feature that its decoder row is most along, of each feature the latent that is most
          along it; a feature is *tracked* by a latent where each is the other's
counts    where a latent is active, where its feature is on, where both are; of every tracked parent the same where
          one of its children is on too, and where none is; of every block of samples squared errors and scatter
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from matryoshka.coder.coder import SparseCoder
from matryoshka.coder.latents import Latents
from matryoshka.data.synthetic import HELD_OUT, Samples, SyntheticModel
from matryoshka.progress import Progress
from matryoshka.study.hooked import HookedCoder

ROWS = 1024
"""Of the matrix of cosines that are made at once."""


class Matches(NamedTuple):
    """Latents and features by the |cosine| of decoder rows and directions."""

    cosines: Float[Tensor, "d_sae features"]
    """On the CPU."""
    feature_of: Int[Tensor, " d_sae"]
    latent_of: Int[Tensor, " features"]

    @classmethod
    def of(cls, coder: SparseCoder, directions: Float[Tensor, "features d"]) -> "Matches":
        """Of a coder that writes what is made of these directions."""
        rows = coder.decoder_rows().to(directions.dtype)
        rows = rows / rows.norm(dim=1, keepdim=True).clamp(min=torch.finfo(rows.dtype).tiny)
        cosines = torch.cat([(part @ directions.T).abs().cpu() for part in rows.split(ROWS)])
        device = directions.device
        return cls(cosines, cosines.argmax(1).to(device), cosines.argmax(0).to(device))

    @property
    def tracked(self) -> Bool[Tensor, " features"]:
        """The features that have a latent of their own."""
        features = torch.arange(len(self.latent_of), device=self.latent_of.device)
        return self.feature_of[self.latent_of] == features


class Detection(NamedTuple):
    """Of each latent as a detector of a feature."""

    active: Int[Tensor, " d_sae"]
    """On how many samples it is."""
    on: Int[Tensor, " d_sae"]
    """On how many its feature is."""
    both: Int[Tensor, " d_sae"]

    def f1(self) -> Float[Tensor, " d_sae"]:
        """2 · both / (active + on); 0 where neither ever is."""
        return 2 * self.both.double() / (self.active + self.on).clamp(min=1)


class Blocks(NamedTuple):
    """Sums over blocks of samples."""

    rows: Int[Tensor, " blocks"]
    scatter: Float[Tensor, " blocks"]
    """Σ‖x − x̄‖², x̄ the mean over all samples."""
    errors: Float[Tensor, "prefix blocks"]
    active: Float[Tensor, "prefix blocks"]
    """Active latents."""
    on: Int[Tensor, " blocks"]
    """Features that are on."""


class KnownCounts:
    """One coder's, filled block by block."""

    def __init__(self, hooked: HookedCoder, model: SyntheticModel) -> None:
        self.hooked, self.model = hooked, model
        self.matches = Matches.of(hooked.coder, model.forest.directions)
        features, d_sae = model.config.features, hooked.coder.widths[-1]

        def zeros(count: int) -> Tensor:
            return torch.zeros(count, dtype=torch.int64, device=model.device)

        self._on, self._active = zeros(features), zeros(d_sae)
        self._both, self._both_shuffled = zeros(d_sae), zeros(d_sae)
        self.parents = {with_child: (zeros(features), zeros(features)) for with_child in (True, False)}
        """By whether a child is on too: on how many samples each feature is, and on how many of them its latent."""
        self._sums = list[tuple[int, Tensor, Tensor, Tensor, Tensor, int]]()

    @property
    def _shuffled(self) -> Int[Tensor, " d_sae"]:
        return self.matches.feature_of.roll(1)

    def add(self, samples: Samples) -> None:
        """One block."""
        coder, x = self.hooked.coder, samples.x.to(self.hooked.coder.dtype)
        latents = coder.encode(x)
        active = latents.values > 0
        rows, indices = latents.rows[active], latents.indices[active]
        on = torch.zeros(len(x), self.model.config.features, dtype=torch.bool, device=x.device)
        on[samples.rows, samples.features] = True
        self._on += samples.features.bincount(minlength=len(self._on))
        self._active += indices.bincount(minlength=len(self._active))
        for both, feature_of in ((self._both, self.matches.feature_of), (self._both_shuffled, self._shuffled)):
            both += indices[on[rows, feature_of[indices]]].bincount(minlength=len(both))
        self._add_parents(samples, rows, indices, on)
        self._add_block(samples, latents)

    def _add_parents(self, samples: Samples, rows: Tensor, indices: Tensor, on: Tensor) -> None:
        parents = self.model.forest.parents[samples.features]
        with_child = torch.zeros_like(on)
        inside = parents >= 0
        with_child[samples.rows[inside], parents[inside]] = True
        fires = torch.zeros(len(on), len(self._active), dtype=torch.bool, device=on.device)
        fires[rows, indices] = True
        has_child = with_child[samples.rows, samples.features]
        fired = fires[samples.rows, self.matches.latent_of[samples.features]]
        for which, (count, hits) in self.parents.items():
            chosen = has_child == which
            count += samples.features[chosen].bincount(minlength=len(count))
            hits += samples.features[chosen & fired].bincount(minlength=len(hits))

    def _add_block(self, samples: Samples, latents: Latents) -> None:
        coder, x = self.hooked.coder, samples.x.double()
        y_hat = coder.decode(latents, samples.x.to(coder.dtype))
        errors = torch.stack([(x - prefix.double()).square().sum() for prefix in y_hat])
        active = latents.indices[latents.values > 0]
        below = torch.stack([(active < width).sum() for width in coder.widths])
        self._sums.append((len(x), x.sum(0), x.square().sum(), errors, below, len(samples.features)))

    @property
    def samples(self) -> int:
        """That were counted."""
        return sum(block[0] for block in self._sums)

    def detection(self) -> Detection:
        """Of the feature that each latent is most along."""
        return Detection(self._active, self._on[self.matches.feature_of], self._both)

    def shuffled(self) -> Detection:
        """Of another latent's feature: the null."""
        return Detection(self._active, self._on[self._shuffled], self._both_shuffled)

    def blocks(self) -> Blocks:
        """Of all samples, on the CPU."""
        rows, sums, energies, errors, active, on = zip(*self._sums, strict=True)
        counts, totals = torch.tensor(rows), torch.stack(sums).cpu()
        mean = totals.sum(0) / counts.sum()
        scatter = torch.stack(energies).cpu() - 2 * totals @ mean + counts * mean.square().sum()
        return Blocks(
            counts, scatter, torch.stack(errors, 1).cpu(), torch.stack(active, 1).double().cpu(), torch.tensor(on)
        )


@torch.no_grad()
def count_all(
    model: SyntheticModel, coders: Sequence[HookedCoder], samples: int, progress: Progress
) -> list[KnownCounts]:
    """The counts of each coder on the same `samples` fresh samples; `progress` counts them."""
    counts, done = [KnownCounts(hooked, model) for hooked in coders], 0
    for part in model.draw(samples, HELD_OUT):
        for of_coder in counts:
            of_coder.add(part)
        progress(done := done + len(part.x), samples)
    return counts
