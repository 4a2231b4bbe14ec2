"""When features fire: against sums over all pairs of rows, of what is planted, and of what is not."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from planted import recorded

from matryoshka.analysis import lagged, timing
from matryoshka.analysis.activation_patterns import analyse, range_classes
from matryoshka.analysis.corpus import Corpus
from matryoshka.analysis.lagged import successors
from matryoshka.analysis.observed import Observed
from matryoshka.analysis.timing import (
    Autocorrelation,
    Raster,
    autocorrelation,
    centres,
    joins_by_chance,
    many_by_chance,
    reach,
)
from matryoshka.coder.architecture import CoderConfig, TopKConfig
from matryoshka.coder.coder import SparseCoder
from matryoshka.lm.sites import Site, Wiring
from matryoshka.scores.coverage import wilson_lower
from matryoshka.scores.result import NotMeasurable, Result
from matryoshka.study.hooked import EVERY_ROW, HookedCoder

CONTEXT, PER_DOCUMENT, ROWS = 128, 400, 128 * 160
"""Documents begin and end within windows."""
STARTS, BURSTS, TOPICS, FIRST, SECOND = (slice(10 * i, 10 * i + 10) for i in range(5))
"""The planted features; all others fire by chance."""
PLANTED = 50
UNIFORM = 200


def fires(generator: np.random.Generator, probability: Any, features: int) -> np.ndarray:
    return generator.random((ROWS, features)) < probability


def after(fired: np.ndarray, lag: int) -> np.ndarray:
    """The same so many rows later."""
    return np.concatenate([np.zeros_like(fired[:lag]), fired[:-lag]])


def planted() -> np.ndarray:
    """Dense [rows, features] of 0 and 1."""
    generator, row = np.random.default_rng(0), np.arange(ROWS)
    latents = fires(generator, np.geomspace(15 / ROWS, 0.3, PLANTED + UNIFORM), PLANTED + UNIFORM)
    latents[:, STARTS] = fires(generator, np.where(row % CONTEXT < 4, 0.5, 0)[:, None], 10)
    begins = fires(generator, 0.003, 10)
    latents[:, BURSTS] = np.any([after(begins, lag) for lag in range(1, 5)], 0) & fires(generator, 0.9, 10)
    topical = np.tile(np.repeat(generator.random((ROWS // CONTEXT, 5)) < 0.2, CONTEXT, axis=0), 2)  # two of each topic
    latents[:, TOPICS] = topical & fires(generator, 0.1, 10)
    latents[:, FIRST] = fires(generator, 0.01, 10)
    for lag, half in ((1, slice(0, 5)), (4, slice(5, 10))):
        follows = after(latents[:, FIRST][:, half], lag) & fires(generator, 0.7, 5)
        latents[:, SECOND][:, half] = follows | fires(generator, 0.002, 5)
    return latents.astype(float)


def observed(folder: Path, dense: np.ndarray, **about: Any) -> Observed:
    config = CoderConfig(
        reads=(8,), writes=(8,), d_sae=dense.shape[1], widths=(dense.shape[1],), activation=TopKConfig(k=2)
    )
    site = Site("resid_post", 1)
    hooked = HookedCoder(SparseCoder(config).initialise(0, tied=True), Wiring.of([site], [site]), EVERY_ROW)
    of_text = {"per_document": PER_DOCUMENT, "context": CONTEXT} | about
    return Observed("planted", hooked, recorded(folder, dense, **of_text)[0])


def raster(folder: Path, dense: np.ndarray, **about: Any) -> Raster:
    return Raster(observed(folder, dense, **about).recorded, "planted")


def found(of: Observed) -> Result:
    return analyse(of, object.__new__(Corpus))  # which is not read: the recording is enough


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """Of what is planted; no window's first token counts."""
    left_out = (np.arange(ROWS) % CONTEXT == 0,)
    return found(observed(tmp_path_factory.mktemp("patterns") / "recording", planted(), left_out=left_out))


