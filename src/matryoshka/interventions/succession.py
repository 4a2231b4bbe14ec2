"""How far a latent of a later coder falls where one of an earlier coder is removed.

    y' = y − a d_a      at the sites that the earlier coder writes, its error kept; the later one reads what comes of it

1. a trial is a window in which both fire
2. removed: the latent itself, wherever it fires in the window. Matched: at the same tokens, each time, another latent
   that fires on the token, namely the one that fires about as often (the nearest by the logarithm)
3. at every token on which both fire: by how much the later one's activation falls, and whether it is silent then

Laptev et al. 2025 (arXiv:2502.03032) so tell a predecessor from what is merely active beside it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from matryoshka.coder.latents import Latents
from matryoshka.data.stream import side_by_side
from matryoshka.data.tokens import Windows
from matryoshka.interventions.changes import Kept, shifted
from matryoshka.lm.model import LanguageModel
from matryoshka.progress import Progress, silent
from matryoshka.study.hooked import HookedCoder
from matryoshka.study.reader import Rows, batches, read, read_batch

REMOVED, MATCHED = range(2)
"""Kinds of removal."""


class Removal(NamedTuple):
    """One window in which a latent of the earlier coder is removed."""

    window: int
    """Its number within the split."""
    predecessor: int
    successor: int


class Falls(NamedTuple):
    """Sums over the tokens of each trial on which both latents fire."""

    before: Float[np.ndarray, " trials"]
    """Of the successor's activation as the model is."""
    after: Float[np.ndarray, "kind trials"]
    """And after each kind of removal."""
    tokens: Int[np.ndarray, " trials"]
    died: Int[np.ndarray, "kind trials"]
    """On how many of them the successor is silent then."""


def upstream(first: HookedCoder, second: HookedCoder) -> bool:
    """Whether all that the first coder writes lies before all that the second reads, or is the same."""
    return max(first.wiring.writes) <= min(second.wiring.reads)


@torch.no_grad()
def falls(
    lm: LanguageModel,
    windows: Windows,
    first: HookedCoder,
    second: HookedCoder,
    trials: Sequence[Removal],
    firings: Int[np.ndarray, " d_sae"],
    progress: Progress = silent,
) -> Falls:
    """Run every trial. The first coder has to be `upstream` of the second.

    `firings`: on how many tokens each latent of the first fires, for the matched removal. `progress` counts trials.
    """
    if not upstream(first, second):
        raise ValueError(f"{first.wiring} is not upstream of {second.wiring}")
    size, parts, head = read_batch(lm.device, windows.context), list[Falls](), first.wiring.head
    log_firings = torch.from_numpy(np.log(np.maximum(1, firings))).to(lm.device)
    texts = batches(windows, np.array([trial.window for trial in trials]), size)
    for rows in read(lm, texts, [first, second], [head]):
        done = sum(len(part.before) for part in parts)
        of_batch = torch.tensor(trials[done : done + len(rows.tokens)], device=lm.device)
        parts.append(_of_batch(lm, rows, first, second, of_batch, log_firings))
        progress(done + len(of_batch), len(trials))
    return Falls(*(np.concatenate(of, axis=-1) for of in zip(*parts, strict=True)))


def _of_batch(
    lm: LanguageModel,
    rows: Rows,
    first: HookedCoder,
    second: HookedCoder,
    trials: Int[Tensor, "batch 3"],
    log_firings: Float[Tensor, " d_sae"],
) -> Falls:
    (_, predecessor, successor), head = trials.unbind(1), first.wiring.head
    kept = rows.kept(first), rows.kept(second)
    a = of_each(rows.latents(first), kept[0], predecessor)
    b = of_each(rows.latents(second), kept[1], successor)
    both = (a > 0) & (b > 0)
    removals = (
        -a[:, :, None] * first.coder.decoder_rows(predecessor)[:, None],
        _matched(first, rows.latents(first), kept[0], predecessor, a, log_firings),
    )
    after = []
    for by in removals:
        with lm.resumed(head.layer, rows.activations[head]), shifted(lm, first.wiring.writes, by):
            changed = lm.read(rows.tokens, second.wiring.reads)
        x = side_by_side({site: of[kept[1]] for site, of in changed.items()}, second.wiring.reads)
        after.append(of_each(second.coder.encode(x), kept[1], successor))
    left = torch.stack(after)
    sums = (b * both).sum(1), (left * both).sum(2), both.sum(1), ((left <= 0) & both).sum(2)
    before, then, tokens, died = (of.cpu().numpy() for of in sums)
    return Falls(before.astype(np.float64), then.astype(np.float64), tokens, died)


def of_each(latents: Latents, kept: Kept, features: Int[Tensor, " batch"]) -> Float[Tensor, "batch position"]:
    """The activations of one feature in each window, its own; zeros where it does not fire."""
    window, position = kept.nonzero(as_tuple=True)
    entries = (latents.indices == features[window[latents.rows]]).nonzero().squeeze(1)
    row, grid = latents.rows[entries], latents.values.new_zeros(kept.shape)
    grid[window[row], position[row]] = latents.values[entries]
    return grid


def _matched(
    first: HookedCoder,
    latents: Latents,
    kept: Kept,
    predecessor: Int[Tensor, " batch"],
    a: Float[Tensor, "batch position"],
    log_firings: Float[Tensor, " d_sae"],
) -> Float[Tensor, "batch position d_out"]:
    """What removing another latent adds at each token on which the predecessor fires; nothing where no other fires."""
    window, position = kept.nonzero(as_tuple=True)
    own = predecessor[window]
    others = (a[window, position] > 0)[latents.rows] & (latents.indices != own[latents.rows]) & (latents.values > 0)
    entries = others.nonzero().squeeze(1)
    distance = (log_firings[latents.indices[entries]] - log_firings[own[latents.rows[entries]]]).abs()
    order = latents.indices[entries].argsort(stable=True)  # of equally near ones the first
    for key in (distance, latents.rows[entries]):
        order = order[key[order].argsort(stable=True)]
    nearest = entries[order]
    row = latents.rows[nearest]
    starts = torch.ones_like(row, dtype=torch.bool)
    starts[1:] = row[1:] != row[:-1]
    nearest, row = nearest[starts], row[starts]
    directions = first.coder.decoder_rows(latents.indices[nearest])
    by = directions.new_zeros(*kept.shape, directions.shape[1])
    by[window[row], position[row]] = -latents.values[nearest, None] * directions
    return by
