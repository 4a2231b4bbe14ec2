"""Coders side by side: rows, columns, nulls, differences in words."""

import numpy as np
import pytest

from matryoshka.evaluation.scores import Measure, Result, score
from matryoshka.report import comparison
from matryoshka.report.comparison import Entry, cell, columns, differences, markdown, reasons, tidy, verdict

LOSS = Measure("loss", "lower", "A ratio of sums.", null="another token")
SHARE = Measure("share", "higher", "Another.", headline=False, percent=True)
DEAD = Measure("dead", "lower", "A count.", unit="dictionary", percent=True)


def result(shift: float, dead: float = 0.1, seed: int = 0) -> Result:
    noise = np.random.default_rng(seed).normal(size=60)
    scores = [score(LOSS, width, range(60), noise + 1 + shift + 1 / width, null=2.0) for width in (4, 8)]
    return Result((*scores, score(SHARE, 8, range(60), noise > 0), score(DEAD, 8, ["all"], [dead])))


FIRST = Entry("first", [{"reconstruction": result(0)}])
WORSE = Entry("worse", [{"reconstruction": result(0.3)}])


def test_columns_are_the_headlines_and_a_repeated_name_says_of_what() -> None:
    assert [column.head for column in columns([FIRST])] == ["loss ↓", "dead ↓"]
    assert [column.head for column in columns([FIRST], headlines=False)] == ["loss ↓", "share ↑", "dead ↓"]
    twice = Entry("twice", [{"letters": result(0), "animals": result(0)}])
    assert [column.head for column in columns([twice])][:3] == ["letters: loss ↓", "letters: dead ↓", "animals: loss ↓"]


def test_a_cell_says_how_sure_it_is_and_what_chance_gives() -> None:
    loss, dead = columns([FIRST])
    found = cell(FIRST.scores(loss))
    assert found.null == "null 2.000"
    assert found.spread.count(" – ") == 1
    assert FIRST.scores(loss)[0].width == 8, "the whole dictionary"
    assert FIRST.scores(loss, 4)[0].width == 4
    assert cell(FIRST.scores(dead)) == ("10.0 %", "", "")
    assert cell([]) == ("–", "", "")


def test_seeds_are_one_row_with_their_spread() -> None:
    seeds = Entry("seeds", [{"reconstruction": result(shift)} for shift in (0, 0.1, 0.2)])
    loss = columns([seeds])[0]
    expected = result(0.1).of("loss")[-1].value
    assert cell(seeds.scores(loss)) == (f"{expected:.3f}", "± 0.100", "null 2.000")
    lacking = Entry("lacking", [{"reconstruction": result(0)}, {}])
    assert lacking.scores(loss) == [], "a mean over some of the seeds would be one of another recipe"


def test_differences_are_told_in_words() -> None:
    found = {each.column.measure.name: each for each in differences([FIRST, WORSE])}
    assert verdict(found["loss"]) == "worse"
    assert found["loss"].found is not None
    assert found["loss"].found.difference == pytest.approx(0.3)
    assert "of unknown spread" in verdict(found["dead"])
    same = next(iter(differences([FIRST, Entry("same", [{"reconstruction": result(0)}])])))
    assert verdict(same) == "inside the noise"
    better = next(iter(differences([WORSE, FIRST])))
    assert verdict(better) == "better"


def test_what_cannot_be_compared_says_why() -> None:
    seeds = Entry("seeds", [{"reconstruction": result(0)}, {"reconstruction": result(0.1)}])
    assert verdict(next(iter(differences([FIRST, seeds])))) == "not compared (2 against 1 seeds)"
    nothing = Entry("nothing", [{}])
    assert verdict(next(iter(differences([FIRST, nothing])))) == "not compared (not measured of both)"
    elsewhere = Entry("elsewhere", [{"reconstruction": Result((score(LOSS, 8, ["x", "y"], [1, 2]),))}])
    assert "no document in common" in verdict(next(iter(differences([FIRST, elsewhere]))))


def test_reasons_are_said_once() -> None:
    silent = [Entry(name, [{"absorption": Result((), reason="cannot spell")}]) for name in ("a", "b")]
    assert reasons(silent) == ["absorption: cannot spell (a, b)"]


def test_the_report_holds_every_score_and_what_it_means() -> None:
    text = markdown([FIRST, WORSE, Entry("no|pe", [{"absorption": Result((), reason="cannot spell")}])])
    for part in ("| first |", "first 4 |", "A ratio of sums. Null: another token.", "share ↑", "worse", "cannot spell"):
        assert part in text, part
    assert "no\\|pe" in text, "a name cannot break the table"
    rows = tidy([FIRST, WORSE])
    assert len(rows) == 8
    assert {"entry", "seed", "evaluation", "name", "width", "value", "low", "high", "null"} <= rows[0].keys()
    assert comparison.parquet([FIRST])[:4] == b"PAR1"
