"""The one reader: texts through the language model once, for all coders and all questions asked together.

    text       windows of a split (`batches`), prompts of a labelled text, a text of the user's own
    read       one forward pass a batch, up to the last site that any coder reads or writes (or `sites` beside them)
    Rows       what it leaves: tokens, documents, activations; of each coder which positions count, and its latents

Everything that looks at a coder on a text consumes these; what splices or takes gradients goes on from them.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from matryoshka.coder.latents import Latents
from matryoshka.data.rowfilter import RowCounts, Sorted, refuse_not_finite
from matryoshka.data.stream import side_by_side
from matryoshka.data.tokens import Windows
from matryoshka.lm.model import LanguageModel
from matryoshka.lm.sites import Site
from matryoshka.study.hooked import HookedCoder

READ_BATCH = 16
"""Windows at once where activations are all that is asked for."""
GPU_READ_TOKENS = 2**13
"""The same on a GPU in tokens, at least: what coders make of so many rows is no more than a large step of training."""
LOGIT_BATCH = 4
"""Windows at once where logits are needed: 4 × 128 tokens × 256k vocabulary entries are 0.5 GB in float32."""


class Text(NamedTuple):
    """Sequences of tokens that go through the language model together."""

    tokens: Int[np.ndarray, "batch position"]
    documents: Int[np.ndarray, "batch position"]
    """The document that each token lies in."""
    numbers: Int[np.ndarray, " batch"]
    """Of each sequence: a window's number within its split."""
    asked: Bool[np.ndarray, "batch position"] | None = None
    """The positions that are asked for, padding never among them; None: all."""


def read_batch(device: torch.device, context: int) -> int:
    """Windows of `context` tokens at once on this device, where activations are all that is asked for."""
    return max(READ_BATCH, GPU_READ_TOKENS // context) if device.type == "cuda" else READ_BATCH


def batches(windows: Windows, numbers: Int[np.ndarray, " n"], size: int) -> Iterator[Text]:
    """The windows `numbers`, `size` at a time, in this order."""
    for start in range(0, len(numbers), size):
        chosen = numbers[start : start + size]
        yield Text(windows[chosen], windows.documents(chosen), chosen)


def sequences(tokens: Int[np.ndarray, "n position"], size: int) -> Iterator[Text]:
    """Sequences of whatever origin, `size` at a time: each is a document of its own."""
    for start in range(0, len(tokens), size):
        part = tokens[start : start + size]
        numbers = np.arange(start, start + len(part))
        yield Text(part, np.repeat(numbers[:, None], part.shape[1], axis=1), numbers)


def spread_windows(windows: Windows, tokens: int) -> Int[np.ndarray, " n"]:
    """Numbers of windows that hold `tokens` tokens in all, spread evenly over the split: at least one, at most all."""
    return spread(min(len(windows), max(1, tokens // windows.context)), len(windows))


def spread(count: int, of: int) -> Int[np.ndarray, " count"]:
    """`count` of the numbers below `of`, evenly spread."""
    return np.arange(count) * of // count


class Rows:
    """One batch of text as the language model and the coders see it. A *row* is a position that counts for a coder."""

    def __init__(self, text: Text, tokens: Int[Tensor, "batch position"], activations: dict[Site, Tensor]) -> None:
        self.text, self.tokens, self.activations = text, tokens, activations
        self._positions: dict[int, Sorted] = {}
        self._latents: dict[tuple[int, int], Latents] = {}

    def kept(self, hooked: HookedCoder) -> Bool[Tensor, "batch position"]:
        """The positions that count for this coder."""
        return self._sorted(hooked).keep

    def not_finite(self, hooked: HookedCoder) -> Bool[Tensor, "batch position"]:
        """Those that would, were it not for a NaN or Inf."""
        return self._sorted(hooked).not_finite

    def _sorted(self, hooked: HookedCoder) -> Sorted:
        key = id(hooked.keep)
        if key not in self._positions:
            positions = hooked.keep.sort(self.tokens, self.activations)
            if self.text.asked is not None:
                asked = torch.from_numpy(self.text.asked).to(self.tokens.device)
                positions = Sorted(*(mask & asked for mask in positions))
            self._positions[key] = positions
        return self._positions[key]

    def x(self, hooked: HookedCoder) -> Float[Tensor, "rows d_in"]:
        """What the coder reads at its rows, the sites side by side."""
        return self.at(hooked.wiring.reads, self.kept(hooked))

    def y(self, hooked: HookedCoder) -> Float[Tensor, "rows d_out"]:
        """What stands at its rows where it writes, the sites side by side."""
        return self.at(hooked.wiring.writes, self.kept(hooked))

    def latents(self, hooked: HookedCoder) -> Latents:
        """The coder's latents of its rows, without a gradient."""
        key = id(hooked.coder), id(hooked.keep)
        if key not in self._latents:
            with torch.no_grad():
                self._latents[key] = hooked.coder.encode(self.x(hooked))
        return self._latents[key]

    def at(self, sites: Sequence[Site], positions: Bool[Tensor, "batch position"]) -> Float[Tensor, "rows d"]:
        """The activations at these sites and positions, the sites side by side."""
        return side_by_side({site: self.activations[site][positions] for site in sites}, sites)


@torch.no_grad()
def read(
    lm: LanguageModel, texts: Iterable[Text], coders: Sequence[HookedCoder], sites: Iterable[Site] = ()
) -> Iterator[Rows]:
    """The rows of every batch of `texts`, from one forward pass each, whatever the number of coders.

    `sites`: read as well. Raises MatryoshkaError at the end where more than a few rows were NaN or Inf.
    """
    wanted = list(dict.fromkeys((*(site for hooked in coders for site in hooked.wiring.sites), *sites)))
    filters = {id(hooked.keep): hooked for hooked in coders}
    seen, bad = 0, {key: torch.zeros((), dtype=torch.int64, device=lm.device) for key in filters}
    for text in texts:
        tokens = torch.from_numpy(text.tokens).to(lm.device)
        rows = Rows(text, tokens, lm.read(tokens, wanted))
        seen += text.tokens.size
        for key, hooked in filters.items():
            bad[key] += rows.not_finite(hooked).sum()
        yield rows
    for key, hooked in filters.items():
        refuse_not_finite(RowCounts(read=seen, not_finite=int(bad[key])), hooked.wiring.sites, lm)


def predicting(kept: Bool[Tensor, "batch position"]) -> Bool[Tensor, "batch position"]:
    """The kept positions but for a sequence's last, whose next token is not there."""
    return kept & (torch.arange(kept.shape[1], device=kept.device) < kept.shape[1] - 1)
