"""SAEDashboard's `batch-N.json`: what it shows of each feature, made of our store of features.

Of what our store does not know (correlations with neurons, a histogram of all logits) the lists are empty. Numbers have
six significant digits; a BOS at the start of a window is left out, and positions count from the token after it.
"""

from collections.abc import Iterable, Iterator
from itertools import chain, pairwise
from typing import Any

import numpy as np
from jaxtyping import Float

from matryoshka.features.feature import Example, Feature, Histogram
from matryoshka.features.schema import About

BARS = 50
"""Of a histogram of activations, of equal width."""
ALIGNED = 3
"""Neurons of the written site that a decoder row is largest on."""
EMPTY = (
    "correlated_neurons_indices",
    "correlated_neurons_pearson",
    "correlated_neurons_l1",
    "correlated_features_indices",
    "correlated_features_pearson",
    "correlated_features_l1",
    "logits_hist_data_bar_heights",
    "logits_hist_data_bar_values",
    "decoder_weights_dist",
)
"""What our store does not know."""


def dashboard(feature: Feature, row: Float[np.ndarray, " d_out"], about: About, bos: bool) -> dict[str, Any]:
    """The 25 fields of a feature that fires. `row` is its decoder row; `bos`: windows begin with a BOS token."""
    heights, centres = bars(feature.histogram)
    aligned = np.argsort(-row, kind="stable")[:ALIGNED]
    effects = feature.logits
    top, bottom = (effects.top, effects.bottom) if effects is not None else ([], [])
    return {
        "feature_index": feature.index,
        "neuron_alignment_indices": aligned.tolist(),
        "neuron_alignment_values": rounded(row[aligned]),
        "neuron_alignment_l1": rounded(np.abs(row[aligned]) / max(np.abs(row).sum(), np.finfo(row.dtype).tiny)),
        "neg_str": [text(effect.token) for effect in bottom],
        "neg_values": rounded(effect.effect for effect in bottom),
        "pos_str": [text(effect.token) for effect in top],
        "pos_values": rounded(effect.effect for effect in top),
        "frac_nonzero": brief(feature.statistics.density),
        "freq_hist_data_bar_heights": heights,
        "freq_hist_data_bar_values": centres,
        "n_prompts_total": about.windows,
        "n_tokens_in_prompt": about.context,
        "dataset": about.text,
        "activations": [*_activations(feature, about.groups, bos)],
        "vector": rounded(row),
        **{name: [] for name in EMPTY},
    }


def _activations(feature: Feature, n_groups: int, bos: bool) -> Iterator[dict[str, Any]]:
    """Its examples: first the strongest, then some of each quantile group, with the share of its firings there."""
    count = feature.statistics.count
    ends = [part * count // n_groups for part in range(n_groups, -1, -1)]
    sizes = [high - low for high, low in pairwise(ends)]
    shares = chain([-1.0], (size / count for size in sizes if size))  # groups of no firing are not there
    for group, share in zip(feature.groups, shares, strict=True):
        low = -1.0 if share < 0 else group.low
        high = feature.statistics.max if share < 0 else group.high
        bounds = {"bin_min": brief(low), "bin_max": brief(high or 0.0), "bin_contains": brief(share)}
        yield from ({**bounds, **window(example, int(bos))} for example in group.examples)


def window(example: Example, start: int) -> dict[str, Any]:
    """Its tokens from position `start`, the activation on each, and at which of them the firing is that it is for."""
    values = np.zeros(len(example.tokens))
    values[example.positions] = example.values
    return {
        "tokens": [text(token) for token in example.tokens[start:]],
        "values": rounded(values[start:]),
        "qualifying_token_index": example.peak - start,
    }


def bars(histogram: Histogram) -> tuple[list[float], list[float]]:
    """(heights, centres) of BARS bins of equal width from 0 to the greatest activation: our bins are log-spaced, and
    activations are taken to lie evenly within each."""
    if not histogram.counts:
        return [], []
    edges = np.linspace(0, histogram.edges[-1], BARS + 1)
    below = np.interp(edges, histogram.edges, np.cumsum([0, *histogram.counts]))
    return rounded(np.diff(below)), rounded((edges[:-1] + edges[1:]) / 2)


def rounded(values: Iterable[float] | np.ndarray) -> list[float]:
    """Each to six significant digits."""
    exact = np.array(values if isinstance(values, np.ndarray) else list(values), np.float64)
    power = 10.0 ** (5 - np.floor(np.log10(np.where(exact == 0, 1, np.abs(exact)))))
    return (np.round(exact * power) / power).tolist()


def brief(value: float) -> float:
    """To six significant digits."""
    return rounded([value])[0]


def text(token: str) -> str:
    """A token without NUL, which no database of texts takes."""
    return token.replace("\0", "␀")
