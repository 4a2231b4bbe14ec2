"""What each feature fires on, made exactly from a recording: statistics, quantile groups, top windows, top tokens.

The features are taken in blocks whose entries fit into memory. Within a block nothing is estimated:

    1. entries of the block, grouped by feature, places ascending
    2. sums over each group: count, mean, mean square, maximum, histogram
    3. sorted by (feature, token): the tokens it fires on, their entropy
    4. the maximum of each (feature, document): its top windows, at most one a document
    5. sorted by (feature, value): true quantile groups of its firings, random members of each
    6. of 4 and 5, what nearly repeats an earlier one is dropped: the same tokens around the peak
    7. the activations of each chosen window

Values are in the units of the coder that was recorded. Random choices follow from the seed alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from matryoshka.coder.kernels import operations
from matryoshka.features.feature import BINS
from matryoshka.study.recording import RecordedCoder

BLOCK_ENTRIES = 4_000_000
"""Entries in memory at once, unless a single feature has more; with copies and sorts up to 170 bytes each."""
TOP_TOKENS = 10
FIRINGS = 1000
"""Firings of each feature, evenly spread over the pass, on which its partners are counted."""
BEFORE, AFTER = 6, 2
"""Two examples are near-duplicates if their tokens from BEFORE the peak to AFTER it are the same."""


class Wanted(NamedTuple):
    """How many examples a feature has: `top` windows, and `members` of each of `groups` quantile groups."""

    top: int = 32
    groups: int = 5
    members: int = 8
    seed: int = 0


class Examples(NamedTuple):
    """Chosen windows, feature by feature: group 0 holds the top windows, strongest first; groups 1 … Q are the quantile
    groups from the strongest down."""

    feature: Int[np.ndarray, " examples"]
    group: Int[np.ndarray, " examples"]
    place: Int[np.ndarray, " examples"]
    """Of the peak: in the top windows the maximum, in the quantile groups the drawn firing."""
    offsets: Int[np.ndarray, " examples_plus_1"]
    """Example i's activations are `positions` and `values` `offsets[i]:offsets[i + 1]`."""
    positions: Int[np.ndarray, " entries"]
    values: Float[np.ndarray, " entries"]


class Firings(NamedTuple):
    """Where features fire: feature i at `places[offsets[i]:offsets[i + 1]]`, ascending."""

    places: Int[np.ndarray, " firings"]
    offsets: Int[np.ndarray, " n_plus_1"]


@dataclass(frozen=True)
class Summary:
    """The features `first` … `first + n - 1`. Numbers of a feature that never fires are 0, its quantile limits too."""

    first: int
    count: Int[np.ndarray, " n"]
    mean: Float[np.ndarray, " n"]
    """Of the activations where it fires."""
    mean_square: Float[np.ndarray, " n"]
    max: Float[np.ndarray, " n"]
    min: Float[np.ndarray, " n"]
    entropy: Float[np.ndarray, " n"]
    """Of the distribution of the tokens it fires on, in bits."""
    first_position: Float[np.ndarray, " n"]
    """Share of its firings at the first position that counts in a window."""
    histogram: Int[np.ndarray, "n bins"]
    limits: Float[np.ndarray, "n groups 2"]
    """(least, greatest) activation of each quantile group, the strongest group first."""
    top_tokens: Int[np.ndarray, "n top_tokens"]
    """By summed activation; −1 where there are fewer."""
    top_counts: Int[np.ndarray, "n top_tokens"]
    top_shares: Float[np.ndarray, "n top_tokens"]
    """Of the feature's summed activation."""
    examples: Examples
    sample: Firings
    """Some of each, at most FIRINGS unless another number is asked for, evenly spread over the pass."""


@dataclass(frozen=True)
class _Block:
    """Entries of features `first` …, grouped by feature, places ascending within each."""

    first: int
    feature: Int[np.ndarray, " entries"]
    """Counted from `first`."""
    place: Int[np.ndarray, " entries"]
    value: Float[np.ndarray, " entries"]
    offsets: Int[np.ndarray, " n_plus_1"]

    @property
    def count(self) -> Int[np.ndarray, " n"]:
        return np.diff(self.offsets)


