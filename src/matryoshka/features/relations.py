"""How features stand to each other: directions that point alike, firings that come together, broader and finer ones.

    cosine      of decoder rows, all pairs
    coactive    P(other fires | this fires), P(this | other), lift; the partners with the largest Jaccard index
    parents     features of an earlier ring that cover this one (scores/coverage.py). Candidates: whether the parent
                also takes part in reconstructing these tokens is another question (analysis/hierarchy.py).

Co-firing is counted over the whole pass, on at most `summary.FIRINGS` firings of each feature, evenly spread over it:
exact for rarer features; otherwise P(other | this) has a standard error of at most 1.6 %, and P(this | other), which
follows from it by Bayes' rule, one of as many times more as this one fires more often than the other.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from matryoshka.features.summary import Firings, ranges
from matryoshka.scores.coverage import PARENTS, covers
from matryoshka.study.recording import RecordedCoder

PARTNERS = 10
"""Cosine neighbours and co-active partners of each feature."""
BLOCK_SCORES = 4_000_000
"""Pairs of features scored at once, and firings counted at once."""


class Partners(NamedTuple):
    """Other features of each feature, best first; −1 where there are fewer."""

    other: Int[np.ndarray, "n partners"]
    value: Float[np.ndarray, "n partners"]
    """Cosine, or P(other | this)."""

    def of(self, i: int, name: str) -> dict[str, np.ndarray]:
        """Those of the i-th feature, as schema.LAYOUT names them."""
        some = self.other[i] >= 0
        return {f"{name}_other": self.other[i][some], f"{name}_value": self.value[i][some]}


@torch.no_grad()
def cosine_neighbours(W_dec: Float[Tensor, "d_sae d_out"]) -> Partners:
    """The PARTNERS other features whose decoder rows point most alike."""
    rows = torch.nn.functional.normalize(W_dec.float(), dim=1)
    neighbours = _none(len(rows), min(PARTNERS, max(1, len(rows) - 1)))
    step = max(1, BLOCK_SCORES // len(rows))
    for start in range(0, len(rows), step):
        cosine = rows[start : start + step] @ rows.T
        i = torch.arange(len(cosine), device=cosine.device)
        cosine[i, start + i] = -2.0
        value, other = (part.cpu().numpy() for part in cosine.topk(neighbours.other.shape[1]))
        neighbours.other[start : start + step] = np.where(value > -2, other, -1)
        neighbours.value[start : start + step] = value
    return neighbours


def coactive(
    recorded: RecordedCoder, widths: Sequence[int], count: Int[np.ndarray, " d_sae"], first: int, firings: Firings
) -> tuple[Partners, Partners]:
    """(co-active partners, parents) of the features `first` …, of which `firings` holds a sample of each.

    `count`: on how many tokens each feature of the dictionary fires.
    """
    rings = torch.from_numpy(np.searchsorted(widths, np.arange(recorded.d_sae), side="right"))
    firing = torch.from_numpy(count)
    partners, parents = (_none(len(firings.offsets) - 1, min(most, recorded.d_sae)) for most in (PARTNERS, PARENTS))
    l0 = max(1.0, len(recorded.indices) / max(1, recorded.rows))
    for start, end in ranges(firings.offsets, BLOCK_SCORES / l0, max(1, BLOCK_SCORES // recorded.d_sae)):
        pairs = _cofirings(recorded, firings, start, end).float()
        sampled = torch.from_numpy(np.diff(firings.offsets[start : end + 1])).clamp(min=1)[:, None]
        best = _partners(pairs.div_(sampled), sampled, first + start, firing, rings, recorded.rows)
        for kept, new in zip((partners, parents), best, strict=True):
            kept.other[start:end], kept.value[start:end] = new
    return partners, parents


def _none(n: int, most: int) -> Partners:
    """Filled in place: small results of each batch kept among its large temporaries would break up the memory."""
    return Partners(np.full((n, most), -1), np.zeros((n, most)))


def _cofirings(recorded: RecordedCoder, firings: Firings, first: int, end: int) -> Int[Tensor, "n d_sae"]:
    """On how many of each feature's sampled places every feature fires."""
    place = firings.places[firings.offsets[first] : firings.offsets[end]]
    starts = torch.from_numpy(recorded.offsets[place])
    lengths = torch.from_numpy(recorded.offsets[place + 1]) - starts
    ends = lengths.cumsum(0)
    total = int(ends[-1]) if len(ends) else 0
    small = torch.int32 if len(recorded.indices) < 2**31 else torch.int64  # half the memory to go through
    entries = torch.repeat_interleave((starts - ends + lengths).to(small), lengths, output_size=total)
    entries += torch.arange(total, dtype=small)
    feature = np.repeat(np.arange(end - first, dtype=np.int32), np.diff(firings.offsets[first : end + 1]))
    keys = torch.repeat_interleave(torch.from_numpy(feature * recorded.d_sae), lengths, output_size=total)
    keys += recorded.features_of(entries)
    return torch.bincount(keys, minlength=(end - first) * recorded.d_sae).view(end - first, recorded.d_sae)


def _partners(
    given_this: Float[Tensor, "n d_sae"],
    sampled: Int[Tensor, "n 1"],
    first: int,
    count: Int[Tensor, " d_sae"],
    rings: Int[Tensor, " d_sae"],
    rows: int,
) -> tuple[Partners, Partners]:
    n = torch.arange(len(given_this))
    own = count[first : first + len(n), None]
    given_this[n, first + n] = 0.0
    both = given_this * own
    jaccard = both / (own + count - both).clamp(min=1)
    broader = covers(given_this, sampled, count, rows) & (rings < rings[first : first + len(n), None])
    return _best(jaccard, given_this, PARTNERS), _best(torch.where(broader, jaccard, 0.0), given_this, PARENTS)


def _best(score: Float[Tensor, "n d_sae"], value: Float[Tensor, "n d_sae"], most: int) -> Partners:
    best = score.topk(min(most, score.shape[1]))
    other = torch.where(best.values > 0, best.indices, -1)
    return Partners(other.numpy(), value.gather(1, best.indices).numpy())
