"""The n-gram that tells best where a feature fires: a label that needs no reader, and the yardstick of being lexical.

A rule says yes at each position where the text ends with its tokens, or ended with them one token before. As a detector
it is one point of a ROC curve, and the area under the two lines through that point is

    AUC = (TPR + 1 − FPR) / 2        TPR = P(rule | fires), FPR = P(rule | does not fire); 0.5 is chance

The search is exact: every n-gram of up to LONGEST tokens gets a number once, and then only those at which the feature
fires are weighed, because over all n-grams together TPR − FPR sums to zero, so that the best one is among them.
"""

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from matryoshka.errors import MatryoshkaError
from matryoshka.lm.vocabulary import alone

LONGEST = 3
"""Tokens in a rule."""
OFFSETS = (0, 1)
TokenIds = Int[np.ndarray, "windows context"]
Positions = Bool[np.ndarray, "windows context"]
"""Which positions of a text."""


class Rule(NamedTuple):
    """An n-gram and where it stands."""

    tokens: tuple[int, ...]
    offset: int
    """0: its last token is the one at this position; 1: the one before."""


def matches(rule: Rule, tokens: TokenIds) -> Positions:
    """Where the rule says yes; nowhere that its tokens would begin before the window."""
    yes = np.ones(tokens.shape, dtype=bool)
    for back, token in enumerate(reversed(rule.tokens), start=rule.offset):
        yes &= _shifted(tokens, back) == token
    return yes


def rule_auc(rule: Rule, tokens: TokenIds, firing: Positions, counted: Positions) -> float:
    """(TPR + 1 − FPR) / 2 over the `counted` positions; NaN where the feature fires at all of them or at none."""
    yes, fires = matches(rule, tokens)[counted], firing[counted]
    if fires.all() or not fires.any():
        return float("nan")
    return float(yes[fires].mean() + 1 - yes[~fires].mean()) / 2


def best_rule(tokens: TokenIds, firing: Positions, counted: Positions) -> tuple[Rule, float]:
    """The rule with the highest AUC over the `counted` positions, and this AUC (which is optimistic: it was chosen).

    For many features of one text make one `Ngrams`, which this does. Raises MatryoshkaError as `Ngrams.best` does.
    """
    return Ngrams(tokens, counted).best(np.flatnonzero(firing & counted))


class Ngrams:
    """The n-grams of a text, numbered: what a search for rules needs to know of it, whatever the feature."""

    def __init__(self, tokens: TokenIds, counted: Positions) -> None:
        self._tokens = tokens.ravel()
        self._counted = int(counted.sum())
        self._grams = []
        for (length, unshifted), offset in product(enumerate(_numbered(tokens), start=1), OFFSETS):
            numbers = _shifted(unshifted, offset)
            counts = np.bincount(numbers[counted & (numbers >= 0)], minlength=numbers.max(initial=0) + 1)
            self._grams.append(_Gram(length, offset, numbers.ravel(), counts))

    def best(self, firing: Int[np.ndarray, " firings"]) -> tuple[Rule, float]:
        """The rule with the highest AUC, and this AUC; of equals the shortest, the one at the position itself.

        `firing`: window · context + position of each counted position where the feature fires, ascending. Raises
        MatryoshkaError if that is nowhere or everywhere.
        """
        positives, negatives = len(firing), self._counted - len(firing)
        if positives == 0 or negatives <= 0:
            raise MatryoshkaError(
                f"a rule is sought from positions where a feature fires and others where it does not:"
                f" it fires at {positives} of {self._counted}"
            )
        best, highest = Rule((), 0), -1  # some n-gram always reaches 0
        for gram in self._grams:
            whole = firing[gram.numbers[firing] >= 0]
            number, first, hits = np.unique(gram.numbers[whole], return_index=True, return_counts=True)
            # (TPR − FPR) · positives · negatives: whole numbers, so that equals are equal
            gains = hits * negatives - (gram.counts[number] - hits) * positives
            if len(gains) and gains.max() > highest:
                end = whole[first[gains.argmax()]] - gram.offset + 1
                best = Rule(tuple(self._tokens[end - gram.length : end].tolist()), gram.offset)
                highest = int(gains.max())
        return best, 0.5 + highest / (2 * positives * negatives)


def describe(rule: Rule, vocabulary: Sequence[bytes]) -> str:
    """A label in words: `the token " people"`, `the tokens " of the"`, `after " of the"`.

    `vocabulary`: from `lm.vocabulary.token_bytes`.
    """
    text = alone(b"".join(vocabulary[token] for token in rule.tokens)).translate(_ESCAPES)
    before = "after" if rule.offset else "the token" if len(rule.tokens) == 1 else "the tokens"
    return f'{before} "{text}"'


_ESCAPES = str.maketrans({"\n": "\\n", "\r": "\\r", "\t": "\\t", '"': '\\"'})


class _Gram(NamedTuple):
    """All n-grams of one length and offset."""

    length: int
    offset: int
    numbers: Int[np.ndarray, " positions"]
    """Which one stands at each position; −1: it would begin before the window."""
    counts: Int[np.ndarray, " grams"]
    """At how many counted positions each stands."""


def _numbered(tokens: TokenIds) -> list[Int[np.ndarray, "windows context"]]:
    """For each length a number for the n-gram that ends at each position; −1 where it would begin before the window."""
    single, last = np.unique(tokens, return_inverse=True)
    last = last.reshape(tokens.shape)
    by_length = [last]
    for _ in range(1, LONGEST):
        before = _shifted(by_length[-1], 1)
        whole = before >= 0
        numbers = np.full_like(before, -1)
        numbers[whole] = np.unique(before[whole] * len(single) + last[whole], return_inverse=True)[1]
        by_length.append(numbers)
    return by_length


def _shifted(numbers: Int[np.ndarray, "windows context"], by: int) -> Int[np.ndarray, "windows context"]:
    """What stood `by` positions before; −1 before the window."""
    moved = np.full_like(numbers, -1)
    moved[:, by:] = numbers[:, : max(0, numbers.shape[1] - by)]
    return moved