def test_features_of_a_passages_beginning_are_found_and_no_others(result: Result) -> None:
    position = {name: np.array(values) for name, values in result.details["position"].items()}
    assert position["stands"][STARTS].all()
    assert position["mean"][STARTS] == pytest.approx(np.full(10, 2 / (CONTEXT - 1)), abs=0.003)  # 1, 2 or 3 tokens in
    assert (position["spread"][STARTS] < 0.01).all()
    assert (position["bits"][STARTS] > 2).all(), "one bin of sixteen, and passages that begin within a window"
    others = np.ones(len(position["mean"]), bool)
    others[STARTS] = False
    assert position["stands"][others].mean() <= 0.02
    assert position["mean"][others].mean() == pytest.approx(0.43, abs=0.05), "documents begin within windows as well"


def test_bursts_are_found_and_what_fires_singly_is_none(result: Result) -> None:
    details = result.details
    assert all(details["bursty"][BURSTS])
    assert min(details["burstiness"][BURSTS]) > 0.3
    assert min(details["run"][BURSTS]) > 2.5
    chance = [bursty for bursty, z in zip(details["bursty"], details["burstiness z"], strict=True) if z is not None]
    assert sum(chance) - 10 - sum(details["bursty"][TOPICS]) <= 0.09 * len(chance), "5 %, and what chance adds to them"
    assert max(details["run"][FIRST]) < 1.1


def test_ranges_are_told_apart(result: Result) -> None:
    ranges = result.details["range"]
    assert ranges[BURSTS] == ["local"] * 10
    assert ranges[TOPICS].count("long") >= 9
    assert ranges[PLANTED:].count("single") >= 0.93 * UNIFORM
    curves = result.details["autocorrelation"]
    assert result.details["lags"] == [1, 2, 4, 8, 16, 32, 64]
    assert curves["local"][0] > 0.3 > 0.05 > abs(curves["local"][-1])
    assert min(curves["long"]) > 0.03
    assert max(map(abs, curves["single"])) < 0.01


def test_what_fires_after_what_is_recovered_with_its_lag_and_lift(result: Result) -> None:
    columns = result.details["successors"]
    pairs = list(zip(columns["feature"], columns["other"], columns["lag"], strict=True))
    expected = [(FIRST.start + i, SECOND.start + i, 1 if i < 5 else 4) for i in range(10)]
    assert set(expected) <= set(pairs)
    rows = [pairs.index(pair) for pair in expected]
    for name in ("share", "lift", "lower", "backward"):
        values = np.array(columns[name])[rows]
        low, high = {"share": (0.55, 0.85), "lift": (50, 120), "lower": (45, 110), "backward": (0, 4)}[name]
        assert ((low <= values) & (values <= high)).all(), name
    features = {feature for feature, _, _ in pairs}
    assert len(features - set(range(PLANTED))) <= 0.02 * UNIFORM
    assert features.isdisjoint(range(TOPICS.start, TOPICS.stop)), "of one topic, but in no order"


def test_scores_say_what_is_planted_beside_what_chance_gives(result: Result) -> None:
    living, scores = len(result.details["features"]), {score.measure.name: score for score in result.scores}
    for name, share in {"position features": 10, "bursty": 10, "long-range": 10, "with a successor": 10}.items():
        score = scores[name]
        assert score.null is not None
        assert score.null <= 0.05 + 1.96 * np.sqrt(0.05 * 0.95 / len(score.units)), name
        assert score.value - score.null == pytest.approx(share / living, abs=0.07), name
    single = scores["single"]
    assert single.null is not None
    assert single.null >= 0.93 > single.value
    assert scores["log₂ lift of successor"].value > 10 * np.log2(50) / living
    assert sum(score.measure.headline for score in result.scores) == 8


