"""Monosemanticity on text and features that are made so that the truth is known, and on a trained run."""

import json
from collections.abc import Iterator

import numpy as np
import pytest
from coders import random_coder, subject
from scipy.sparse import csc_array

from matryoshka.data.sections import TextConfig
from matryoshka.data.tokens import Tokens, tokenise
from matryoshka.evaluation import monosemanticity
from matryoshka.evaluation.monosemanticity import MEASURES, RESIDUAL, RULE, TFIDF, evaluate, measure
from matryoshka.evaluation.shared.firings import TextFirings
from matryoshka.evaluation.subject import Bench
from matryoshka.lm.model import LanguageModel
from matryoshka.run import Run
from matryoshka.scores.result import Measure, NotMeasurable, Result
from matryoshka.study.hooked import HookedCoder, hook_all

WINDOWS, CONTEXT, D = 600, 65, 6
GENRES = 2
READ = 8_000
"""Tokens on which the trained run is measured."""
SHARED, OWN = 50, 40
"""Words that stand in every document, and words of each of the two genres."""
VOCABULARY = [f" word{i}".encode() for i in range(SHARED + GENRES * OWN)]


def text(seed: int = 0) -> TextFirings:
    """A document every five windows, of one of two genres: half of its words are its genre's own. Word 4 often has
    word 5 after it. No feature yet."""
    generator = np.random.default_rng(seed)
    documents = np.repeat(np.arange(WINDOWS // 5), 5)[:, None].repeat(CONTEXT, 1)
    genre = documents // 2 % GENRES
    shape, positions = (WINDOWS, CONTEXT), WINDOWS * CONTEXT
    own = SHARED + genre * OWN + generator.integers(0, OWN, shape)
    tokens = np.where(generator.random(shape) < 0.5, own, generator.integers(0, SHARED, shape))
    tokens[:, 1:][(tokens[:, :-1] == 4) & (generator.random((WINDOWS, CONTEXT - 1)) < 0.5)] = 5
    counted = np.ones(shape, dtype=bool)
    counted[:, 0] = False
    return TextFirings(
        tokens=tokens,
        documents=documents,
        counted=counted,
        test=documents % 2 == 1,
        residual=generator.standard_normal((positions, D)).astype(np.float16),
        projections=generator.standard_normal((positions, 80)).astype(np.float16),
        firing=csc_array((positions, 0), dtype=bool),
    )


TEXT = text()
GENRE = TEXT.documents // 2 % GENRES
RANDOM = np.random.default_rng(1).random(TEXT.tokens.shape)


def with_features(*fires: np.ndarray, reading: TextFirings = TEXT) -> TextFirings:
    """The text with features that fire there, in this order."""
    return reading._replace(firing=csc_array(np.stack([(f & reading.counted).ravel() for f in fires], 1)))


def found(*fires: np.ndarray, reading: TextFirings = TEXT) -> Result:
    return measure(with_features(*fires, reading=reading), (len(fires),), VOCABULARY)


def value(result: Result, wanted: Measure, width: int | None = None) -> float:
    """The score of a prefix, by default the last."""
    last = max(score.width for score in result.scores)
    (chosen,) = (s for s in result.scores if s.measure == wanted and s.width == (width or last))
    return chosen.value


def test_a_feature_of_one_token_is_all_rule_and_follows_anything() -> None:
    result = found(TEXT.tokens == 3)
    assert value(result, RULE) == 1
    assert value(result, TFIDF) > 0.9
    assert value(result, RESIDUAL) == pytest.approx(0.5, abs=0.1)
    assert result.details["chance"]["rule AUC"] == pytest.approx([0.5], abs=0.02)
    assert result.details["latents"][0]["rule"] == 'the token " word3"'
    assert result.details["clear"] == {"rule AUC": [1.0], "TF-IDF AUC": [1.0], "residual AUC": [0.0]}


def test_a_feature_of_two_tokens_is_found_by_a_rule_of_two() -> None:
    result = found((TEXT.tokens == 5) & (np.roll(TEXT.tokens, 1, 1) == 4))
    assert value(result, RULE) == 1
    assert result.details["latents"][0]["rule"] == 'the tokens " word4 word5"'


def test_features_that_fire_at_random_get_one_half_and_never_more_by_being_chosen() -> None:
    """Rare ones above all: on the training half the best rule of forty firings looks like something."""
    fires = [np.random.default_rng(seed).random(TEXT.tokens.shape) < 0.004 for seed in range(40)]
    result = found(*fires)
    for wanted, noise in ((RULE, 0.01), (TFIDF, 0.03), (RESIDUAL, 0.03)):
        assert value(result, wanted) == pytest.approx(0.5, abs=noise)
        assert result.details["chance"][wanted.name] == pytest.approx([0.5], abs=noise)


def test_a_union_of_twenty_unrelated_tokens_is_far_from_a_rule() -> None:
    result = found(TEXT.tokens < 20)
    assert 0.5 < value(result, RULE) < 0.6


def test_a_topic_has_no_rule_but_contexts_that_are_alike() -> None:
    """It fires anywhere in the documents of one genre, whose residual is shifted."""
    residual = TEXT.residual + 1.0 * GENRE.reshape(-1, 1).astype(np.float16)
    result = found((GENRE == 1) & (RANDOM < 0.1), reading=TEXT._replace(residual=residual))
    assert value(result, RULE) < 0.6
    assert value(result, TFIDF) > 0.95
    assert value(result, RESIDUAL) > 0.95


def test_what_the_residual_holds_where_the_feature_fires_is_not_seen() -> None:
    """The feature's own direction stands there and nowhere else."""
    fires = RANDOM < 0.02
    residual = TEXT.residual + 5 * fires.reshape(-1, 1).astype(np.float16)
    assert value(found(fires, reading=TEXT._replace(residual=residual)), RESIDUAL) == pytest.approx(0.5, abs=0.1)


def test_the_null_is_of_directions_that_fire_as_often_as_the_latents() -> None:
    """Projections that follow a token are found out as a feature of that token would be."""
    projections = TEXT.projections.copy()
    projections[:, 0] = (TEXT.tokens == 3).ravel() * 10 + RANDOM.ravel()
    half = (TEXT.tokens == 3) & (RANDOM < 0.5)
    result = found(half & TEXT.counted, reading=TEXT._replace(projections=projections))
    (rule,) = (score for score in result.scores if score.measure == RULE)
    assert rule.value == pytest.approx(rule.null, abs=0.01)
    assert rule.null > 0.99
    assert value(found(half), RULE) > 0.99
    (without,) = (score.null for score in found(half).scores if score.measure == RULE)
    assert without == pytest.approx(0.5, abs=0.02)


def test_nothing_is_learnt_on_the_documents_on_which_it_is_measured() -> None:
    """Firing on 3 in the training documents and on 7 in the test documents is no rule at all."""
    swapped = np.where(TEXT.test, TEXT.tokens == 7, TEXT.tokens == 3)
    result = found(swapped)
    assert result.details["latents"][0]["rule"] == 'the token " word3"'
    assert value(result, RULE) < 0.5
    assert value(result, TFIDF) == pytest.approx(0.5, abs=0.1)


def test_silent_and_rare_latents_are_left_out_and_counted() -> None:
    token = TEXT.tokens == 3
    one_half = (TEXT.tokens == 4) & ~TEXT.test
    result = found(np.zeros_like(token), token, np.arange(WINDOWS)[:, None] == [[5]], one_half)
    assert [row["latent"] for row in result.details["latents"]] == [1]
    assert all(score.units == ("1",) for score in result.scores)
    assert result.details["rings"] == [{"width": 4, "latents": 4, "silent": 1, "rare": 2, "frequent": 1, "drawn": 1}]


def test_a_prefix_is_the_mean_over_all_its_latents_however_many_are_drawn() -> None:
    """The first ring has one latent, the second 60 of which 40 are drawn; some are rules, the others unions."""
    rules = [TEXT.tokens == i for i in range(16)]
    unions = [(TEXT.tokens % 50) // 10 == i % 5 for i in range(45)]
    told: list[tuple[int, int]] = []
    result = measure(with_features(*rules, *unions), (1, 61), VOCABULARY, lambda *at: told.append(at))
    rows = result.details["latents"]
    assert len(rows) == 41
    assert told[-1] == (41, 41)
    assert value(result, RULE, 1) == 1
    second = [row["rule AUC"] for row in rows if row["latent"] > 0]
    assert 0.5 < np.mean(second) < 0.9
    assert value(result, RULE) == pytest.approx((1 + 60 * np.mean(second)) / 61)
    assert sum(result.details["histogram"]["rule AUC"]) == pytest.approx(61)
    assert result.details["clear"]["rule AUC"] == pytest.approx([1, (1 + 1.5 * second.count(1)) / 61])


def test_a_latent_of_which_a_yardstick_says_nothing_is_left_out_of_that_alone() -> None:
    """It fires so often that no context is quiet."""
    result = found(TEXT.tokens == 3, RANDOM < 0.9)
    assert [len(score.units) for score in result.scores] == [2, 1, 1]
    assert result.details["unsaid"] == {"rule AUC": 0, "TF-IDF AUC": 1, "residual AUC": 1}


def test_text_in_which_nothing_fires_often_enough_is_not_measurable() -> None:
    with pytest.raises(NotMeasurable, match="no latent fires at 16 positions"):
        found(np.zeros_like(RANDOM, dtype=bool))
    with pytest.raises(NotMeasurable, match="no latent fires"):
        found(TEXT.tokens == 3, reading=TEXT._replace(test=np.zeros_like(TEXT.test)))


def test_windows_too_short_for_contexts_are_not_measurable(lm: LanguageModel, trained: Run) -> None:
    short = tokenise(TextConfig(context=16), lm.tokenizer, lm.bos, lm.separator)
    windows = short.windows("held_out")
    with pytest.raises(NotMeasurable, match="windows of 16 tokens"):
        evaluate(subject(lm, windows, hook_all([trained.coder], lm, windows)[0], 1000))


@pytest.fixture(scope="module")
def hooked(lm: LanguageModel, tokens: Tokens, trained: Run) -> HookedCoder:
    return hook_all([trained.coder], lm, tokens.windows("held_out"))[0]


@pytest.fixture(autouse=True, scope="module")
def few_tokens() -> Iterator[None]:
    """READ of them are enough here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(monosemanticity, "FIRING_TOKENS", READ)
        yield


@pytest.fixture(scope="module")
def result(lm: LanguageModel, tokens: Tokens, hooked: HookedCoder) -> Result:
    return evaluate(subject(lm, tokens.windows("held_out"), hooked, READ))


def test_a_trained_transcoder_is_measured_at_every_prefix(result: Result, hooked: HookedCoder) -> None:
    widths = hooked.coder.widths
    assert [(s.measure, s.width) for s in result.scores] == [(m, w) for w in widths for m in MEASURES]
    for score in result.scores:
        assert 0.4 < score.interval.low <= score.value <= score.interval.high < 1
        assert 0.4 < (score.null or 0) < 1
        assert all(int(unit) < score.width for unit in score.units)
    assert value(result, RULE) > 0.52
    for measured in MEASURES:
        assert result.details["chance"][measured.name][-1] == pytest.approx(0.5, abs=0.05)
    assert result.details["residual site"] == "1.resid_post"
    rings = result.details["rings"]
    assert [ring["latents"] for ring in rings] == [32, 64, 160]
    assert all(ring["silent"] + ring["rare"] + ring["frequent"] == ring["latents"] for ring in rings)


def test_the_result_is_plain_json(result: Result) -> None:
    json.dumps([score.as_json() for score in result.scores], allow_nan=False)
    assert json.loads(json.dumps(result.details, allow_nan=False)) == result.details


def test_measuring_again_gives_the_same_numbers_beside_other_coders_too(
    lm: LanguageModel, tokens: Tokens, hooked: HookedCoder, result: Result
) -> None:
    told: list[tuple[int, int]] = []
    windows = tokens.windows("held_out")
    other = random_coder(lm, windows, "3.resid_post", "3.resid_post")
    silent = random_coder(lm, windows, "0.mlp_in", "0.mlp_out", largest=0.0)
    _, its_own, nothing = Bench(lm, windows, [other, hooked, silent], READ).subjects()
    again = evaluate(its_own, lambda *at: told.append(at))
    assert [s.value for s in again.scores] == [s.value for s in result.scores]
    assert again.details == result.details
    drawn = len(again.details["latents"])
    assert (READ // 64, READ // 64) in told, "windows that are read"
    assert told[-drawn:] == [(i + 1, drawn) for i in range(drawn)]
    with pytest.raises(NotMeasurable, match="no latent fires at 16 positions"):
        evaluate(nothing, lambda *at: told.append(at))
    assert told[-1] == (drawn, drawn), "the text is not read again"