def summarise(
    recorded: RecordedCoder,
    wanted: Wanted = Wanted(),  # noqa: B008
    at_once: int = BLOCK_ENTRIES,
    sampled: int = FIRINGS,
) -> Iterator[Summary]:
    """The summaries of all features, a block of at most `at_once` entries at a time, in order; `sampled`: firings of
    each feature that are kept as its sample."""
    firings = np.bincount(recorded.indices, minlength=recorded.d_sae)
    for first, end in ranges(np.concatenate([[0], np.cumsum(firings)]), at_once):
        yield _summary(recorded, _read(recorded, first, end, at_once), wanted, sampled)


def _read(recorded: RecordedCoder, first: int, end: int, at_once: int) -> _Block:
    features, places, values = [], [], []
    windows = len(recorded.tokens) // recorded.context
    step = max(1, at_once // max(1, len(recorded.indices) // max(1, windows))) * recorded.context
    for start in range(0, len(recorded.tokens), step):
        offsets = recorded.offsets[start : start + step + 1]
        indices = recorded.indices[offsets[0] : offsets[-1]]
        inside = np.flatnonzero((indices >= first) & (indices < end))
        features.append(indices[inside].astype(np.int64) - first)
        places.append(np.repeat(np.arange(start, start + len(offsets) - 1), np.diff(offsets))[inside])
        values.append(recorded.values[offsets[0] : offsets[-1]][inside])
    feature = np.concatenate(features)
    keys = torch.from_numpy(feature)
    order, ends = operations(keys).group(keys, end - first)
    chosen = order.numpy()
    return _Block(first, feature[chosen], np.concatenate(places)[chosen], np.concatenate(values)[chosen], ends.numpy())


def _summary(recorded: RecordedCoder, block: _Block, wanted: Wanted, sampled: int) -> Summary:
    n, count, value = len(block.count), block.count, block.value
    divisor = np.maximum(count, 1)
    largest, least = reduced(np.maximum, value, block.offsets), reduced(np.minimum, value, block.offsets)
    kept = recorded.kept.reshape(-1, recorded.context)
    first = (kept & (kept.cumsum(1) == 1)).reshape(-1)  # of its window that counts
    at_first = reduced(np.add, first[block.place].astype(np.int64), block.offsets)
    by_value = sorted_by(block.feature, ordered(value))
    top_tokens, top_counts, top_shares, entropy = _tokens(block, recorded.tokens[block.place].astype(np.int64))
    # the ranks by ascending value that belong to each quantile group, the strongest group first
    part, start = wanted.groups - 1 - np.arange(wanted.groups), block.offsets[:-1, None]
    low, high = (start + ends * count[:, None] // wanted.groups for ends in (part, part + 1))
    limits, some = np.zeros((n, wanted.groups, 2)), high > low
    limits[some] = value[by_value[np.stack([low[some], high[some] - 1], axis=1)]]
    chosen = [_top(recorded, block, wanted), *_quantiles(recorded, block, by_value, low, high, wanted)]
    return Summary(
        first=block.first,
        count=count,
        mean=reduced(np.add, value.astype(np.float64), block.offsets) / divisor,
        mean_square=reduced(np.add, value.astype(np.float64) ** 2, block.offsets) / divisor,
        max=largest,
        min=least,
        entropy=entropy,
        first_position=at_first / divisor,
        histogram=_histogram(block, least, largest),
        limits=limits,
        top_tokens=top_tokens,
        top_counts=top_counts,
        top_shares=top_shares,
        examples=_examples(recorded, block, chosen),
        sample=_sample(block, sampled),
    )


def _histogram(block: _Block, least: np.ndarray, greatest: np.ndarray) -> Int[np.ndarray, "n bins"]:
    least, greatest, n = least[block.feature], greatest[block.feature], len(block.count)
    span = np.maximum(np.log(greatest / least), 1e-9)
    bins = np.minimum((np.log(block.value / least) / span * BINS).astype(np.int64), BINS - 1)
    return np.bincount(block.feature * BINS + bins, minlength=n * BINS).reshape(n, BINS)


def _tokens(block: _Block, token: Int[np.ndarray, " entries"]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(top tokens, their counts, their shares of the activation, entropy in bits of all), feature by feature."""
    n, count = len(block.count), block.count
    order = sorted_by(block.feature, token)
    feature, token, value = block.feature[order], token[order], block.value[order].astype(np.float64)
    starts = run_starts(feature, token)
    firings = np.diff(np.append(starts, len(feature)))
    mass = np.add.reduceat(value, starts) if len(starts) else np.empty(0)
    feature, token = feature[starts], token[starts]
    p = firings / np.maximum(count, 1)[feature]
    entropy = np.bincount(feature, -p * np.log2(p), minlength=n).astype(np.float64)  # whole numbers, of nothing
    share = mass / np.bincount(feature, mass, minlength=n)[feature] if len(mass) else mass
    best = sorted_by(feature, descending(share.astype(np.float32)))
    feature = feature[best]
    rank = rank_in_run(feature)
    best, rank, feature = best[rank < TOP_TOKENS], rank[rank < TOP_TOKENS], feature[rank < TOP_TOKENS]
    tables = np.full((n, TOP_TOKENS), -1, np.int64), np.zeros((n, TOP_TOKENS), np.int64), np.zeros((n, TOP_TOKENS))
    for table, numbers in zip(tables, (token, firings, share), strict=True):
        table[feature, rank] = numbers[best]
    return *tables, entropy


def _top(recorded: RecordedCoder, block: _Block, wanted: Wanted) -> Int[np.ndarray, " chosen"]:
    """The strongest firing of each document, strongest first; twice as many candidates as are wanted make up for
    near-duplicates."""
    starts = run_starts(block.feature, recorded.documents[block.place])
    # (value, earliest place) as one integer whose maximum is sought
    n = len(block.value)
    ranked = (ordered(block.value) << 32) | (n - 1 - np.arange(n))
    peaks = n - 1 - (np.maximum.reduceat(ranked, starts) & 0xFFFFFFFF) if n else starts
    peaks = peaks[sorted_by(block.feature[peaks], descending(block.value[peaks]))]
    candidates = peaks[rank_in_run(block.feature[peaks]) < 2 * wanted.top]
    return _distinct(recorded, block, candidates, wanted.top)


def _quantiles(
    recorded: RecordedCoder, block: _Block, by_value: np.ndarray, low: np.ndarray, high: np.ndarray, wanted: Wanted
) -> Iterator[Int[np.ndarray, " chosen"]]:
    """Random members of each quantile group, which holds its ranks from `low` to `high` [n groups]: of twice as many
    equal parts of these a random firing each, in random order, without near-duplicates and second members from one
    window."""
    draws = 2 * wanted.members
    feature, part = block.first + np.arange(len(block.count))[:, None], np.arange(draws)
    for group, (start, size) in enumerate(zip(low.T[..., None], (high - low).T[..., None], strict=True)):
        # where a group has fewer firings than draws, each firing is drawn at most once
        u = uniform(wanted.seed, feature, group * draws + part)
        rank = np.minimum(((part + u) * size / draws).astype(np.int64), size - 1)
        fresh = (np.diff(rank, axis=1, prepend=-1) > 0) & (size > 0)
        drawn = by_value[(start + rank)[fresh]]
        luck = uniform(wanted.seed + 1, feature, group * draws + part)[fresh]
        drawn = drawn[sorted_by(block.feature[drawn], ordered(luck.astype(np.float32)))]
        drawn = drawn[first_of(block.feature[drawn], block.place[drawn] // recorded.context)]
        yield _distinct(recorded, block, drawn, wanted.members)


def _distinct(recorded: RecordedCoder, block: _Block, candidates: np.ndarray, n: int) -> Int[np.ndarray, " chosen"]:
    """The first `n` of each feature's candidates, without those whose tokens around the peak are an earlier one's."""
    around = np.arange(-BEFORE, AFTER + 1)
    place = block.place[candidates][:, None]
    inside = (place % recorded.context + around >= 0) & (place % recorded.context + around < recorded.context)
    tokens = np.where(inside, recorded.tokens[np.where(inside, place + around, 0)].astype(np.int64), -1)
    weights = np.random.default_rng(0).integers(1, 1 << 62, len(around), dtype=np.int64) | 1
    kept = candidates[first_of(block.feature[candidates], (tokens * weights).sum(1))]
    return kept[rank_in_run(block.feature[kept]) < n]


def _examples(recorded: RecordedCoder, block: _Block, chosen: Sequence[Int[np.ndarray, " _"]]) -> Examples:
    """Of the entries chosen for each group."""
    entries = np.concatenate(chosen)
    group = np.repeat(np.arange(len(chosen)), [len(of_group) for of_group in chosen])
    order = np.argsort(block.feature[entries], kind="stable")
    entries, group = entries[order], group[order]
    feature, place = block.feature[entries], block.place[entries]
    # all of the feature's entries in the window: a range, as entries are sorted by (feature, place)
    places = recorded.context * (len(recorded.tokens) // recorded.context)
    keys = block.feature * places + block.place
    window = feature * places + place // recorded.context * recorded.context
    starts, ends = np.searchsorted(keys, window), np.searchsorted(keys, window + recorded.context)
    offsets = np.concatenate([[0], np.cumsum(ends - starts)])
    inside = np.repeat(starts - offsets[:-1], ends - starts) + np.arange(offsets[-1])
    positions = block.place[inside] % recorded.context
    return Examples(feature + block.first, group, place, offsets, positions, block.value[inside])


def _sample(block: _Block, most: int) -> Firings:
    sizes = np.minimum(block.count, most)
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    feature = np.repeat(np.arange(len(sizes)), sizes)
    within = (np.arange(offsets[-1]) - offsets[feature] + 0.5) * block.count[feature] / sizes[feature]
    return Firings(block.place[block.offsets[feature] + within.astype(np.int64)], offsets)


# --- sums, orders and ranks within groups: of entries that are sorted by feature, without a loop over features


def ranges(
    offsets: Int[np.ndarray, " n_plus_1"], most: int | float, longest: int | None = None
) -> Iterator[tuple[int, int]]:
    """Ranges of groups with at most `most` entries together, or of one group; of at most `longest` groups."""
    start, n = 0, len(offsets) - 1
    while start < n:
        enough = int(np.searchsorted(offsets, offsets[start] + most, side="right")) - 1
        end = max(start + 1, min(n, enough, start + (longest or n)))
        yield start, end
        start = end


def reduced(ufunc: np.ufunc, values: np.ndarray, offsets: Int[np.ndarray, " n_plus_1"]) -> np.ndarray:
    """`ufunc` over each group, 0 for an empty one."""
    result = np.zeros(len(offsets) - 1, values.dtype)
    some = offsets[1:] > offsets[:-1]
    if some.any():
        result[some] = ufunc.reduceat(values, offsets[:-1][some])
    return result


def sorted_by(feature: np.ndarray, then: np.ndarray) -> Int[np.ndarray, " n"]:
    """The stable order by feature, then by a non-negative integer below 2³²."""
    return torch.sort(torch.from_numpy((feature << 32) | then), stable=True).indices.numpy()


def ordered(values: Float[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Integers in the order of these non-negative float32: their bits."""
    return values.view(np.int32).astype(np.int64)


def descending(values: Float[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Integers in the opposite order."""
    return 0x7FFFFFFF - ordered(values)


def run_starts(feature: np.ndarray, then: np.ndarray) -> Int[np.ndarray, " runs"]:
    """Where a run of equal (feature, then) begins."""
    changes = (feature[1:] != feature[:-1]) | (then[1:] != then[:-1])
    return np.flatnonzero(np.concatenate([np.ones(min(len(feature), 1), bool), changes]))


def rank_in_run(feature: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """The place of each item within its feature's run."""
    starts = run_starts(feature, feature)
    return np.arange(len(feature)) - np.repeat(starts, np.diff(np.append(starts, len(feature))))


def first_of(feature: np.ndarray, what: np.ndarray) -> Bool[np.ndarray, " n"]:
    """Whether no earlier item of the feature has the same `what`."""
    order = np.lexsort((what, feature))
    first = np.zeros(len(feature), bool)
    first[order[run_starts(feature[order], what[order])]] = True
    return first


def uniform(seed: int, *numbers: np.ndarray) -> Float[np.ndarray, " ..."]:
    """In [0, 1), a function of its arguments alone (splitmix64)."""
    x = np.full((1,) * numbers[0].ndim, seed, np.uint64)
    for number in numbers:
        x = x + number.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x = x ^ (x >> np.uint64(31))
    return (x >> np.uint64(11)).astype(np.float64) / (1 << 53)
