"""A feature's arrays in the store, and what of a `Feature` is made of them.

A blob is zlib-compressed: the length of each array of LAYOUT (int32), then the arrays, little-endian.
"""

import zlib
from collections.abc import Callable, Mapping

import numpy as np

from matryoshka.features.feature import Effect, Example, Group, Histogram, Logits, TokenShare, edges

LAYOUT = {
    "histogram": "<i4",  # counts of the bins …
    "range": "<f8",  # … between the least and the greatest activation
    "limits": "<f4",  # least and greatest of each quantile group, the strongest first; none if silent
    "top_tokens": "<i4",  # by summed activation
    "top_counts": "<i4",
    "top_shares": "<f4",
    "example_group": "u1",  # 0: the strongest
    "example_window": "<i4",
    "example_document": "<i4",
    "example_peak": "<i4",
    "example_offsets": "<i4",  # example i: positions[offsets[i]:offsets[i + 1]]
    "positions": "<u2",
    "values": "<f4",
    "cosine_other": "<i4",
    "cosine_value": "<f4",
    "coactive_other": "<i4",
    "coactive_value": "<f4",
    "logit_tokens": "<i4",  # the greatest effects, then as many of the least; none without a direct path
    "logit_effects": "<f4",
}
"""The arrays, flat, and their numbers. Another layout is another version of the store."""
TYPES = {name: np.dtype(kind) for name, kind in LAYOUT.items()}

Arrays = Mapping[str, np.ndarray]


def pack(arrays: Arrays) -> bytes:
    """The blob of these arrays."""
    columns = [np.asarray(arrays[name], kind) for name, kind in TYPES.items()]
    lengths = np.array([array.size for array in columns], "<i4")
    return zlib.compress(b"".join([lengths.tobytes(), *(array.tobytes() for array in columns)]), 2)


def unpack(blob: bytes) -> dict[str, np.ndarray]:
    """The arrays of a blob. Raises zlib.error or ValueError for anything else."""
    content = zlib.decompress(blob)
    lengths = np.frombuffer(content, "<i4", len(TYPES)).tolist()
    start = 4 * len(TYPES)
    if start + sum(n * kind.itemsize for n, kind in zip(lengths, TYPES.values(), strict=True)) != len(content):
        raise ValueError("arrays of another layout")
    arrays = {}
    for (name, kind), n in zip(TYPES.items(), lengths, strict=True):
        arrays[name] = np.frombuffer(content, kind, n, start)
        start += n * kind.itemsize
    return arrays


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
    limits = arrays["limits"].reshape(-1, 2).tolist()
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
