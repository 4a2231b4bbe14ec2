"""What an analysis is given: coders on the tokens of one recording."""

from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from matryoshka.coder.card import Card
from matryoshka.study.hooked import HookedCoder
from matryoshka.study.recording import RecordedCoder


class Observed(NamedTuple):
    """A coder, and what it made of a text."""

    name: str
    hooked: HookedCoder
    recorded: RecordedCoder

    def decoder_rows(self, features: Int[np.ndarray, " n"]) -> Float[Tensor, "n d_out"]:
        """Of these features, on the coder's device."""
        coder = self.hooked.coder
        return coder.decoder_rows(torch.from_numpy(features).to(coder.device))


class Pair(NamedTuple):
    """Two coders, in the order in which they were given: A and B in all that is said of them."""

    first: Observed
    second: Observed
    ceiling: bool = False
    """Whether they differ in their seeds alone: no other pair can be expected to match better."""
    places: Literal["tokens", "words"] = "tokens"
    """What a row of theirs is."""
    no_cosine: str | None = None
    """Why their decoder rows have none, whatever they write; None where that depends on what they write."""
    letters: dict[str, Float[np.ndarray, " d_sae"]] | None = None
    """By side, of each latent the share of its firings that are on tokens with a letter or a digit; None where nobody
    has looked."""

    @property
    def sides(self) -> dict[str, Observed]:
        return {"A": self.first, "B": self.second}

    @property
    def rows(self) -> Bool[np.ndarray, " places"]:
        """The places that count for both."""
        return self.first.recorded.kept & self.second.recorded.kept

    @property
    def documents(self) -> Int[np.ndarray, " rows"]:
        """The document of each row."""
        return np.asarray(self.first.recorded.documents)[self.rows]


def seeds_of_one_recipe(first: Card, second: Card) -> bool:
    """Whether two coders of one architecture differ, as far as their cards tell, in nothing but what chance made of
    them: the same model, sites, windows, text and tokens. False where a card does not know its training."""
    a, b = first.trained, second.trained
    if a is None or b is None or (a.tokens, a.text, a.text_hash) != (b.tokens, b.text, b.text_hash):
        return False
    return (first.model, first.sources, first.context) == (second.model, second.sources, second.context)
