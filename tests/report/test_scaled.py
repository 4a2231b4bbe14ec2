"""Scaling of trained coders: the runs that are taken together, their laws, table and figure."""

import numpy as np
import pytest
import torch

from matryoshka import api
from matryoshka.coder.coder import SparseCoder
from matryoshka.config import merged
from matryoshka.report.scaled import ScalingLaws, scaling
from matryoshka.run import Run
from matryoshka.training.recipe import Config

from ..conftest import SMALL

WIDTHS = (16, 32, 64, 128, 256)


@pytest.fixture(scope="module")
def widths(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Five plain coders and a nested one."""
    alone = [{"d_sae": width, "widths": [1.0]} for width in WIDTHS]
    base = {
        "coder": {"read": "1.resid_post", "write": None},
        "training": {"tokens": 4096},
        "evaluation": {"tokens": 512},
    }
    config = merged(SMALL, {**base, "variants": [*alone, {"seed": 1}]})
    return api.train(Config.build(config), tmp_path_factory.mktemp("scaling") / "widths")


@pytest.fixture(scope="module")
def scaled(widths: Run) -> ScalingLaws:
    return scaling(widths)


def test_coders_and_prefixes_are_series_of_what_was_measured(widths: Run, scaled: ScalingLaws) -> None:
    table = scaled.runs()
    assert sorted(table["series"].unique()) == ["bundled 1.resid_post, alone", "bundled 1.resid_post, prefixes"]
    alone = table[table["series"].str.endswith("alone")].sort_values("n")
    nested = table[table["series"].str.endswith("prefixes")]
    assert alone["n"].tolist() == list(WIDTHS)
    assert nested["n"].tolist() == [32, 96, 256]
    assert set(table["k"]) == {6}
    assert set(table["T"]) == {4096}
    for name, of_coder in table.groupby("coder"):
        run = Run(widths.path / str(name))
        assert of_coder["fvu"].tolist() == api.results(run).values("FVU")
        rows = SparseCoder.load(run.path).decoder_rows(torch.arange(of_coder["n"].max())).detach().double().numpy()
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        for width, live, own in of_coder[["n", "live", "distinct"]].to_numpy():
            assert own <= live <= width
            if live == width:
                later = np.tril(rows[:width] @ rows[:width].T, -1) >= 0.9
                assert own == width - later.any(1).sum()


def test_the_law_is_of_the_plain_coders_and_why_there_is_none_is_said(scaled: ScalingLaws) -> None:
    alone, nested = scaled.series
    assert alone.law is not None
    assert [parameter.name for parameter in alone.law.parameters] == ["α", "β_n", "ζ"]
    assert alone.law.of("β_n").value < 0, "wider ones leave less"
    assert nested.law is None
    assert nested.reason == "3 values of n; a law needs 4"
    table = scaled.table()
    assert table["parameter"].tolist() == ["α", "β_n", "ζ"]
    assert (table["low"] <= table["high"]).all()
    assert "no law: 3 values of n" in str(scaled)
    assert "β_n" in str(scaled)


def test_the_figure_has_a_panel_a_series(scaled: ScalingLaws) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    first, second = scaled.plot().axes
    dots, law = first.lines
    assert np.array_equal(np.sort(dots.get_ydata()), np.sort([run.fvu for run in scaled.series[0].runs]))
    assert len(np.asarray(law.get_ydata())) == 50
    assert len(second.lines) == 1, "no law"
