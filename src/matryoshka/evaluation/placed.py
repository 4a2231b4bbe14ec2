"""A coder where it belongs in a language model: which text it is measured on, and its reconstruction spliced in."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from matryoshka.coder.coder import SparseCoder
from matryoshka.data.tokens import Windows
from matryoshka.lm.model import LanguageModel
from matryoshka.lm.sites import Site

READ_BATCH = 16
LOGIT_BATCH = 4
"""Windows at once where logits are needed: 4 × 128 tokens × 256k vocabulary entries are 0.5 GB in float32."""


class Placed(NamedTuple):
    """A coder and where it belongs."""

    coder: SparseCoder
    read: Site
    write: Site

    @classmethod
    def load(cls, path: Path, lm: LanguageModel) -> "Placed":
        """The coder of a run, where its metadata say that it belongs, on the model's device."""
        coder = SparseCoder.load(path, lm.device)
        return cls(coder, Site.parse(coder.metadata["read"]), Site.parse(coder.metadata["write"]))

    @property
    def head(self) -> Site:
        """What the block that is written into reads: up to there nothing depends on what is spliced in."""
        return Site("resid_pre", self.write.layer)


class Text(NamedTuple):
    """Some windows, and the document that each of their tokens lies in."""

    tokens: Int[Tensor, "batch position"]
    documents: Int[np.ndarray, "batch position"]


def batches(lm: LanguageModel, windows: Windows, tokens: int, size: int) -> Iterator[Text]:
    """Windows that hold `tokens` tokens in all, spread evenly over the split (all, if there are fewer), `size` at a
    time."""
    numbers = spread(window_count(windows, tokens), len(windows))
    for start in range(0, len(numbers), size):
        chosen = numbers[start : start + size]
        yield Text(torch.from_numpy(windows[chosen]).to(lm.device), windows.documents(chosen))


def spread(count: int, of: int) -> Int[np.ndarray, " count"]:
    """`count` of the numbers below `of`, evenly spread."""
    return np.arange(count) * of // count


def window_count(windows: Windows, tokens: int) -> int:
    """How many windows `tokens` tokens are, at least one and at most all."""
    return min(len(windows), max(1, tokens // windows.context))


def predicting(kept: Bool[Tensor, "batch position"]) -> Bool[Tensor, "batch position"]:
    """The kept positions but for a window's last, whose next token is not there."""
    return kept & (torch.arange(kept.shape[1], device=kept.device) < kept.shape[1] - 1)


@contextmanager
def splice(
    lm: LanguageModel, site: Site, kept: Bool[Tensor, "batch position"], value: Float[Tensor, "*rows d"]
) -> Iterator[None]:
    """Within the block `value` stands at the `kept` positions of `site`; the others keep their own activations.

    `value`: one vector for all, or one for each kept position in their order.
    """

    def replaced(y: Tensor) -> Tensor:
        y = y.clone()
        y[kept] = value.to(y.dtype)
        return y

    with lm.replace(site, replaced):
        yield
