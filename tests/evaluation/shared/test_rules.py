"""The best n-gram rule of a feature: against a search by brute force, and on text where the truth is planted."""

from itertools import product

import numpy as np
import pytest

from matryoshka.errors import MatryoshkaError
from matryoshka.evaluation.shared.rules import Ngrams, Rule, best_rule, describe, matches, rule_auc

VOCABULARY = [b" of", b" the", b" people", b"\n", b'"', b"\xf0\x9f"]


def text(windows: int = 40, context: int = 30, vocabulary: int = 12, seed: int = 0) -> np.ndarray:
    """Tokens of a skewed distribution, as words have."""
    share = 1 / np.arange(1, vocabulary + 1)
    return np.random.default_rng(seed).choice(vocabulary, (windows, context), p=share / share.sum())


def everywhere(tokens: np.ndarray) -> np.ndarray:
    return np.ones(tokens.shape, dtype=bool)


def by_loop(rule: Rule, tokens: np.ndarray) -> np.ndarray:
    """`matches`, position by position."""
    found = np.zeros(tokens.shape, dtype=bool)
    for window, position in np.ndindex(*tokens.shape):
        end = position - rule.offset + 1
        start = end - len(rule.tokens)
        found[window, position] = start >= 0 and tuple(tokens[window, start:end].tolist()) == rule.tokens
    return found


def auc_by_pairs(says: np.ndarray, fires: np.ndarray) -> float:
    """P(says yes where it fires > where it does not) + half the ties, over all pairs of positions."""
    yes, no = says[fires].astype(int), says[~fires].astype(int)
    difference = yes[:, None] - no[None]
    return float((difference > 0).mean() + (difference == 0).mean() / 2)


@pytest.mark.parametrize(
    "rule", [Rule((3,), 0), Rule((3,), 1), Rule((0, 1), 0), Rule((0, 1), 1), Rule((1, 0, 0), 0), Rule((1, 0, 0), 1)]
)
def test_a_rule_matches_where_the_text_ends_with_it_or_did_one_token_before(rule: Rule) -> None:
    tokens = text(vocabulary=4)
    expected = by_loop(rule, tokens)
    assert expected.any()
    assert np.array_equal(matches(rule, tokens), expected)


def test_a_rule_longer_than_the_window_matches_nowhere() -> None:
    assert not matches(Rule((0, 0, 0), 1), np.zeros((3, 2), dtype=np.int64)).any()


def test_the_auc_of_a_rule_is_the_probability_that_it_ranks_a_pair_right() -> None:
    tokens = text()
    generator = np.random.default_rng(1)
    firing, counted = generator.random(tokens.shape) < 0.2, generator.random(tokens.shape) < 0.7
    found = rule_auc(Rule((2,), 0), tokens, firing, counted)
    assert found == pytest.approx(auc_by_pairs((tokens == 2)[counted], firing[counted]))


@pytest.mark.parametrize("seed", range(4))
def test_the_best_rule_is_the_best_of_all_that_there_are(seed: int) -> None:
    """By trying every n-gram of up to three tokens at both offsets, at random firings of a small text."""
    generator = np.random.default_rng(seed)
    tokens = text(6, 12, 4, seed)
    firing, counted = generator.random(tokens.shape) < 0.15, generator.random(tokens.shape) < 0.8
    every = [Rule(gram, offset) for n in (1, 2, 3) for gram in product(range(4), repeat=n) for offset in (0, 1)]
    highest = max(auc_by_pairs(by_loop(rule, tokens)[counted], firing[counted]) for rule in every)
    rule, auc = best_rule(tokens, firing, counted)
    assert auc == pytest.approx(highest)
    assert rule_auc(rule, tokens, firing, counted) == pytest.approx(auc)


@pytest.mark.parametrize(
    "planted", [Rule((5,), 0), Rule((5,), 1), Rule((4, 2), 0), Rule((4, 2), 1), Rule((0, 3, 1), 0)]
)
def test_a_feature_that_follows_a_rule_is_found_out(planted: Rule) -> None:
    tokens = text(400)
    assert best_rule(tokens, matches(planted, tokens), everywhere(tokens)) == (planted, 1.0)


def test_of_rules_that_are_equally_good_the_shortest_at_the_position_itself_is_taken() -> None:
    tokens = np.tile(np.arange(10), (20, 3))  # 7 always comes after 5 and 6
    rule, auc = best_rule(tokens, tokens == 7, everywhere(tokens))
    assert (rule, auc) == (Rule((7,), 0), 1.0)


def test_positions_that_do_not_count_are_not_asked() -> None:
    """A feature that fires on 1, and where nobody counts on 2 much more often."""
    tokens = text()
    counted = tokens != 2
    rule, auc = best_rule(tokens, (tokens == 1) | (tokens == 2), counted)
    assert (rule, auc) == (Rule((1,), 0), 1.0)


def test_one_numbering_serves_many_features() -> None:
    tokens = text()
    counted = np.random.default_rng(2).random(tokens.shape) < 0.6
    ngrams = Ngrams(tokens, counted)
    for seed in range(3):
        firing = np.random.default_rng(seed).random(tokens.shape) < 0.1
        assert ngrams.best(np.flatnonzero(firing & counted)) == best_rule(tokens, firing, counted)


def test_of_a_union_of_twenty_tokens_no_rule_gets_more_than_its_share() -> None:
    tokens = np.random.default_rng(0).integers(0, 60, (300, 30))
    _, auc = best_rule(tokens, tokens < 20, everywhere(tokens))
    assert 0.5 < auc < 0.56


@pytest.mark.parametrize("fires", [False, True])
def test_a_feature_that_fires_nowhere_or_everywhere_has_no_rule(fires: bool) -> None:
    tokens = text()
    with pytest.raises(MatryoshkaError, match="fires at"):
        best_rule(tokens, np.full(tokens.shape, fires), everywhere(tokens))


@pytest.mark.parametrize(
    ("rule", "label"),
    [
        (Rule((2,), 0), 'the token " people"'),
        (Rule((0, 1), 0), 'the tokens " of the"'),
        (Rule((0, 1), 1), 'after " of the"'),
        (Rule((3,), 1), 'after "\\n"'),
        (Rule((4,), 0), 'the token "\\""'),
        (Rule((5,), 0), 'the token "\\xf0\\x9f"'),
    ],
)
def test_a_label_reads_as_words(rule: Rule, label: str) -> None:
    assert describe(rule, VOCABULARY) == label
