"""Sums, orders and ranks within groups: of entries that are sorted by feature, without a loop over features."""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int


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
