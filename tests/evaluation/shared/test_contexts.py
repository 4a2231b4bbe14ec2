"""Contexts in which a feature fires and their partners: against loops, on a text whose every part is random."""

import math
from collections import Counter

import numpy as np
import pytest
from scipy.sparse import csc_array

from matryoshka.evaluation.shared.contexts import FEWEST_PAIRS, MOST_PAIRS, SHORTEST, Contexts, Pairs
from matryoshka.evaluation.shared.firings import TextFirings, is_test
from matryoshka.scores.result import NotMeasurable

WINDOWS, CONTEXT, VOCABULARY, D = 300, 64, 30, 5


@pytest.fixture(scope="module")
def reading() -> TextFirings:
    """Documents of 10 to 300 tokens; a few positions are sinks, which hold nothing but large numbers."""
    generator = np.random.default_rng(0)
    positions = WINDOWS * CONTEXT
    documents = np.repeat(np.arange(positions), generator.integers(10, 300, positions))[:positions]
    documents = documents.reshape(WINDOWS, CONTEXT)
    counted = generator.random((WINDOWS, CONTEXT)) > 0.02
    counted[:, 0] = False
    residual = generator.standard_normal((positions, D)) * [1, 2, 3, 4, 20] + 3
    residual[~counted.ravel()] = 1000
    return TextFirings(
        tokens=generator.integers(0, VOCABULARY, (WINDOWS, CONTEXT)),
        documents=documents,
        counted=counted,
        test=is_test("text", documents),
        residual=residual.astype(np.float16),
        projections=np.zeros((positions, 0), dtype=np.float16),
        firing=csc_array((positions, 0), dtype=bool),
    )


@pytest.fixture(scope="module")
def contexts(reading: TextFirings) -> Contexts:
    return Contexts(reading)


def firing(reading: TextFirings, share: float = 0.02, seed: int = 1) -> np.ndarray:
    there = reading.counted.ravel() & (np.random.default_rng(seed).random(reading.counted.size) < share)
    return np.flatnonzero(there)


def stretch(reading: TextFirings, end: int, length: int) -> list[int]:
    """The positions of the context that ends there: of its document, and not the window's first token."""
    first = end - end % CONTEXT + 1
    documents = reading.documents.ravel()
    return [p for p in range(max(first, end - length + 1), end + 1) if documents[p] == documents[end]]


@pytest.mark.parametrize("test", [False, True])
@pytest.mark.parametrize("share", [0.002, 0.05])
def test_partners_are_of_the_same_half_place_and_length_and_nowhere_in_them_it_fires(
    reading: TextFirings, contexts: Contexts, test: bool, share: float
) -> None:
    fires = firing(reading, share)
    pairs = contexts.pairs(fires, test, np.random.default_rng(0))
    assert 5 < len(pairs.firing) <= MOST_PAIRS
    assert set(pairs.firing) <= set(fires)
    half = reading.half(test).ravel()
    for fired, quiet in zip(pairs.firing.tolist(), pairs.quiet.tolist(), strict=True):
        one, other = stretch(reading, fired, 32), stretch(reading, quiet, 32)
        assert half[[fired, quiet]].all()
        assert fired % CONTEXT == quiet % CONTEXT
        assert len(one) == len(other)
        assert len(set(one) - set(fires.tolist())) >= SHORTEST - 1
        assert not set(other) & set(fires.tolist())


def test_contexts_are_spread_over_the_whole_text(reading: TextFirings, contexts: Contexts) -> None:
    fires = firing(reading, 0.2)
    pairs = contexts.pairs(fires, False, np.random.default_rng(0))
    thirds = np.histogram(pairs.firing, 3, (0, WINDOWS * CONTEXT))[0]
    assert thirds.min() > len(pairs.firing) / 5


