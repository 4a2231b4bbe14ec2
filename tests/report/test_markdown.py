"""Scores as people read them: cells with their spread and null, and the report."""

import numpy as np

from matryoshka.report.cells import cell
from matryoshka.report.markdown import markdown, parquet
from matryoshka.scores.comparison import Entry, Target, columns
from matryoshka.scores.result import Measure, Result, score

LOSS = Measure("loss", "lower", "A ratio of sums.", null="another token", of_target=True)
SHARE = Measure("share", "higher", "Another.", headline=False, percent=True)
DEAD = Measure("dead", "lower", "A count.", unit="dictionary", percent=True)
MLP = Target("a model", ("1.mlp_out",))


def result(shift: float, dead: float = 0.1, seed: int = 0) -> Result:
    noise = np.random.default_rng(seed).normal(size=60)
    scores = [score(LOSS, width, range(60), noise + 1 + shift + 1 / width, null=2.0) for width in (4, 8)]
    return Result((*scores, score(SHARE, 8, range(60), noise > 0), score(DEAD, 8, ["all"], [dead])))


FIRST = Entry("first", [{"reconstruction": result(0)}], MLP)
WORSE = Entry("worse", [{"reconstruction": result(0.3)}], MLP)


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
    seeds = Entry("seeds", [{"reconstruction": result(shift)} for shift in (0, 0.1, 0.2)], MLP)
    loss = columns([seeds])[0]
    expected = result(0.1).of("loss")[-1].value
    assert cell(seeds.scores(loss)) == (f"{expected:.3f}", "± 0.100", "null 2.000")


def test_the_report_holds_every_score_and_what_it_means() -> None:
    text = markdown([FIRST, WORSE, Entry("no|pe", [{"absorption": Result((), reason="cannot spell")}], MLP)])
    for part in ("| first |", "first 4 |", "A ratio of sums. Null: another token.", "share ↑", "worse", "cannot spell"):
        assert part in text, part
    assert "no\\|pe" in text, "a name cannot break the table"
    assert parquet([FIRST])[:4] == b"PAR1"


def test_the_report_says_where_nobody_is_better() -> None:
    elsewhere = WORSE._replace(target=Target("a model", ("1.resid_post",)))
    assert "not compared (they write different sites: 1.mlp_out, 1.resid_post)" in markdown([FIRST, elsewhere])
