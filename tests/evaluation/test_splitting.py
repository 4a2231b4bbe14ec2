"""Splitting of concepts that are planted in a known number of parts, and of a trained coder's."""

import numpy as np
import pytest
import scipy.sparse as sp

from matryoshka.data.tokens import Tokens
from matryoshka.evaluation.shared.labelled import LabelledExample, LabelledText, is_test
from matryoshka.evaluation.shared.labelled_rows import LabelledRows, encode_labelled, read_labelled
from matryoshka.evaluation.shared.labels import shipped
from matryoshka.evaluation.splitting import JUMP, MOST, PARTS_F1, SPLITTING, f1_curve, measure
from matryoshka.lm.model import LanguageModel
from matryoshka.run import Run
from matryoshka.scores.result import Measure, NotMeasurable, Result, Score
from matryoshka.study.hooked import hook_all

D_SAE, FIRST = 80, 50
GROUPS = [f"word {i // 3}" for i in range(600)]
"""Each word three times."""
YES = np.repeat(np.random.default_rng(0).random(200) < 0.4, 3)
TEST = np.array([is_test(group) for group in GROUPS])


def made(latents: dict[int, np.ndarray], density: float = 0.03, yes: np.ndarray = YES) -> LabelledRows:
    """Rows whose x tells the labels, with these latents among noise."""
    generator = np.random.default_rng(1)
    x = generator.standard_normal((len(yes), 6)).astype(np.float32)
    x[:, 2] += 4 * yes
    dense = (generator.random((len(yes), D_SAE)) < density) * generator.exponential(size=(len(yes), D_SAE))
    for column, values in latents.items():
        dense[:, column] = values
    paths = [("yes",) if label else (group,) for group, label in zip(GROUPS, yes, strict=True)]  # one concept alone
    examples = tuple(LabelledExample(group, None, path, group) for group, path in zip(GROUPS, paths, strict=True))
    return LabelledRows(LabelledText("made", examples), x, x, sp.csr_array(dense.astype(np.float32)), TEST, 0)


def fires_on(where: np.ndarray, seed: int = 5) -> np.ndarray:
    return where * (0.5 + np.random.default_rng(seed).random(len(where)))


def parts(n: int) -> dict[int, np.ndarray]:
    """The concept as the union of `n` latents from FIRST on, each of some of its words."""
    part = np.arange(len(YES)) // 3 % n
    return {FIRST + i: fires_on(YES & (part == i), seed=i) for i in range(n)}


def the(result: Result, measure: Measure, width: int) -> Score:
    (found,) = [each for each in result.scores if each.measure == measure and each.width == width]
    return found


def detail(result: Result, width: int) -> dict:
    (concept,) = result.details["concepts"].values()
    return concept[str(width)]


@pytest.mark.parametrize("n", [1, 2, 3])
def test_the_parts_of_a_concept_are_counted(n: int) -> None:
    result = measure([made(parts(n))], (D_SAE,))
    assert the(result, SPLITTING, D_SAE).value == n - 1
    assert the(result, PARTS_F1, D_SAE).value > 0.97
    assert sorted(detail(result, D_SAE)["latents"]) == list(range(FIRST, FIRST + n))
    assert detail(result, D_SAE)["told"]


def test_latents_that_say_the_same_are_one_part() -> None:
    copies = {FIRST + i: fires_on(YES, seed=i) for i in range(4)}
    assert the(measure([made(copies)], (D_SAE,)), SPLITTING, D_SAE).value == 0


def test_a_part_too_small_to_lift_f1_enough_does_not_count() -> None:
    """Of the words of the concept one latent has all but 1 %, or all but 10 %; another one the rest."""
    words = np.flatnonzero(YES[::3])
    for share, expected in ((0.01, 0), (0.1, 1)):
        rest = np.repeat(np.isin(np.arange(200), words[:: round(1 / share)]), 3)
        latents = {FIRST: fires_on(YES & ~rest), FIRST + 1: fires_on(YES & rest)}
        assert the(measure([made(latents)], (D_SAE,)), SPLITTING, D_SAE).value == expected
    assert 0.01 < JUMP < 0.1


def test_no_more_parts_than_are_looked_for() -> None:
    latents, groups = (
        made(parts(4)).latents[~TEST],
        [group for group, test in zip(GROUPS, TEST, strict=True) if not test],
    )
    whole = f1_curve(latents, YES[~TEST], groups)
    assert len(whole) == 4
    assert f1_curve(latents, YES[~TEST], groups, most=2) == whole[:2]


