"""Features changed at the WRITTEN sites, and all else of them as it was: ablated, scaled, or held at a level.

    y' = y + Σ_f (α_f − a_f) W_dec[f],    α_f = factor · a_f + level

a_f is the activation of latent f on the model's own activations, so y' keeps the coder's error, its bias and every
other latent. Ablating and scaling change nothing where the feature does not fire; a level holds at every position. A
coder that writes several sites is changed at all of them, each by its columns of W_dec[f].

with changed(lm, hooked, tokens, kept, [Change(7), Change(42, factor=2), Change(99, level=12.5)]):
    logits = lm.logits(tokens)                        # 7 is ablated, 42 doubled, 99 held at 12.5
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from operator import index
from typing import SupportsIndex

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from matryoshka.coder.coder import SparseCoder
from matryoshka.coder.latents import Latents
from matryoshka.errors import MatryoshkaError
from matryoshka.lm.model import LanguageModel
from matryoshka.lm.sites import Site
from matryoshka.study.hooked import HookedCoder
from matryoshka.study.splice import by_site

Kept = Bool[Tensor, "batch position"]


@dataclass(frozen=True)
class Change:
    """Latent `feature` becomes α = factor · a + level, a what it is by itself; as it stands, an ablation.

    `level` is in the units in which activation × decoder row is raw.
    """

    feature: SupportsIndex
    factor: int | float = 0
    level: int | float = 0


@contextmanager
def changed(
    lm: LanguageModel, hooked: HookedCoder, tokens: Int[Tensor, "batch position"], kept: Kept, changes: Sequence[Change]
) -> Iterator[None]:
    """Within the block the language model, run on `tokens`, has these features changed at the `kept` positions.

    Raises MatryoshkaError for a feature that the coder does not have, or that is named twice.
    """
    x = torch.cat(list(lm.read(tokens, hooked.wiring.reads).values()), dim=-1)
    with shifted(lm, hooked.wiring.writes, shift(hooked.coder, x, kept, changes)):
        yield


@contextmanager
def shifted(lm: LanguageModel, sites: Sequence[Site], by: Float[Tensor, "batch position d_out"]) -> Iterator[None]:
    """Within the block `by` is added to the activations at `sites`, whose columns lie side by side."""
    with ExitStack() as stack:
        for site, part in by_site(sites, by).items():
            stack.enter_context(lm.replace(site, lambda y, part=part: y + part))
        yield


@torch.no_grad()
def shift(
    coder: SparseCoder, x: Float[Tensor, "batch position d_in"], kept: Kept, changes: Sequence[Change]
) -> Float[Tensor, "batch position d_out"]:
    """What the changes add to y, given what the coder reads: zeros but at the `kept` positions."""
    features = check_features(coder, [change.feature for change in changes])
    factor, level = (
        torch.tensor([getattr(change, name) for change in changes], dtype=coder.dtype, device=coder.device)
        for name in ("factor", "level")
    )
    a, rows = activations(coder.encode(x[kept]), features), coder.decoder_rows(features)
    by = torch.zeros(*kept.shape, rows.shape[1], dtype=coder.dtype, device=coder.device)
    by[kept] = (factor * a + level - a) @ rows
    return by


def check_features(coder: SparseCoder, features: Sequence[SupportsIndex]) -> Int[Tensor, " n"]:
    """These features as a tensor on the coder's device. Raises MatryoshkaError if one is not there, or there twice."""
    d_sae, numbers = coder.widths[-1], [index(feature) for feature in features]
    for number in numbers:
        if not 0 <= number < d_sae:
            raise MatryoshkaError(f"feature {number}: the coder has {d_sae:,}, numbered 0 to {d_sae - 1}")
    if len(set(numbers)) < len(numbers):
        raise MatryoshkaError(f"features {numbers}: each can be changed once")
    return torch.tensor(numbers, dtype=torch.int64, device=coder.device)


def activations(latents: Latents, features: Int[Tensor, " n"]) -> Float[Tensor, "rows n"]:
    """The activations of a few features, a column each; zeros where they do not fire."""
    column = torch.full((latents.d_sae,), -1, device=features.device)
    column[features] = torch.arange(len(features), device=features.device)
    wanted = (column[latents.indices] >= 0).nonzero().squeeze(1)
    dense = latents.values.new_zeros(latents.pattern.batch, len(features))
    dense[latents.rows[wanted], column[latents.indices[wanted]]] = latents.values[wanted]
    return dense
