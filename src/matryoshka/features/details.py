"""A feature's arrays in the store, and what of a `Feature` is made of them.

histogram [bins], range [2]                 counts; least and greatest activation
limits [groups, 2]                          of the quantile groups, the strongest first; none if silent
top_tokens, top_counts, top_shares          by summed activation
example_group, _window, _document, _peak    one a row an example; group 0 is the strongest
example_offsets, positions, values          activations: CSR by example
cosine_other, _value; coactive_other, _value
logit_tokens, logit_effects                 the greatest, then as many of the least; empty without a direct path
"""

import zlib
from collections.abc import Callable, Mapping

import numpy as np
from safetensors.numpy import load, save

from matryoshka.features.feature import Effect, Example, Group, Histogram, Logits, TokenShare, edges

Arrays = Mapping[str, np.ndarray]


def pack(arrays: Arrays) -> bytes:
    """Compressed safetensors."""
    return zlib.compress(save(dict(arrays)), 3)


def unpack(blob: bytes) -> Arrays:
    """What `pack` packed. Raises zlib.error or SafetensorError for anything else."""
    return load(zlib.decompress(blob))


def histogram(arrays: Arrays) -> Histogram:
    """Empty for a silent feature."""
    counts = arrays["histogram"]
    if not counts.any():
        return Histogram([], [])
    return Histogram(edges(*arrays["range"].tolist()).tolist(), counts.tolist())


def top_tokens(arrays: Arrays, text: Callable[[int], str]) -> list[TokenShare]:
    """`text`: of a token."""
    columns = (arrays[name].tolist() for name in ("top_tokens", "top_shares", "top_counts"))
    return [TokenShare(text(token), share, count) for token, share, count in zip(*columns, strict=True)]


def logits(arrays: Arrays, text: Callable[[int], str]) -> Logits | None:
    """`text`: of a token."""
    columns = (arrays[name].tolist() for name in ("logit_tokens", "logit_effects"))
    effects = [Effect(text(token), effect) for token, effect in zip(*columns, strict=True)]
    half = len(effects) // 2
    return Logits(effects[:half], effects[half:]) if effects else None


def pairs(arrays: Arrays, relation: str) -> list[tuple[int, float]]:
    """(other feature, value) of `cosine` or `coactive`."""
    return list(zip(arrays[f"{relation}_other"].tolist(), arrays[f"{relation}_value"].tolist(), strict=True))


def groups(arrays: Arrays, windows: Callable[[set[int]], Mapping[int, list[str]]]) -> list[Group]:
    """`windows`: the tokens' texts of each window."""
    limits = arrays["limits"].tolist()
    if not limits:
        return []
    examples: list[list[Example]] = [[] for _ in range(len(limits) + 1)]
    names = ("example_group", "example_window", "example_document", "example_peak", "example_offsets")
    group, window, document, peak, offsets = (arrays[name].tolist() for name in names)
    positions, values = arrays["positions"].tolist(), arrays["values"].tolist()
    tokens = windows(set(window))
    for i, which in enumerate(group):
        where, what = positions[offsets[i] : offsets[i + 1]], values[offsets[i] : offsets[i + 1]]
        at_peak = what[where.index(peak[i])]
        examples[which].append(Example(document[i], window[i], peak[i], at_peak, tokens[window[i]], where, what))
    n = len(limits)
    parts = [f"{100 * (n - 1 - i) // n}–{100 * (n - i) // n} %" for i in range(n)]
    strongest = [example.activation for example in examples[0]]
    ranges = [(strongest[-1], strongest[0]), *limits]
    return [
        Group(name, low, high, members)
        for name, (low, high), members in zip(["strongest", *parts], ranges, examples, strict=True)
        if members
    ]
