"""k-sparse probing of hand-made rows in which the truth is known, and of a trained coder."""

import numpy as np
import pytest
import scipy.sparse as sp

from matryoshka.data.tokens import Tokens
from matryoshka.evaluation.probing import (
    ACCURACY,
    AUC,
    DENSE_AUC,
    MEASURES,
    measure,
)
from matryoshka.evaluation.shared.labelled import LabelledExample, LabelledText, is_test
from matryoshka.evaluation.shared.labelled_rows import LabelledRows, encode_labelled, read_labelled
from matryoshka.evaluation.shared.labels import shipped
from matryoshka.evaluation.shared.probes import LEAST_GROUPS, as_dense, folds, measurable
from matryoshka.lm.model import LanguageModel
from matryoshka.run import Run
from matryoshka.scores.result import Measure, NotMeasurable, Result, Score
from matryoshka.study.hooked import hook_all

WORDS, D_SAE = 120, 80
GROUPS = [f"word {i // 3}" for i in range(3 * WORDS)]
"""Each word three times."""
PLANTED = np.repeat(np.random.default_rng(0).random(WORDS) < 0.4, 3)


def made(
    latents: dict[int, np.ndarray] | None = None,
    labels: np.ndarray = PLANTED,
    paths: list[tuple[str, ...]] | None = None,
    told: bool = True,
    density: float = 0.1,
    seed: int = 1,
) -> LabelledRows:
    """Rows whose x tells the labels (or nothing); noise of a known density but for the `latents` given."""
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((len(labels), 6)).astype(np.float32)
    x[:, 2] += 4 * labels * told
    dense = (generator.random((len(labels), D_SAE)) < density) * generator.exponential(size=(len(labels), D_SAE))
    for column, values in (latents or {}).items():
        dense[:, column] = values
    paths = paths or [("yes",) if label else ("no",) for label in labels]
    examples = tuple(LabelledExample(group, None, path, group) for group, path in zip(GROUPS, paths, strict=True))
    test = np.array([is_test(group) for group in GROUPS])
    return LabelledRows(LabelledText("made", examples), x, x, sp.csr_array(dense.astype(np.float32)), test, 0)


def fires_on(where: np.ndarray, seed: int = 5) -> np.ndarray:
    return where * (0.5 + np.random.default_rng(seed).random(len(where)))


def the(result: Result, measure: Measure, width: int) -> Score:
    (found,) = [each for each in result.scores if each.measure == measure and each.width == width]
    return found


def test_one_latent_that_is_the_concept_tells_all_of_it() -> None:
    result = measure([made({50: fires_on(PLANTED)})], (40, D_SAE))
    for k in (1, 2, 5):
        assert the(result, AUC[k], D_SAE).value == pytest.approx(1, abs=0.01)
        assert the(result, ACCURACY[k], D_SAE).value == pytest.approx(1, abs=0.03)
    (row,) = result.details["concepts"]
    assert row["prefixes"][str(D_SAE)]["1"]["latents"] == [50]
    assert row["prefixes"][str(D_SAE)]["5"]["latents"][0] == 50


def test_latents_beyond_a_prefix_do_not_help_it() -> None:
    result = measure([made({50: fires_on(PLANTED)})], (40, D_SAE))
    assert the(result, ACCURACY[1], 40).value == pytest.approx(0.5, abs=0.1)
    (row,) = result.details["concepts"]
    for k in ("1", "2", "5"):
        assert max(row["prefixes"]["40"][k]["latents"]) < 40


def test_the_null_is_of_other_latents_that_fire_as_often() -> None:
    """Of latents without any knowledge it is 1/2; where all that fire as often know the concept, it is high too."""
    ignorant = measure([made({50: fires_on(PLANTED)}, density=PLANTED.mean())], (D_SAE,))
    for k in (1, 2, 5):
        assert the(ignorant, AUC[k], D_SAE).null == pytest.approx(0.5, abs=0.06)
        assert the(ignorant, ACCURACY[k], D_SAE).null == pytest.approx(0.5, abs=0.06)
    # 25 latents of the concept among sparser ones that know nothing
    knowing = {column: fires_on(PLANTED, column) for column in range(25)}
    assert the(measure([made(knowing, density=0.02)], (D_SAE,)), AUC[1], D_SAE).null == pytest.approx(1, abs=0.01)


