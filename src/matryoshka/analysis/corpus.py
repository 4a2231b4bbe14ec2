"""The text that a recording is of, to be read again for what a recording does not hold."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property

import numpy as np
from jaxtyping import Int

from matryoshka.data.tokens import Windows
from matryoshka.lm.model import LanguageModel, Vocabulary
from matryoshka.lm.sites import Site
from matryoshka.study.hooked import HookedCoder
from matryoshka.study.opening import Studied
from matryoshka.study.reader import Rows, batches, read, read_batch, spread_windows


def evenly(corpus: "Corpus") -> Int[np.ndarray, " n"]:
    """Windows of its tokens, spread over the held-out text."""
    return spread_windows(corpus.windows, corpus.tokens)


class Corpus:
    """Held-out windows and the language model that reads them; each is opened when it is needed first."""

    def __init__(
        self, studied: Studied, tokens: int, device: str, choose: Callable[["Corpus"], np.ndarray] = evenly
    ) -> None:
        """`choose`: which windows are recorded, ascending numbers."""
        self._studied, self.tokens, self.device, self._choose = studied, tokens, device, choose

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The tokenizer alone."""
        return self._studied.open_vocabulary()

    @cached_property
    def lm(self) -> LanguageModel:
        return self._studied.open_lm(self.device)

    @cached_property
    def windows(self) -> Windows:
        """Of held-out text, whose tokens are made or read on now where they are not there."""
        return self._studied.open_tokens(self.vocabulary, "held_out", self.tokens).windows("held_out")

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """The bytes that each id of the vocabulary stands for."""
        return self.lm.token_bytes

    @cached_property
    def numbers(self) -> Int[np.ndarray, " n"]:
        """Of the recorded windows, in their order."""
        return self._choose(self)

    def rows(self, coders: Sequence[HookedCoder], sites: Iterable[Site] = ()) -> Iterator[Rows]:
        """The rows of the recorded windows, in the order of the recording's places."""
        size = read_batch(self.lm.device, self.windows.context)
        return read(self.lm, batches(self.windows, self.numbers, size), coders, sites)
