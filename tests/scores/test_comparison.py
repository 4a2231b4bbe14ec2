"""Coders side by side: rows, columns, differences in words."""

import numpy as np
import pytest

from matryoshka.scores.comparison import Entry, Target, columns, differences, reasons, tidy, verdict
from matryoshka.scores.result import Measure, Result, score

LOSS = Measure("loss", "lower", "A ratio of sums.", null="another token", of_target=True)
SHARE = Measure("share", "higher", "Another.", headline=False, percent=True)
SEEN = Measure("seen", "higher", "What does not depend on the target.")
DEAD = Measure("dead", "lower", "A count.", unit="dictionary", percent=True)
MLP, RESIDUAL = Target("a model", ("1.mlp_out",)), Target("a model", ("1.resid_post",))


def result(shift: float, dead: float = 0.1, seed: int = 0) -> Result:
    noise = np.random.default_rng(seed).normal(size=60)
    scores = [score(LOSS, width, range(60), noise + 1 + shift + 1 / width, null=2.0) for width in (4, 8)]
    return Result((*scores, score(SHARE, 8, range(60), noise > 0), score(DEAD, 8, ["all"], [dead])))


FIRST = Entry("first", [{"reconstruction": result(0)}], MLP)
WORSE = Entry("worse", [{"reconstruction": result(0.3)}], MLP)


def test_columns_are_the_headlines_and_a_repeated_name_says_of_what() -> None:
    assert [column.head for column in columns([FIRST])] == ["loss ↓", "dead ↓"]
    assert [column.head for column in columns([FIRST], headlines=False)] == ["loss ↓", "share ↑", "dead ↓"]
    twice = Entry("twice", [{"letters": result(0), "animals": result(0)}], MLP)
    assert [column.head for column in columns([twice])][:3] == ["letters: loss ↓", "letters: dead ↓", "animals: loss ↓"]


def test_differences_are_told_in_words() -> None:
    found = {difference.column.measure.name: difference for difference in differences([FIRST, WORSE])}
    assert verdict(found["loss"]) == "worse"
    assert found["loss"].comparison is not None
    assert found["loss"].comparison.difference == pytest.approx(0.3)
    assert "of unknown spread" in verdict(found["dead"])
    same = next(iter(differences([FIRST, Entry("same", [{"reconstruction": result(0)}], MLP)])))
    assert verdict(same) == "inside the noise"
    better = next(iter(differences([WORSE, FIRST])))
    assert verdict(better) == "better"


def test_what_cannot_be_compared_says_why() -> None:
    seeds = Entry("seeds", [{"reconstruction": result(0)}, {"reconstruction": result(0.1)}], MLP)
    assert verdict(next(iter(differences([FIRST, seeds])))) == "not compared (2 against 1 seeds)"
    nothing = Entry("nothing", [{}], MLP)
    assert verdict(next(iter(differences([FIRST, nothing])))) == "not compared (not measured of both)"
    elsewhere = Entry("elsewhere", [{"reconstruction": Result((score(LOSS, 8, ["x", "y"], [1, 2]),))}], MLP)
    assert "no document in common" in verdict(next(iter(differences([FIRST, elsewhere]))))


def test_reasons_are_said_once() -> None:
    silent = [Entry(name, [{"absorption": Result((), reason="cannot spell")}], MLP) for name in ("a", "b")]
    assert reasons(silent) == ["absorption: cannot spell (a, b)"]


def test_coders_that_write_elsewhere_are_shown_but_not_judged_by_what_depends_on_the_target() -> None:
    """A residual SAE is no worse than an MLP transcoder for the variance that it has to explain."""
    scores = Result((*result(0.3).scores, score(SEEN, 8, range(60), np.arange(60) % 2)))
    first = Entry("mlp", [{"reconstruction": Result((*result(0).scores, score(SEEN, 8, range(60), np.ones(60))))}], MLP)
    residual, other_model = Entry("resid", [{"reconstruction": scores}], RESIDUAL), Target("another model", MLP.sites)
    verdicts = {difference.column.measure.name: verdict(difference) for difference in differences([first, residual])}
    assert verdicts["loss"] == "not compared (they write different sites: 1.mlp_out, 1.resid_post)"
    assert verdicts["seen"] == "worse", "what does not depend on the target is judged"
    assert "of unknown spread" in verdicts["dead"]
    elsewhere = next(iter(differences([first, residual._replace(target=other_model)])))
    assert verdict(elsewhere) == "not compared (they are of different models: a model, another model)"
    assert elsewhere.comparison is None
    assert verdict(next(iter(differences([first, residual._replace(target=MLP)])))) == "worse"


def test_the_order_of_written_sites_is_no_difference() -> None:
    both = Target("a model", ("1.mlp_out", "2.mlp_out"))
    again = both._replace(sites=both.sites[::-1])
    [loss, *_] = differences([FIRST._replace(target=both), WORSE._replace(target=again)])
    assert verdict(loss) == "worse"


def test_rows_are_tidy() -> None:
    rows = tidy([FIRST, WORSE])
    assert len(rows) == 8
    assert {"entry", "seed", "evaluation", "name", "width", "value", "low", "high", "null"} <= rows[0].keys()


def test_a_mean_over_some_of_the_seeds_would_be_one_of_another_recipe() -> None:
    lacking = Entry("lacking", [{"reconstruction": result(0)}, {}], MLP)
    assert lacking.scores(columns([FIRST])[0]) == []
