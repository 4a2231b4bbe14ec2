"""What the latents of one coder are like as a whole, to be laid beside those of other layers.

    density       share of the coder's tokens on which a latent fires
    entropy       −Σ p log₂ p over the tokens of the vocabulary that it fires on, p by firings; in bits
    position      share of the coder's tokens that lie less far into their documents, mean over its firings; where a
                  latent fires anywhere alike it is ½
    logit effect  σ over the vocabulary of what its mean activation adds to the logits directly (`lm.unembed`), where a
                  coder writes into the residual stream; of at most LOGIT_LATENTS latents

All but the last are exact sums over the recording's active entries.
"""

from collections.abc import Sequence
from functools import reduce
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int

from matryoshka.analysis.corpus import Corpus
from matryoshka.analysis.matching import ENTRIES, Living
from matryoshka.analysis.observed import Observed
from matryoshka.lm.model import LanguageModel
from matryoshka.lm.unembed import direct_logits
from matryoshka.study.final_norm import final_scale
from matryoshka.study.hooked import HookedCoder
from matryoshka.study.reader import spread
from matryoshka.study.recording import RecordedCoder

LOGIT_LATENTS = 256
BINS = 60
QUARTILES = (25, 50, 75)


class Axis(NamedTuple):
    """What histograms of a property are taken over, the same for all coders."""

    low: float
    high: float
    logarithmic: bool


AXES = {
    "density": Axis(-6, 0, True),
    "entropy": Axis(0, 15, False),
    "position": Axis(0, 1, False),
    "logit effect": Axis(-4, 2, True),
}
"""Of each property; log₁₀ where it is logarithmic. What lies outside counts to the outermost bins."""


def profiles(several: Sequence[Observed], corpus: Corpus) -> list[dict[str, Any]]:
    """Of each coder and property: latents, quartiles, and a histogram over its axis. No logit effect of a coder that
    writes nothing into the residual stream."""
    depths, scale = corpus.windows.depths(corpus.numbers).reshape(-1), final_scale(corpus.lm, corpus.windows)
    described = []
    for member in several:
        living, means = Living.of(member.recorded, member.recorded.kept), mean_activations(member.recorded)
        features = living.features
        values = {
            "density": living.firings / max(1, living.rows),
            "entropy": token_entropies(member.recorded)[features],
            "position": mean_positions(member.recorded, depths)[features],
        }
        some = features[spread(min(len(features), LOGIT_LATENTS), len(features))]
        if (effects := logit_effects(corpus.lm, member.hooked, some, means[some], scale)) is not None:
            values["logit effect"] = effects
        described.append({name: _described(of, AXES[name]) for name, of in values.items()})
    return described


def _described(values: Float[np.ndarray, " n"], axis: Axis) -> dict[str, Any]:
    """A histogram in BINS bins and the quartiles; None of no latents."""
    with np.errstate(divide="ignore"):
        scaled = np.log10(values) if axis.logarithmic else values
    counts = np.histogram(scaled.clip(axis.low, axis.high), BINS, axis[:2])[0]
    quartiles = np.percentile(values, QUARTILES).tolist() if len(values) else [None] * len(QUARTILES)
    return {"latents": len(values), "quartiles": quartiles, "counts": counts.tolist()}


def mean_activations(recorded: RecordedCoder) -> Float[np.ndarray, " d_sae"]:
    """Of each latent the mean of its values where it fires; 0 of one that never does."""
    return _over_firings(recorded, lambda some: recorded.values[some])


def mean_positions(recorded: RecordedCoder, depths: Int[np.ndarray, " places"]) -> Float[np.ndarray, " d_sae"]:
    """Of each latent the mean share of the coder's tokens that lie less far into their documents than its firings, of
    equally far ones half. `depths`: how many tokens of its document lie before each place."""
    counts = np.bincount(depths[recorded.kept])
    before = np.cumsum(counts) - counts / 2
    shares = np.append(before / max(1, recorded.rows), 0).astype(np.float32)
    places = np.repeat(np.arange(len(recorded.counts), dtype=np.int32), np.maximum(recorded.counts, 0))
    return _over_firings(recorded, lambda some: shares[depths[places[some]]])


def _over_firings(recorded: RecordedCoder, value: Any) -> Float[np.ndarray, " d_sae"]:
    """The mean over each latent's firings of value(entries)."""
    sums, firings = np.zeros((2, recorded.d_sae))
    for start in range(0, len(recorded.indices), ENTRIES):
        some = slice(start, start + ENTRIES)
        indices = recorded.indices[some]
        sums += np.bincount(indices, value(some), recorded.d_sae)
        firings += np.bincount(indices, minlength=recorded.d_sae)
    return sums / np.maximum(firings, 1)


def token_entropies(recorded: RecordedCoder) -> Float[np.ndarray, " d_sae"]:
    """Of each latent, in bits."""
    order = np.argsort(recorded.indices, kind="stable")
    firings = np.bincount(recorded.indices, minlength=recorded.d_sae)
    ends, entropies = np.cumsum(firings), np.zeros(recorded.d_sae)
    places = np.repeat(np.arange(len(recorded.counts), dtype=np.int32), np.maximum(recorded.counts, 0))
    first = 0
    while first < recorded.d_sae:
        start = int(ends[first] - firings[first])
        last = max(first + 1, int(np.searchsorted(ends, start + ENTRIES, side="right")))
        chosen = order[start : int(ends[last - 1])]
        latent, token = recorded.indices[chosen].astype(np.int64), recorded.tokens[places[chosen]]
        pairs, times = np.unique((latent << 32) | token, return_counts=True)
        latent = pairs >> 32
        p = times / firings[latent]
        entropies += np.bincount(latent, -p * np.log2(p), recorded.d_sae)
        first = last
    return entropies


def logit_effects(
    lm: LanguageModel,
    hooked: HookedCoder,
    features: Int[np.ndarray, " n"],
    means: Float[np.ndarray, " n"],
    scale: float,
) -> Float[np.ndarray, " n"] | None:
    """σ over the vocabulary of what `means` of these latents add to the logits directly, of all that they write into
    the residual stream together; None where that is nothing. `scale`: what the final norm divides by."""
    sites, coder = hooked.wiring.writes, hooked.coder
    rows = coder.decoder_rows(torch.from_numpy(features).to(coder.device))
    parts = rows.split([lm.info.check(site) for site in sites], dim=1)
    direct = [part for site, part in zip(sites, parts, strict=True) if site.in_residual]
    if not direct:
        return None
    logits = direct_logits(lm, reduce(torch.add, direct), scale)[:, : len(lm.token_bytes)]
    return means * logits.std(dim=1, correction=0).double().cpu().numpy()