def test_a_draw_of_the_null_holds_no_chosen_latent_and_none_twice() -> None:
    fires = np.array([0, 50, 51, 49, 52, 48, 50, 5, 400, 0])
    for seed in range(100):
        drawn = as_dense(fires, np.array([1, 2, 7]), np.random.default_rng(seed)).tolist()
        assert len(set(drawn)) == 3
        assert not {0, 1, 2, 7, 9} & set(drawn)  # neither chosen nor silent
    only_two = as_dense(np.array([3, 3, 3, 0]), np.array([0, 1]), np.random.default_rng(0))
    assert only_two.tolist() == [2]


def test_the_null_takes_the_nearest_in_firing() -> None:
    fires = np.array([0, 50, 30, 49, 90, 400, 390, 5])
    for seed in range(20):
        drawn = as_dense(fires, np.array([1, 5]), np.random.default_rng(seed), neighbours=1)
        assert drawn.tolist() == [3, 6]


def test_the_dense_probe_is_of_x() -> None:
    result = measure([made()], (40, D_SAE))
    dense = the(result, DENSE_AUC, D_SAE)
    assert dense.value > 0.98
    assert the(result, ACCURACY[1], D_SAE).value < 0.65
    (row,) = result.details["concepts"]
    assert row["coordinates"]["1"]["auc"] == pytest.approx(dense.value, abs=0.02)  # one coordinate of x tells it


def test_nothing_is_learnt_from_test_rows() -> None:
    """A latent that is the concept on test rows alone is not chosen; one that is it on training rows alone is."""
    rows = made()
    only_test = made({50: fires_on(PLANTED & rows.test)})
    assert 50 not in measure([only_test], (D_SAE,)).details["concepts"][0]["prefixes"][str(D_SAE)]["1"]["latents"]
    result = measure([made({50: fires_on(PLANTED & ~rows.test)})], (D_SAE,))
    assert result.details["concepts"][0]["prefixes"][str(D_SAE)]["1"]["latents"] == [50]
    assert the(result, ACCURACY[1], D_SAE).value == 0.5


def test_dead_latents_tell_nothing_and_are_counted() -> None:
    silent = made({column: np.zeros(len(PLANTED)) for column in range(60)})
    result = measure([silent], (40, D_SAE))
    for k in (1, 2, 5):
        assert the(result, ACCURACY[k], 40).value == the(result, AUC[k], 40).value == 0.5
        assert the(result, ACCURACY[k], 40).null == 0.5
    assert result.details["silent"] == {"made": {"40": 40, str(D_SAE): 60}}


def test_units_are_concepts_and_a_concept_is_not_counted_twice() -> None:
    """yes and no are one task; of ("a", "b") everywhere, a/b is a again; words are too rare to be concepts."""
    third = np.repeat(np.arange(WORDS) % 3, 3)
    paths = [(("a", "b"), ("c", f"word {i // 3}"), ("d",))[which] for i, which in enumerate(third)]
    rows = made(labels=third == 0, paths=paths)
    rows.x[:, 3] += 4 * (third == 1)
    found = measurable([rows, made()])
    assert [task.name for task in found.tasks] == ["made/a", "made/c", "made/d", "made/no"]
    assert found.rare == WORDS / 3
    assert (found.tasks[1].labels == (third == 1)).all()
    assert [task.name for task in measurable([made()], opposites=True).tasks] == ["made/no", "made/yes"]
    assert the(measure([rows], (D_SAE,)), ACCURACY[1], D_SAE).units == ("made/a", "made/c", "made/d")