def test_tfidf_weighs_a_token_by_how_rare_it_is_among_training_contexts(
    reading: TextFirings, contexts: Contexts
) -> None:
    """Against the formula tf · (ln((1 + n) / (1 + df)) + 1), by loops."""
    tokens, train = reading.tokens.ravel(), reading.half(False).ravel()
    ends = range(WINDOWS * CONTEXT)
    whole = [stretch(reading, end, 32) for end in ends if end % CONTEXT == 32 and train[end]]
    whole = [context for context in whole if len(context) == 32]
    seen = Counter(token for context in whole for token in set(tokens[context].tolist()))
    fires = firing(reading, 0.001)
    embedded = contexts.tfidf(Pairs(fires, fires[::-1]))
    for end, found, other in zip(fires, embedded.firing.toarray(), embedded.quiet.toarray()[::-1], strict=True):
        counts = Counter(tokens[stretch(reading, end, 32)].tolist())
        row = np.array([counts[t] * (math.log((1 + len(whole)) / (1 + seen[t])) + 1) for t in range(VOCABULARY)])
        assert found == pytest.approx(row / np.linalg.norm(row))
        assert np.array_equal(found, other)


def test_the_residual_is_averaged_over_the_places_where_the_feature_does_not_fire(
    reading: TextFirings, contexts: Contexts
) -> None:
    x, counted = reading.residual.astype(np.float64), reading.counted.ravel()
    train = np.flatnonzero(reading.half(False))
    train = train[np.arange(min(10_000, len(train))) * len(train) // min(10_000, len(train))]
    fires = firing(reading, 0.05)
    pairs = contexts.pairs(fires, True, np.random.default_rng(0))
    embedded = contexts.residual(pairs, fires)

    def row(places: list[int]) -> np.ndarray:
        mean = (x[places].mean(0) - x[train].mean(0)) / x[train].std(0)
        return mean / np.linalg.norm(mean)

    left_out = 0
    for fired, quiet, one, other in zip(*pairs, *embedded, strict=True):
        context = stretch(reading, fired, 32)
        silent = [p for p in context if counted[p] and counted[p - fired + quiet] and p not in fires]
        left_out += len(context) - len(silent)
        assert one == pytest.approx(row(silent), abs=1e-3)
        assert other == pytest.approx(row([p - fired + quiet for p in silent]), abs=1e-3)
    assert left_out > 1.5 * len(pairs.firing)


def test_the_auc_is_of_mean_cosines_over_all_pairs_of_test_contexts(reading: TextFirings, contexts: Contexts) -> None:
    fires = firing(reading)
    generator = np.random.default_rng(7)
    train, test = (contexts.pairs(fires, half, generator) for half in (False, True))
    found = contexts.alike(fires, np.random.default_rng(7))
    tfidf = [[rows.toarray() for rows in contexts.tfidf(pairs)] for pairs in (train, test)]
    residual = [list(contexts.residual(pairs, fires)) for pairs in (train, test)]
    for value, ((one, other), rows) in ((found.tfidf, tfidf), (found.residual, residual)):
        scores = [(each @ one.T).mean(1) - (each @ other.T).mean(1) for each in rows]
        difference = scores[0][:, None] - scores[1][None]
        assert value == pytest.approx((difference > 0).mean() + (difference == 0).mean() / 2, abs=1e-3)


def test_contexts_that_are_all_the_same_count_half(reading: TextFirings) -> None:
    same = reading._replace(tokens=np.zeros_like(reading.tokens))
    assert Contexts(same).alike(firing(same), np.random.default_rng(0)).tfidf == 0.5


def test_firing_at_random_is_told_from_not_firing_by_chance_only(reading: TextFirings, contexts: Contexts) -> None:
    found = [contexts.alike(firing(reading, 0.03, seed), np.random.default_rng(seed)) for seed in range(60)]
    assert np.mean(found, axis=0) == pytest.approx([0.5, 0.5], abs=0.02)


def test_with_few_pairs_nothing_is_said(reading: TextFirings, contexts: Contexts) -> None:
    fires = firing(reading)
    half = reading.half(True).ravel()[fires]
    few = np.sort(np.concatenate([fires[~half], fires[half][: FEWEST_PAIRS - 1]]))
    assert np.isnan(contexts.alike(few, np.random.default_rng(0))).all()


def test_documents_that_are_shorter_than_a_context_are_refused(reading: TextFirings) -> None:
    short = reading._replace(documents=np.arange(WINDOWS * CONTEXT).reshape(WINDOWS, CONTEXT) // 16)
    with pytest.raises(NotMeasurable, match="32 tokens"):
        Contexts(short)
