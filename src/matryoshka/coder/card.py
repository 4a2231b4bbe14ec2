"""What a coder is *of*: saved in its config.json, made by training and by importers alike. Imports no torch.

All study starts from a coder and its card. Sites are names here: what they are is the language model's room's business.
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from matryoshka.config import Section

Sites = Annotated[tuple[str, ...], Field(min_length=1)]


class SourceCard(Section):
    """Latents that read the same sites, concatenated in this order, and write the same sites, concatenated too."""

    reads: Sites
    writes: Sites


class ModelCard(Section):
    """The language model, or the synthetic one in its place."""

    name: str
    """Hub id, folder, GGUF file, or `bundled`; of a synthetic model what it is called."""
    revision: str | None = None
    """Commit on the hub."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision in which its activations were read."""
    synthetic: dict[str, int | float | bool] | None = None
    """The section of its configuration, of a synthetic model: its activations are drawn from known features."""


class RowCard(Section):
    """Which rows count: all but BOS, first tokens, and norms above these."""

    largest_norms: dict[str, float]
    """By site: a larger norm is an attention sink's."""
    sample: int
    """Tokens that this was measured on."""


class TrainingCard(Section):
    """What the coder was trained on, and what it was like at the end."""

    tokens: int
    """That it has seen."""
    left_out: int
    """BOS, first tokens and sinks among those read."""
    not_finite: int
    """NaN or Inf among those read."""
    text: dict[str, str | int | float | None]
    """The text section of its configuration: source, field, context, share held out …; empty of synthetic samples."""
    text_hash: str
    """Of the tokens made of it, or of all that the samples depend on."""
    dead_after_tokens: int
    dead: tuple[Annotated[int, Field(ge=0)], ...]
    """Latents that did not fire in the last `dead_after_tokens` tokens."""


class Card(Section):
    """See the module's docstring."""

    model: ModelCard
    sources: Annotated[tuple[SourceCard, ...], Field(min_length=1)]
    context: Annotated[int, Field(ge=1)]
    """Tokens in a window; 1 of synthetic samples, which stand alone."""
    prepend_bos: bool
    """Whether every window begins with the tokenizer's BOS token."""
    rows: RowCard | None = None
    """None where nobody has measured it yet."""
    trained: TrainingCard | None = None
    """None where that is not known."""
    origin: str
    """The program that made it, and its version."""

    @model_validator(mode="after")
    def _rows_of_its_sites(self) -> "Card":
        sites = {site for source in self.sources for site in (*source.reads, *source.writes)}
        if self.rows is not None and (foreign := self.rows.largest_norms.keys() - sites):
            raise ValueError(f"rows are of {min(foreign)}, which the coder neither reads nor writes")
        return self
