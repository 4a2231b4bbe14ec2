"""Features changed at the WRITTEN site, and all else of it as it was: ablated, scaled, or held at a level.

    y' = y + Σ_f (α_f − a_f) W_dec[f],    α_f = factor · a_f + level

a_f is the activation of latent f on the model's own activations, so y' keeps the coder's error, its bias and every
other latent. Ablating and scaling change nothing where the feature does not fire; a level holds at every position.

with changed(lm, placed, tokens, kept, [Change(7), Change(42, factor=2), Change(99, level=12.5)]):
    logits = lm.logits(tokens)                        # 7 is ablated, 42 doubled, 99 held at 12.5
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import index
from typing import SupportsIndex

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from matryoshka.coder.coder import SparseCoder
from matryoshka.coder.latents import Latents
from matryoshka.errors import MatryoshkaError
from matryoshka.evaluation.placed import Placed
from matryoshka.lm.model import LanguageModel
from matryoshka.lm.sites import Site


@dataclass(frozen=True)
class Change:
    """Latent `feature` becomes α = factor · a + level, a what it is by itself; as it stands, an ablation.

    `level` is in the coder's units: of a folded coder, those in which activation × W_dec row is raw.
    """

    feature: SupportsIndex
    factor: int | float = 0
    level: int | float = 0


@contextmanager
def changed(
    lm: LanguageModel,
    placed: Placed,
    tokens: Int[Tensor, "batch position"],
    kept: Bool[Tensor, "batch position"],
    changes: Sequence[Change],
) -> Iterator[None]:
    """Within the block the language model, run on `tokens`, has these features changed at the `kept` positions.

    Raises MatryoshkaError for a feature that the coder does not have, or that is named twice.
    """
    x = lm.read(tokens, [placed.read])[placed.read]
    with shifted(lm, placed.write, shift(placed.coder, x, kept, changes)):
        yield


@contextmanager
def shifted(lm: LanguageModel, site: Site, by: Float[Tensor, "batch position d"]) -> Iterator[None]:
    """Within the block `by` is added to the activation at `site`."""
    with lm.replace(site, lambda y: y + by):
        yield


@torch.no_grad()
def shift(
    coder: SparseCoder,
    x: Float[Tensor, "batch position d_in"],
    kept: Bool[Tensor, "batch position"],
    changes: Sequence[Change],
) -> Float[Tensor, "batch position d_out"]:
    """What the changes add to y, given what the coder reads: zeros but at the `kept` positions."""
    features = check_features(coder, [each.feature for each in changes])
    factor, level = (
        torch.tensor([getattr(each, name) for each in changes], dtype=coder.W_dec.dtype, device=coder.W_dec.device)
        for name in ("factor", "level")
    )
    a = activations(coder.encode(x[kept]), features)
    by = coder.W_dec.new_zeros(*kept.shape, coder.config.d_out)
    by[kept] = (factor * a + level - a) @ coder.W_dec[features] / coder.scale_out
    return by


def check_features(coder: SparseCoder, features: Sequence[SupportsIndex]) -> Int[Tensor, " n"]:
    """These features as a tensor on the coder's device. Raises MatryoshkaError if one is not there, or there twice."""
    d_sae, numbers = coder.config.d_sae, [index(feature) for feature in features]
    for number in numbers:
        if not 0 <= number < d_sae:
            raise MatryoshkaError(f"feature {number}: the coder has {d_sae:,}, numbered 0 to {d_sae - 1}")
    if len(set(numbers)) < len(numbers):
        raise MatryoshkaError(f"features {numbers}: each can be changed once")
    return torch.tensor(numbers, dtype=torch.int64, device=coder.W_dec.device)


def activations(latents: Latents, features: Int[Tensor, " n"]) -> Float[Tensor, "rows n"]:
    """The activations of a few features, a column each; zeros where they do not fire."""
    column = torch.full((latents.d_sae,), -1, device=features.device)
    column[features] = torch.arange(len(features), device=features.device)
    wanted = (column[latents.indices] >= 0).nonzero().squeeze(1)
    found = latents.values.new_zeros(latents.pattern.batch, len(features))
    found[latents.rows[wanted], column[latents.indices[wanted]]] = latents.values[wanted]
    return found