def test_each_prefix_has_its_own_latents() -> None:
    """The first part alone lies within the small prefix."""
    result = measure([made(parts(2))], (FIRST + 1, D_SAE))
    assert the(result, SPLITTING, FIRST + 1).value == 0
    assert detail(result, FIRST + 1)["latents"] == [FIRST]
    assert the(result, PARTS_F1, FIRST + 1).value < the(result, PARTS_F1, D_SAE).value - 0.1
    assert the(result, SPLITTING, D_SAE).value == 1


def test_a_prefix_that_does_not_tell_a_concept_has_no_score_for_it() -> None:
    result = measure([made(parts(2))], (FIRST, D_SAE))
    assert {each.width for each in result.scores} == {D_SAE}
    assert not detail(result, FIRST)["told"]
    with pytest.raises(NotMeasurable, match="none of 1 concepts is told by this coder's latents"):
        measure([made(parts(2))], (FIRST,))


def test_dead_latents_split_nothing() -> None:
    with pytest.raises(NotMeasurable, match="none of 1 concepts"):
        measure([made({}, density=0)], (FIRST, D_SAE))


def test_chance_adds_no_part_to_a_whole_one() -> None:
    assert the(measure([made(parts(1))], (D_SAE,)), SPLITTING, D_SAE).null == 0


def test_the_null_is_what_chance_adds_to_the_best_latent() -> None:
    """Beside a latent of half the concept stands its other half: by chance no part is found, and shuffled the two
    together tell little."""
    result = measure([made(parts(2))], (D_SAE,))
    splits = the(result, SPLITTING, D_SAE)
    assert (splits.value, splits.null) == (1, pytest.approx(0, abs=0.4))
    f1 = the(result, PARTS_F1, D_SAE)
    assert f1.null is not None
    assert f1.null < 0.5 < f1.value
    assert max(detail(result, D_SAE)["shuffled_f1"]) < 0.6


def test_the_number_of_parts_is_not_found_on_test_rows() -> None:
    """The second part speaks on test rows alone: it lifts F1 there, and is not a part."""
    latents = parts(2)
    latents[FIRST + 1] = latents[FIRST + 1] * TEST
    result = measure([made(latents)], (D_SAE,))
    assert the(result, SPLITTING, D_SAE).value == 0
    assert detail(result, D_SAE)["latents"] == [FIRST]


def test_words_learnt_by_heart_are_no_parts() -> None:
    """Half of 24 words are one latent, each other word is a latent of its own: on words left out these say nothing."""
    words = np.flatnonzero(YES[::3])[:24]
    latents = {FIRST: fires_on(np.repeat(np.isin(np.arange(200), words[::2]), 3))}
    latents |= {i: fires_on(np.repeat(np.arange(200) == word, 3)) for i, word in enumerate(words[1::2])}
    yes = np.repeat(np.isin(np.arange(200), words), 3)
    result = measure([made(latents, yes=yes)], (D_SAE,))
    assert the(result, SPLITTING, D_SAE).value == 0
    assert detail(result, D_SAE)["latents"] == [FIRST]


def test_f1_of_the_parts_is_of_test_rows() -> None:
    result = measure([made({FIRST: fires_on(YES & ~TEST)})], (D_SAE,))
    assert detail(result, D_SAE)["f1"] == [pytest.approx(1, abs=0.02)]
    assert the(result, PARTS_F1, D_SAE).value == 0


def test_the_same_rows_give_the_same_numbers_and_units() -> None:
    first, second = (measure([made(parts(2))], (FIRST, D_SAE)) for _ in range(2))
    assert first.details == second.details
    assert [each.as_json() for each in first.scores] == [each.as_json() for each in second.scores]
    assert the(first, SPLITTING, D_SAE).units == ("made/yes",)


def test_a_trained_coder_splits_the_sets_that_it_tells_of(lm: LanguageModel, tokens: Tokens, trained: Run) -> None:
    [hooked] = hook_all([trained.coder], lm, tokens.windows("held_out"))
    sets = [
        encode_labelled(hooked, read_labelled(lm, [hooked], labelled))
        for labelled in shipped()
        if labelled.name == "number"
    ]
    widths = hooked.coder.widths[1:]
    told: list[tuple[int, int]] = []
    result = measure(sets, widths, lambda done, total: told.append((done, total)))
    whole = the(result, SPLITTING, widths[-1])
    assert list(result.details["concepts"]) == ["number/plural", "number/singular"]
    assert "number/plural" in whole.units
    assert 0 <= whole.value < MOST
    assert whole.null is not None
    assert the(result, PARTS_F1, widths[-1]).value > (the(result, PARTS_F1, widths[-1]).null or 0) + 0.2
    assert told == [(1, 2), (2, 2)]
    for prefixes in result.details["concepts"].values():
        for width in widths:
            assert all(latent < width for latent in prefixes[str(width)]["latents"])
