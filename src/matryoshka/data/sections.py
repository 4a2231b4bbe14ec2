"""The sections of a configuration that say which text is read, and how activations are.

They are all of this room that flags and recipes need, so nothing heavy is imported here.
"""

import hashlib
import math
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from matryoshka.config import Count, Section, Seed

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
    lm_batch: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Windows in one forward pass of the language model. auto: 16 on a CPU; on a GPU as many as make 65,536 tokens, or
    an eighth of the memory that the model leaves free."""
    cache: Path | None = None
    """Folder of activations on disk: written first if it is not there, then trained from."""


Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
SYNTHETIC_VERSION = 1
"""Raised whenever the same section would give other samples."""


class SyntheticConfig(Section):
    """Known features in place of a language model and a text; by default SynthSAEBench-16k's (arXiv:2602.14687)."""

    features: Count = 16_384
    """Known features, numbered from the most frequent one to the rarest."""
    dimension: Count = 768
    """Numbers in an activation."""
    trees: Annotated[int, Field(ge=0)] = 128
    """The first so many features are roots of a tree each; what no tree takes stands alone."""
    branching: Annotated[int, Field(ge=2)] = 4
    """Children of a feature that has any. A child is on only where its parent is, and in proportion to it."""
    depth: Annotated[int, Field(ge=1)] = 3
    """Levels of a tree below its root."""
    exclusive: bool = True
    """At most one child of a feature is on at a time."""
    exponent: Positive = 0.5
    """Of Zipf's law, by which features are on less and less often."""
    p_max: Annotated[float, Field(gt=0, lt=1)] = 0.4
    """How often the first feature is on."""
    p_min: Annotated[float, Field(gt=0, lt=1)] = 5e-4
    """How often the last feature is on."""
    correlation: NotNegative = 0.1
    """Standard deviation of the loadings on the factors that make features fire together."""
    factors: Count = 25
    """Such factors."""
    magnitude_first: Positive = 5.0
    """Mean magnitude of the first feature where it is on; linear from there to the last one's."""
    magnitude_last: Positive = 4.0
    """Mean magnitude of the last feature."""
    deviation_mean: NotNegative = 0.5
    """A feature's magnitudes deviate from their mean by |N(deviation_mean, deviation_spread²)|, drawn once for each."""
    deviation_spread: NotNegative = 0.5
    """See there."""
    bias: NotNegative = 0.5
    """Norm of what is added to every activation."""
    orthogonal_steps: Annotated[int, Field(ge=0)] = 100
    """Steps of Adam that bring the features' random directions closer to orthogonal."""
    orthogonal_lr: Positive = 3e-4
    """Their learning rate."""
    seed: Seed = 42
    """Of everything about the features. The samples of a run have training.seed besides."""

    @property
    def levels(self) -> tuple[int, ...]:
        """Features in each level of the forest, the roots first."""
        return tuple(self.trees * self.branching**level for level in range(self.depth + 1)) if self.trees else ()

    @property
    def hash(self) -> str:
        """The same for the same features and samples."""
        return hashlib.sha256(f"{SYNTHETIC_VERSION} {self.model_dump_json()}".encode()).hexdigest()[:16]

    @property
    def name(self) -> str:
        """What their model is called."""
        return f"synthetic-{self.features}-{self.hash[:8]}"

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.p_min >= self.p_max:
            raise ValueError(f"p_min is {self.p_min:g}, expected less than p_max, which is {self.p_max:g}")
        if sum(self.levels) > self.features:
            raise ValueError(f"{self.trees} such trees hold {sum(self.levels):,} features, of {self.features:,}")
        return self
