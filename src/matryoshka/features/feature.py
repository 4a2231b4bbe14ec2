"""One feature and its evidence, in the units and words in which people look at it, made of its arrays in the store."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from matryoshka.defaults import DENSE

SINGLE_TOKEN, REDUNDANT = 0.9, 0.9
FLAGS = {
    "silent": "never fired on the collected tokens",
    "dead": "nor in the last tokens of its training",
    "dense": f"fires on more than {DENSE:.0%} of the tokens",
    "single-token": f"at least {SINGLE_TOKEN:.0%} of its activation is on one token",
    "redundant": f"another decoder row has a cosine above {REDUNDANT} with its own",
}
"""What each means, in the order of their bits."""
BINS = 32
"""Of a histogram, log-spaced between a feature's least and greatest activation."""
Arrays = Mapping[str, np.ndarray]
"""By the names of schema.LAYOUT."""


def flag_bits(density: float, dead: bool, token_share: float, cosine: float) -> int:
    """FLAGS as bits. `dead`: it did not fire in the last tokens of training; `token_share`: of its activation on one
    token; `cosine`: to the most similar decoder row."""
    holds = {
        "silent": density == 0,
        "dead": density == 0 and dead,
        "dense": density > DENSE,
        "single-token": density > 0 and token_share >= SINGLE_TOKEN,
        "redundant": cosine > REDUNDANT,
    }
    return sum(1 << bit for bit, name in enumerate(FLAGS) if holds[name])


@dataclass(frozen=True)
class Statistics:
    """Of the whole pass; None where a feature that never fires has none."""

    density: float
    """Share of the counted tokens on which it fires."""
    count: int
    mean: float | None
    """Where it fires, as are the mean square and the maximum."""
    mean_square: float | None
    max: float | None
    entropy: float | None
    """Of the tokens it fires on, in bits."""
    first: float | None
    """Share of its firings at the first position of a window that counts."""


@dataclass(frozen=True)
class Histogram:
    """Of the activations where it fires: `counts[i]` between `edges[i]` and `edges[i + 1]`, log-spaced."""

    edges: list[float]
    counts: list[int]


@dataclass(frozen=True)
class TokenShare:
    """A token it fires on."""

    token: str
    share: float
    """Of the feature's summed activation."""
    count: int


@dataclass(frozen=True)
class Example:
    """A window, and where the feature fires in it."""

    document: int
    window: int
    peak: int
    """Position: of the maximum, or of the firing that was drawn."""
    activation: float
    """At the peak."""
    tokens: list[str]
    """"" for a part of a character, which shows on its last token."""
    positions: list[int]
    values: list[float]


@dataclass(frozen=True)
class Group:
    """Examples: the strongest, one a document, or random firings of one quantile group."""

    name: str
    low: float
    high: float
    examples: list[Example]


@dataclass(frozen=True)
class Effect:
    """A token whose logit one unit of the activation raises by so much, on the direct path."""

    token: str
    effect: float


@dataclass(frozen=True)
class Logits:
    """The direct effect on the logits, against the mean over the vocabulary."""

    top: list[Effect]
    bottom: list[Effect]


@dataclass(frozen=True)
class Neighbour:
    """A feature whose decoder direction is alike."""

    index: int
    ring: int
    name: str
    value: float
    """Cosine."""


@dataclass(frozen=True)
class Partner:
    """A feature that fires together with this one."""

    index: int
    ring: int
    name: str
    given_this: float
    """P(it fires | this one fires)."""
    given_other: float
    """P(this one fires | it fires)."""
    lift: float
    """P(both) / (P(it) · P(this))."""


@dataclass(frozen=True)
class Feature:
    """See the parts."""

    index: int
    ring: int
    label: str
    """The user's own; "" if none."""
    note: str
    explanation: str
    """A program's; "" if none."""
    explained_by: str
    """"rule", or the chat model's name."""
    summary: str
    """Made of its top tokens; "" if silent."""
    flags: list[str]
    statistics: Statistics
    histogram: Histogram
    top_tokens: list[TokenShare]
    groups: list[Group]
    logits: Logits | None
    """None where the written site is not added to the residual stream."""
    cosine: list[Neighbour]
    coactive: list[Partner]
    parents: list[Partner]
    """Of earlier rings, firing on most of its tokens: candidates by coverage."""
    children: list[Partner]
    """Of later rings, whose candidate parent this one is."""

    @property
    def name(self) -> str:
        """What it is called: by its reader, or else by a program, or else by its tokens; "" if silent."""
        return self.label or self.explanation or self.summary


def edges(least: float, greatest: float) -> Float[np.ndarray, " bins_plus_1"]:
    """The edges of the histogram of a feature with these least and greatest activations."""
    return np.geomspace(least, greatest, BINS + 1)


def histogram(arrays: Arrays) -> Histogram:
    """Empty for a silent feature."""
    counts = arrays["histogram"]
    if not counts.any():
        return Histogram([], [])
    return Histogram(edges(*arrays["range"].tolist()).tolist(), counts.tolist())


def rows(arrays: Arrays, *names: str) -> list[tuple]:
    """Arrays of equal length, side by side."""
    return list(zip(*(arrays[name].tolist() for name in names), strict=True))


def top_tokens(arrays: Arrays, text: Callable[[int], str]) -> list[TokenShare]:
    """`text`: of a token."""
    columns = rows(arrays, "top_tokens", "top_shares", "top_counts")
    return [TokenShare(text(token), share, count) for token, share, count in columns]


def logits(arrays: Arrays, text: Callable[[int], str]) -> Logits | None:
    """`text`: of a token."""
    effects = [Effect(text(token), effect) for token, effect in rows(arrays, "logit_tokens", "logit_effects")]
    half = len(effects) // 2
    return Logits(effects[:half], effects[half:]) if effects else None


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


def well_formed(text: str) -> str:
    """`text` with U+FFFD for each lone half of a surrogate pair: JSON may bring one, and no file takes it."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def printable(token: str) -> str:
    """A token for one line of text: what would break it, or show as nothing, is a sign."""
    signs = {"\n": "↵", "\t": "⇥", "\0": "␀"}
    return "".join(signs.get(c, c if c.isprintable() else f"\\u{ord(c):04x}") for c in token)


TELLING = 0.05


def summarise(tokens: list[TokenShare]) -> str:
    """A label made of the top tokens."""
    shown = ", ".join(f"‘{printable(top.token).strip() or '␣'}’" for top in telling(tokens))
    return shown if not tokens or telling(tokens)[0].share >= TELLING else f"many tokens, among them {shown}"


def telling(tokens: list[TokenShare]) -> list[TokenShare]:
    """The top tokens that name a feature: those that carry TELLING of the activation each, at most four; or two."""
    return [top for top in tokens[:4] if top.share >= TELLING] or tokens[:2]
