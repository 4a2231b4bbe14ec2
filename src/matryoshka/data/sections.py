"""The sections of a configuration that say which text is read, and how activations are.

They are all of this room that flags and recipes need, so nothing heavy is imported here.
"""

import math
from pathlib import Path
from typing import Annotated

from pydantic import Field

from matryoshka.config import Section

SLACK = 1.1
"""A share of documents that is chosen by their hashes is nearly, not quite, that share of the tokens."""


class TextConfig(Section):
    """Which text is read, and how it is cut into windows and splits."""

    source: str = "bundled"
    """Text to read: a .txt, .jsonl, .jsonl.gz, .jsonl.zst or .parquet file, a folder of them, the name of
    a data set on the Hugging Face hub, or `bundled`. A .txt file is one document; fewer than 20 of them are cut
    into blocks of paragraphs."""
    field: str = "text"
    """Column that holds the text of a document."""
    subset: str | None = None
    """Subset (configuration) of a hub data set."""
    split: str = "train"
    """Split of a hub data set. Held-out documents are taken out of it by `held_out`."""
    context: int = Field(default=128, ge=2)
    """Tokens in a window, BOS included."""
    held_out: float = Field(default=0.05, gt=0, lt=1)
    """Share of the documents that is never trained on, chosen by a hash of their text."""
    limit: int | None = Field(default=None, ge=1)
    """Stop after so many tokens of the training split, and nearly as many held-out ones as belong to them; none: as far
    as the run needs, the bundled text to its end."""

    def reaching(self, tokens: int) -> int:
        """The limit with which `tokens` held-out ones are read, or all that there are."""
        return math.ceil(tokens * SLACK * (1 - self.held_out) / self.held_out)

    def read_on(self, train: int, held_out: int) -> "TextConfig":
        """The same text, read at least until there are so many tokens of either split; the bundled one, which is
        small, is read to its end anyway."""
        if self.source == "bundled":
            return self
        return self.model_copy(update={"limit": max(train, self.reaching(held_out), self.limit or 0)})

    def held_out_at(self, limit: int) -> int:
        """How many held-out tokens are read with this limit, or all that there are."""
        return int(limit * self.held_out / (1 - self.held_out) / SLACK)


class ActivationConfig(Section):
    """How activations are read and shuffled."""

    chunk: Annotated[int, Field(ge=1)] = 131_072
    """Tokens read at once and shuffled together before they are cut into batches. Memory grows with it."""
    lm_batch: Annotated[int, Field(ge=1)] = 16
    """Windows in one forward pass of the language model."""
    cache: Path | None = None
    """Folder of activations on disk: written first if it is not there, then trained from."""