@pytest.mark.parametrize("topical", [False, True], ids=["anywhere", "in some documents more than in others"])
def test_where_nothing_is_planted_nothing_is_found(tmp_path: Path, topical: bool) -> None:
    """At a level of 5 %, give or take what 300 features leave to chance; topics reach far, and are nothing else."""
    generator, density = np.random.default_rng(1), np.geomspace(20 / ROWS, 0.5, 300)
    document = np.arange(ROWS) // PER_DOCUMENT
    often = np.where(generator.random((document[-1] + 1, 300)) < 0.2, 3, 0.4)[document] if topical else 1
    scores = found(observed(tmp_path / "recording", fires(generator, density * often, 300).astype(float))).scores
    values = {score.measure.name: score.value for score in scores}
    most = {score.measure.name: 0.05 + 1.96 * np.sqrt(0.05 * 0.95 / len(score.units)) for score in scores}
    for name in ("position features", "bursty", "with a successor"):
        assert values[name] <= most[name], name
    assert values["partners"] == 0
    assert (values["long-range"] > 0.3) if topical else (1 - values["single"] <= most["single"])


def dense_lags(dense: np.ndarray, kept: np.ndarray, lag: int) -> tuple[np.ndarray, np.ndarray]:
    """The latents on all pairs of rows so far apart in one window and document, by numpy alone."""
    place = np.arange(len(dense))
    first = place[:-lag]
    of_one = (first // CONTEXT == (first + lag) // CONTEXT) & (first // PER_DOCUMENT == (first + lag) // PER_DOCUMENT)
    first = first[of_one & kept[first] & kept[first + lag]]
    return dense[first], dense[first + lag]


@pytest.mark.parametrize("lag", [1, 16])
def test_autocorrelations_are_those_of_dense_sums(tmp_path: Path, lag: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "ROWS", 1000)
    dense, kept = planted(), np.random.default_rng(0).random(ROWS) < 0.9
    of = raster(tmp_path / "recording", dense, left_out=(~kept,))
    dense = dense[:, of.living.features]
    first, second = dense_lags(dense, kept, lag)
    density = dense[kept].mean(0)
    followed = (first * second).sum(0) / first.sum(0)
    measured = autocorrelation(of, of.firing).r[:, of.lags.index(lag)]
    np.testing.assert_allclose(measured, (followed - density) / (1 - density), atol=1e-12)


def test_lifts_are_those_of_dense_sums(tmp_path: Path) -> None:
    dense, kept = planted(), np.random.default_rng(0).random(ROWS) < 0.9
    of = raster(tmp_path / "recording", dense, left_out=(~kept,))
    rows = successors(of, of.firing, np.arange(of.size))
    assert len(rows.latent) >= 10
    for a, b, lag, share, lift, _, backward in zip(*rows, strict=True):
        first, second = dense_lags(dense[:, of.living.features], kept, lag)
        assert share == pytest.approx(second[first[:, a] > 0, b].mean())
        assert lift == pytest.approx(share / second[:, b].mean())
        back = second[first[:, b] > 0, a].mean() if first[:, b].any() else 0
        assert backward == pytest.approx(back / second[:, a].mean())


def test_features_of_one_document_are_no_successors_whatever_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five times as often after each other as anywhere, but no more often than in their documents."""
    monkeypatch.setattr(lagged, "bdtrc", lambda forward, *_: np.zeros(len(forward)))  # any order will do
    generator = np.random.default_rng(0)
    topical = (generator.random(ROWS // PER_DOCUMENT + 1) < 0.2)[np.arange(ROWS) // PER_DOCUMENT, None]
    of = raster(tmp_path / "recording", (topical & fires(generator, 0.2, 10)).astype(float))
    assert not len(successors(of, of.firing, np.arange(10)).latent)
    pairs = lagged.Lagged(of, of.firing, 1)
    [(latent, others, count), *_] = pairs.candidates(np.arange(10), 1e-3)
    assert len(others) == 8, "without documents all the others would be"
    assert pairs.by_chance(latent, others) == pytest.approx(count, rel=0.2)


def test_places_gaps_and_runs_are_those_of_the_firings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "ENTRIES", 100)
    dense = planted()
    dense[:, 12:14] = 0
    dense[2:34:2, 12] = dense[41:100:3, 13] = 1  # one begins after the other, in one passage: no gap between them
    of = raster(tmp_path / "recording", dense)
    measured, (mean, spread) = timing.timing(of, of.firing), centres(of)
    place = np.arange(ROWS)
    passage = np.cumsum((place % CONTEXT == 0) | (place % PER_DOCUMENT == 0))
    into = place - np.searchsorted(passage, passage)
    for i in (0, 12, 13, 25, 100):
        rows = np.flatnonzero(dense[:, of.living.features[i]])
        inside = passage[rows[1:]] == passage[rows[:-1]]
        gaps = np.diff(rows)[inside]
        if len(gaps) >= timing.GAPS:
            expected = (gaps.std() - gaps.mean()) / (gaps.std() + gaps.mean())
            assert measured.burstiness[i] == pytest.approx(expected)
        assert measured.run[i] == pytest.approx(len(rows) / (len(rows) - (gaps == 1).sum()))
        assert (mean[i], spread[i]) == pytest.approx(((into[rows] / 127).mean(), (into[rows] / 127).std()))
        share = np.bincount(of.bins[rows], minlength=16) / len(rows)
        expected = sum(p * np.log2(p / q) for p, q in zip(share, of.shares, strict=True) if p)
        assert measured.bits[i] == pytest.approx(expected)
    assert len(of.shares) == 16
    assert (of.shares < 0.09).all()


def test_joins_by_chance_are_those_of_all_ways_to_throw_firings() -> None:
    """4 firings on 9 rows, at a lag of 2: all 126 ways."""
    from itertools import combinations

    joins = [sum(row + 2 in rows for row in rows) for rows in map(set, combinations(range(9), 4))]
    mean, variance = joins_by_chance(np.array([4.0]), 9, pairs=7, chains=5)
    assert (mean[0], variance[0]) == pytest.approx((np.mean(joins), np.var(joins)))


def test_many_by_chance_is_poissons_tail() -> None:
    mean, count = np.array([0.06, 3.0, 3.0]), np.array([1, 5, 0])
    expected = [1 - np.exp(-0.06), 1 - np.exp(-3) * sum(3.0**k / f for k, f in enumerate((1, 1, 2, 6, 24))), 1]
    assert many_by_chance(count, mean) == pytest.approx(expected)
    assert many_by_chance(np.array([5]), np.array([3.0]), np.array([1.0])) < expected[1], "a narrower one"


def test_a_range_is_the_furthest_lag_with_half_of_the_largest_autocorrelation() -> None:
    lags = (1, 2, 4, 8, 16, 32, 64)
    r = np.array([[0.4, 0.3, 0.1, 0.1, 0.1, 0.1, 0.1], [0.1] * 7, [0.4] * 7, [0.1, 0.1, 0.1, 0.2, 0.3, 0.0, 0.0]])
    p = np.array([[0.0] * 7, [0.0] * 7, [0.02] * 7, [0.0] * 7])
    assert reach(Autocorrelation(r, p), lags, 0.05).tolist() == [2, 64, 0, 16], "0.02 is more than 0.05 / 7"
    assert range_classes(np.array([0, 1, 8, 16, 32, 64])).tolist() == [0, 1, 1, 2, 2, 3]


def test_wilsons_bound() -> None:
    assert wilson_lower(np.array([0.8]), 10) == pytest.approx(0.4902, abs=1e-4)


def test_short_windows_have_no_long_range_and_silent_coders_no_patterns(tmp_path: Path) -> None:
    names = [score.measure.name for score in found(observed(tmp_path / "short", planted()[:2048], context=32)).scores]
    assert "long-range" not in names
    assert "local" in names
    with pytest.raises(NotMeasurable, match="no latent of planted fires on 10"):
        found(observed(tmp_path / "silent", np.zeros((1024, 4))))
