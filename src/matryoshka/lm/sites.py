"""Named places in a language model, what a coder reads and writes there, and a table row for each model family.

    Site      one place: `8.mlp_in`
    Source    sites that are read together, and sites that are written together
    Wiring    the sources of a coder: SAE r → r, transcoder r → w, crosscoder one source of several reads and writes
    FAMILIES  where each model family keeps its parts

Blocks with a parallel residual (Pythia) have no resid_mid: both halves read resid_pre.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import total_ordering

from matryoshka.errors import MatryoshkaError, did_you_mean

KINDS = {
    "resid_pre": "what the block reads",
    "attn_in": "what attention reads: after its norm",
    "attn_out": "what attention ADDS to the residual (Gemma-2/3: after their norm that follows attention)",
    "resid_mid": "resid_pre + attn_out",
    "ln2_normalized": "what the MLP reads, before the norm's gain and bias",
    "mlp_in": "what the MLP reads: after the norm, gain and bias included",
    "mlp_out": "what the MLP ADDS to the residual (Gemma-2/3: after their norm that follows the MLP)",
    "resid_post": "resid_mid + mlp_out: what the block returns",
}
"""In the order of the forward pass (raw Hugging Face model: nothing folded, nothing centred)."""

TRANSFORMER_LENS = {
    "hook_resid_pre": "resid_pre",
    "hook_attn_out": "attn_out",
    "hook_resid_mid": "resid_mid",
    "hook_mlp_in": "resid_mid",  # PRE-norm there: never our mlp_in
    "ln2.hook_normalized": "ln2_normalized",
    "hook_mlp_out": "mlp_out",
    "hook_resid_post": "resid_post",
}


@total_ordering
@dataclass(frozen=True)
class Site:
    """A place in a language model, written `8.mlp_in`. Sites are ordered as the forward pass meets them."""

    kind: str
    layer: int

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise MatryoshkaError(f"unknown kind of site {self.kind!r}{did_you_mean(self.kind, KINDS)}")
        if self.layer < 0:
            raise MatryoshkaError(f"site {self}: layers count from 0")

    def __str__(self) -> str:
        return f"{self.layer}.{self.kind}"

    def __lt__(self, other: "Site") -> bool:
        order = list(KINDS)
        return (self.layer, order.index(self.kind)) < (other.layer, order.index(other.kind))

    @property
    def in_residual(self) -> bool:
        """What is written here is added to the residual stream or is the stream itself, so it has a direct path to the
        logits; the other kinds are read off it through a norm."""
        return self.kind in {"resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post"}

    @classmethod
    def parse(cls, text: str) -> "Site":
        """`8.mlp_in`, or a TransformerLens name such as `blocks.8.hook_resid_mid`."""
        match = re.fullmatch(r"(blocks\.)?([0-9]+)\.(.+)", text)
        if match and match[1] and match[3] in TRANSFORMER_LENS:
            return cls(TRANSFORMER_LENS[match[3]], int(match[2]))
        if match and not match[1] and match[3] in KINDS:
            return cls(match[3], int(match[2]))
        layer = digits[0] if (digits := re.search(r"[0-9]+", text)) else "0"
        prefix, names = ("blocks.", TRANSFORMER_LENS) if text.startswith("blocks") else ("", KINDS)
        known = [f"{prefix}{layer}.{name}" for name in names]
        raise MatryoshkaError(f"unknown site {text!r}{did_you_mean(text, known, cutoff=0.75)}")


@dataclass(frozen=True)
class Source:
    """Latents that read the same sites, concatenated in this order, and write the same sites, concatenated too."""

    reads: tuple[Site, ...]
    writes: tuple[Site, ...]


@dataclass(frozen=True)
class Wiring:
    """Which sites a coder reads and writes. All that knows both sites and tensors joins them through this."""

    sources: tuple[Source, ...]

    @classmethod
    def of(cls, reads: Sequence[Site], writes: Sequence[Site]) -> "Wiring":
        """One source: an SAE where both are the same site, a transcoder where they are two, otherwise a crosscoder."""
        return cls((Source(tuple(reads), tuple(writes)),))

    @property
    def reads(self) -> tuple[Site, ...]:
        """Every site that is read, once, in the order of the sources."""
        return tuple(dict.fromkeys(site for source in self.sources for site in source.reads))

    @property
    def writes(self) -> tuple[Site, ...]:
        """Every site that is written, once, in the order of the sources."""
        return tuple(dict.fromkeys(site for source in self.sources for site in source.writes))

    @property
    def sites(self) -> tuple[Site, ...]:
        """Every site that is read or written, once."""
        return tuple(dict.fromkeys((*self.reads, *self.writes)))

    @property
    def head(self) -> Site:
        """What the first block that is written into reads: up to there nothing depends on what is spliced in."""
        return Site("resid_pre", min(site.layer for site in self.writes))

    def __str__(self) -> str:
        return f"{' + '.join(map(str, self.reads))} → {' + '.join(map(str, self.writes))}"


@dataclass(frozen=True)
class Family:
    """Where a model family keeps its parts: two paths from the model, then names of modules within a block. Llama's
    names, which most families took over, need not be said.

    Sizes are not here, nor whether the residual is parallel: those stand in each model's config.
    """

    examples: str
    blocks: str = "model.layers"
    final_norm: str = "model.norm"
    """The norm before the unembedding."""
    attn_norm: str = "input_layernorm"
    attention: str = "self_attn"
    attn_added: str = "self_attn"
    """The module whose output attention adds to the residual."""
    mlp_norm: str = "post_attention_layernorm"
    mlp: str = "mlp"
    mlp_added: str = "mlp"
    """The module whose output the MLP adds to the residual."""
    gain_offset: float = 0.0
    """The norms multiply by `gain_offset + weight`."""
    attention_implementation: str | None = None
    """Forced where transformers' default would compute something else."""
    prepend_bos: bool = False
    """Texts begin with BOS although the tokenizer does not put it there."""


_GEMMA3 = Family(
    examples="Gemma-3 270m, 1b",
    attn_added="post_attention_layernorm",
    mlp_norm="pre_feedforward_layernorm",
    mlp_added="post_feedforward_layernorm",
    gain_offset=1.0,
)

FAMILIES = {
    "gpt2": Family(
        examples="GPT-2 small, medium, large, xl",
        blocks="transformer.h",
        final_norm="transformer.ln_f",
        attn_norm="ln_1",
        attention="attn",
        attn_added="attn",
        mlp_norm="ln_2",
        prepend_bos=True,
    ),
    # sdpa has no soft-capping of attention scores: transformers 4 left it out without a word
    "gemma2": replace(_GEMMA3, examples="Gemma-2 2b, 9b, 27b", attention_implementation="eager"),
    "gemma3_text": _GEMMA3,
    # with a vision tower beside it
    "gemma3": replace(
        _GEMMA3,
        examples="Gemma-3 4b, 12b, 27b",
        blocks="model.language_model.layers",
        final_norm="model.language_model.norm",
    ),
    "llama": Family(examples="Llama, SmolLM2"),
    "qwen2": Family(examples="Qwen2, Qwen2.5"),
    "qwen3": Family(examples="Qwen3"),
    "gpt_neox": Family(
        examples="Pythia, GPT-NeoX",
        blocks="gpt_neox.layers",
        final_norm="gpt_neox.final_layer_norm",
        attention="attention",
        attn_added="post_attention_dropout",
        mlp_added="post_mlp_dropout",
    ),
}
"""Keyed by the config's `model_type`."""