def test_what_the_site_does_not_tell_of_is_left_out() -> None:
    with pytest.raises(
        NotMeasurable, match=r"dense probe's AUC of 0\.7 .* of 1 with enough of them, the best is made/"
    ):
        measure([made({50: fires_on(PLANTED)}, told=False)], (D_SAE,))
    both = made(labels=PLANTED, told=False)
    result = measure([both._replace(labelled=LabelledText("noise", both.labelled.examples)), made()], (D_SAE,))
    assert the(result, ACCURACY[1], D_SAE).units == ("made/no",)
    assert len(result.details["left_out"]["not_told_at_the_site"]) == 1


def test_a_concept_of_few_words_is_left_out() -> None:
    rows = made()
    few = [group for group in dict.fromkeys(GROUPS) if is_test(group)][: LEAST_GROUPS - 1]
    labels = np.array(
        [group in few or (not is_test(group) and yes) for group, yes in zip(GROUPS, PLANTED, strict=True)]
    )
    with pytest.raises(NotMeasurable, match="of 0 with enough of them"):
        measure([made(labels=labels)], (D_SAE,))
    assert measurable([rows]).rare == 0


def test_folds_keep_groups_whole_and_have_both_labels() -> None:
    generator = np.random.default_rng(3)
    for _ in range(50):
        labels = generator.random(30) < generator.uniform(0.1, 0.9)
        groups = [f"g{i}" for i in generator.integers(0, 9, 30)]
        with_yes = {group for group, label in zip(groups, labels, strict=True) if label}
        with_no = {group for group, label in zip(groups, labels, strict=True) if not label}
        parts = folds(groups, labels)
        assert (np.sum(parts, axis=0) == 1).all()
        for part in parts:
            inside = {group for group, kept in zip(groups, part, strict=True) if kept}
            assert not inside & {group for group, kept in zip(groups, part, strict=True) if not kept}
            if min(len(with_yes), len(with_no)) >= LEAST_GROUPS:
                assert labels[~part].any()
                assert not labels[~part].all()


def test_folds_do_not_gather_the_few_groups_of_a_label() -> None:
    groups = [f"g{i}" for i in range(60)]
    generator = np.random.default_rng(3)
    for label in (True, False) * 30:
        labels = np.full(60, not label)
        labels[generator.choice(60, LEAST_GROUPS, replace=False)] = label
        assert all((labels[part] == label).sum() == 1 for part in folds(groups, labels))


def test_the_same_rows_give_the_same_numbers() -> None:
    first, second = (measure([made({50: fires_on(PLANTED)})], (40, D_SAE)) for _ in range(2))
    assert first.details == second.details
    assert [each.as_json() for each in first.scores] == [each.as_json() for each in second.scores]


def test_it_says_how_far_it_is() -> None:
    told: list[tuple[int, int]] = []
    measure(
        [made(), made(seed=2)._replace(labelled=LabelledText("b", made().labelled.examples))],
        (D_SAE,),
        lambda *at: told.append(at),
    )
    assert told == [(1, 2), (2, 2)]


def test_a_trained_coder_tells_plurals_and_genres(lm: LanguageModel, tokens: Tokens, trained: Run) -> None:
    [hooked] = hook_all([trained.coder], lm, tokens.windows("held_out"))
    sets = [
        encode_labelled(hooked, read_labelled(lm, [hooked], labelled))
        for labelled in shipped()
        if labelled.name in ("genre", "number")
    ]
    result = measure(sets, hooked.coder.widths)
    widths = hooked.coder.widths
    assert {(each.measure, each.width) for each in result.scores} == {
        *((measure, width) for measure in (*ACCURACY.values(), *AUC.values()) for width in widths),
        *((measure, widths[-1]) for measure in MEASURES[-2:]),
    }
    best = the(result, ACCURACY[5], widths[-1])
    assert {"genre/kjv", "number/plural"} <= set(best.units)
    assert best.null is not None
    assert the(result, DENSE_AUC, widths[-1]).value > 0.9
    assert best.value > best.null + 0.05
    assert best.value > the(result, ACCURACY[1], widths[-1]).value
