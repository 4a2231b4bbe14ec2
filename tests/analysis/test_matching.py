"""Matches of latents by where they fire: against dense sums, of planted ones, and of none."""

from pathlib import Path

import numpy as np
import pytest
from planted import latents, recorded

from matryoshka.analysis import matching
from matryoshka.analysis.correspondence import classes, partners
from matryoshka.analysis.matching import FIRINGS, Activity, Best, Living, activity, exchanged, match
from matryoshka.study.recording import RecordedCoder

ROWS = 4096


def activities(folder: Path, *coders: np.ndarray) -> list[Activity]:
    return [whole(coder, np.ones(len(coder.counts), bool)) for coder in recorded(folder, *coders)]


def whole(coder: RecordedCoder, rows: np.ndarray) -> Activity:
    return activity(coder, rows, Living.of(coder, rows))


def dense_scores(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(Pearson, Jaccard, lift) of every pair of columns, by numpy alone."""
    pearson = np.corrcoef(a.T, b.T)[: a.shape[1], a.shape[1] :]
    first, second = (a > 0).astype(float), (b > 0).astype(float)
    both = first.T @ second
    jaccard = both / (first.sum(0)[:, None] + second.sum(0) - both)
    return pearson, jaccard, both * len(a) / (first.sum(0)[:, None] * second.sum(0))


@pytest.mark.parametrize("gathered", [7, matching.GATHERED], ids=["latents over many blocks", "many in one block"])
def test_scores_are_those_of_dense_sums(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gathered: int) -> None:
    monkeypatch.setattr(matching, "GATHERED", gathered)
    monkeypatch.setattr(matching, "ENTRIES", 1000)
    a = latents(0, ROWS, 40, density=0.1).astype(np.float32)
    b = 0.5 * a[:, ::-1][:, :30] * (latents(1, ROWS, 30, 0.6) > 0) + latents(2, ROWS, 30)
    b = b.astype(np.float32)
    a[:, 3] = b[:, 4] = 0
    a[: FIRINGS - 1, 3] = b[: FIRINGS - 1, 4] = 1.0  # too rare
    first, second = activities(tmp_path / "recording", a, b)
    assert first.living.features.tolist() == [i for i in range(40) if i != 3]
    assert second.living.features.tolist() == [i for i in range(30) if i != 4]
    assert first.living.firings.tolist() == np.delete((a > 0).sum(0), 3).tolist()
    assert (first.living.rare, first.living.silent) == (1, 0)

    pearson, jaccard, lift = dense_scores(
        *(x[:, act.living.features].astype(np.float64) for x, act in ((a, first), (b, second)))
    )
    found = match(first, second)
    for best, axis in zip(found, (1, 0), strict=True):
        np.testing.assert_allclose(best.pearson, pearson.max(axis), atol=1e-12)
        np.testing.assert_array_equal(best.by_pearson, pearson.argmax(axis))
        np.testing.assert_allclose(best.jaccard, jaccard.max(axis), rtol=1e-12)
        np.testing.assert_array_equal(best.by_jaccard, jaccard.argmax(axis))
        np.testing.assert_allclose(
            best.lift, np.take_along_axis(lift, np.expand_dims(best.by_jaccard, axis), axis).squeeze(axis)
        )

    order = exchanged(np.arange(ROWS) // 64, 0)
    b_there = b[order][:, second.living.features].astype(np.float64)
    np.testing.assert_allclose(
        match(first, second, order)[0].pearson,
        dense_scores(a[:, first.living.features].astype(np.float64), b_there)[0].max(1),
        atol=1e-12,
    )


def test_the_rows_are_those_that_count_for_both(tmp_path: Path) -> None:
    a, b = latents(0, 512, 5, 0.3), latents(1, 512, 6, 0.3)
    generator = np.random.default_rng(2)
    left_out = generator.random(512) < 0.2, generator.random(512) < 0.1
    coders = recorded(tmp_path / "recording", a, b, left_out=left_out)
    rows = coders[0].kept & coders[1].kept
    assert 0 < rows.sum() < min(coder.rows for coder in coders)
    for coder, dense in zip(coders, (a, b), strict=True):
        assert np.array_equal(whole(coder, rows).latents.toarray(), dense[rows].astype(np.float32))


def test_planted_partners_are_recovered_exactly(tmp_path: Path) -> None:
    """A permuted copy, a noisy copy, and what has nothing to do with it."""
    a, generator = latents(0, ROWS, 60), np.random.default_rng(1)
    permutation = generator.permutation(20)
    noisy = a[:, 20:40] * (generator.random((ROWS, 20)) < 0.6) + latents(2, ROWS, 20, 0.01)
    b = np.concatenate([latents(3, ROWS, 10), 3 * a[:, :20][:, permutation], noisy], 1)
    of_a, of_b = match(*activities(tmp_path / "recording", a, b))
    assert of_b.by_pearson[10:30].tolist() == of_b.by_jaccard[10:30].tolist() == permutation.tolist()
    np.testing.assert_allclose(of_b.pearson[10:30], 1, atol=1e-12)
    assert (of_b.jaccard[10:30] == 1).all()
    assert of_a.by_pearson[20:40].tolist() == list(range(30, 50))
    assert ((of_a.pearson[20:40] > 0.3) & (of_a.pearson[20:40] < 0.95)).all()
    kinds = classes(of_a, of_b)
    assert (kinds[:20] == 0).all()
    assert (kinds[20:40] < 2).all()
    assert (kinds[40:] == 2).all()
    assert (classes(of_b, of_a)[:10] == 2).all(), "newborn"


def test_of_unrelated_coders_less_than_one_latent_in_a_thousand_has_a_partner(tmp_path: Path) -> None:
    """A feature that fires on 10 of 20,480 tokens, against 500 others, among them dense ones."""
    generator = np.random.default_rng(0)
    densities = np.geomspace(15 / 20_480, 0.6, 500)
    a, b = ((generator.random((20_480, 500)) < densities).astype(float) for _ in range(2))
    for best in match(*activities(tmp_path / "recording", a, b)):
        assert (classes(best) < 2).mean() <= 1e-3
        assert best.jaccard.max() > 0.4, "dense ones fire together by chance, which lift tells"


def test_the_order_of_latents_and_of_rows_is_of_no_account(tmp_path: Path) -> None:
    a = latents(0, 1024, 30, 0.06)  # all fire often enough
    b = a * (latents(1, 1024, 30, 0.5) > 0)
    generator = np.random.default_rng(3)
    of_a, of_b = match(*activities(tmp_path / "one", a, b))
    columns, rows = generator.permutation(30), generator.permutation(1024)
    moved_a, moved_b = match(*activities(tmp_path / "other", a[rows], b[rows][:, columns]))
    np.testing.assert_allclose(moved_a.pearson, of_a.pearson)
    assert np.array_equal(columns[moved_a.by_pearson], of_a.by_pearson)
    assert np.array_equal(moved_b.jaccard, of_b.jaccard[columns])
    assert np.array_equal(moved_b.by_jaccard, of_b.by_jaccard[columns])


def test_a_coder_matches_itself_and_swapping_two_swaps_what_is_found(tmp_path: Path) -> None:
    a, b = latents(0, 1024, 30), latents(1, 1024, 20)
    first, second = activities(tmp_path / "recording", a, b)
    for best in match(first, first):
        np.testing.assert_allclose(best.pearson, 1, atol=1e-12)
        assert (best.jaccard == 1).all()
        assert best.by_pearson.tolist() == best.by_jaccard.tolist() == list(range(30))
    for one, other in zip(match(first, second), match(second, first)[::-1], strict=True):
        np.testing.assert_allclose(one.pearson, other.pearson, atol=1e-12)
        assert np.array_equal(one.by_jaccard, other.by_jaccard)


def test_a_latent_of_one_value_everywhere_correlates_with_nothing(tmp_path: Path) -> None:
    a = latents(0, 512, 3, 0.5)
    a[:, 1] = 2.0
    [best, _] = match(*activities(tmp_path / "recording", a, a))
    assert best.pearson.tolist() == pytest.approx([1, 0, 1])


def test_tokens_are_exchanged_within_their_documents_and_none_stays() -> None:
    documents = np.repeat([5, 1, 7, 2, 9], [40, 2, 1, 300, 1])
    order = exchanged(documents, 0)
    assert sorted(order) == list(range(len(documents)))
    assert (order != np.arange(len(documents))).all()
    whole = (documents != 7) & (documents != 9)
    assert np.array_equal(documents[order][whole], documents[whole])
    assert not np.array_equal(order, exchanged(documents, 1))
    assert exchanged(np.zeros(1, int), 0).tolist() == [0]


def test_what_a_document_is_about_is_left_by_the_exchange_and_what_a_token_is_is_not(tmp_path: Path) -> None:
    """Two latents of one topic keep firing in the same documents; two of one token do not keep their tokens."""
    rows, generator = 6400, np.random.default_rng(0)
    documents = np.arange(rows) // 64
    topic = documents % 10 == 3
    of_topic = [topic & (generator.random(rows) < 0.9) for _ in range(2)]
    of_token = generator.random(rows) < 0.05
    a, b = (np.stack([topical, of_token], 1).astype(float) for topical in of_topic)
    first, second = activities(tmp_path / "recording", a, b)
    real, null = match(first, second)[0], match(first, second, exchanged(documents, 0))[0]
    assert real.pearson[1] == pytest.approx(1)
    assert null.pearson[1] < 0.1
    assert null.pearson[0] == pytest.approx(real.pearson[0], abs=0.05)


def test_a_sample_is_spread_over_the_living(tmp_path: Path) -> None:
    [act] = activities(tmp_path / "recording", latents(0, 1024, 40))
    some = act.sample(8)
    assert some.living.features.tolist() == list(range(0, 40, 5))
    assert np.array_equal(some.latents.toarray(), act.latents.toarray()[:, ::5])
    assert np.array_equal(some.living.firings, act.living.firings[::5])
    assert act.sample(100).living.features.tolist() == act.living.features.tolist()


def test_no_partner_is_no_class(tmp_path: Path) -> None:
    none = Best(
        np.array([0.69, 0.29]), np.array([0, 0]), np.array([0.49, 0.19]), np.array([0, 0]), np.array([9.0, 9.0])
    )
    assert classes(none).tolist() == [1, 2]
    assert classes(none._replace(jaccard=np.array([0.5, 0.2]))).tolist() == [0, 1]
    assert classes(none._replace(jaccard=np.array([0.5, 0.2]), lift=np.array([1.9, 1.9]))).tolist() == [1, 2]
    assert classes(none._replace(pearson=np.array([0.7, 0.3]))).tolist() == [0, 1]
    taken = Best(np.array([0.9]), np.array([1]), np.array([0.9]), np.array([1]), np.array([9.0]))
    assert classes(none._replace(pearson=np.array([0.8, 0.9])), taken).tolist() == [1, 0], "it is another one's partner"


def test_the_partner_is_the_one_that_the_class_stands_by() -> None:
    """By Pearson where both scores would do; a mutual one before a better one that is not."""
    best = Best(
        np.array([0.9, 0.9, 0.1, 0.4, 0.1]), np.array([0, 1, 1, 2, 0]),
        np.array([0.9, 0.9, 0.3, 0.3, 0.1]), np.array([3, 3, 2, 1, 1]), np.full(5, 9.0),
    )  # fmt: skip
    other = Best(np.full(4, 0.9), np.array([0, 4, 4, 4]), np.full(4, 0.9), np.array([4, 4, 4, 1]), np.full(4, 9.0))
    assert classes(best, other).tolist() == [0, 0, 1, 1, 2]
    assert partners(best, other).tolist() == [0, 3, 2, 2, -1]
    assert partners(best).tolist() == [0, 1, 2, 2, -1]
