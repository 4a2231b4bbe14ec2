"""How often features fire and what rings do: exact against dense latents, and nothing found where rings are alike."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from planted import latents, recorded

from matryoshka.analysis import densities
from matryoshka.analysis.corpus import Corpus
from matryoshka.analysis.densities import analyse
from matryoshka.analysis.observed import Observed
from matryoshka.coder.architecture import CoderConfig, TopKConfig
from matryoshka.coder.coder import SparseCoder
from matryoshka.data.rowfilter import RowFilter
from matryoshka.lm.sites import Site, Wiring
from matryoshka.scores.result import NotMeasurable, Result
from matryoshka.study.hooked import HookedCoder

ROWS = 2048


class PlantedText(Corpus):
    """A text of which nothing is read but its name."""

    def __init__(self) -> None:
        self.windows = SimpleNamespace(tokens=SimpleNamespace(hash="planted"), split="held_out")  # type: ignore[assignment]


def found(folder: Path, dense: np.ndarray, widths: tuple[int, ...], left_out: np.ndarray | None = None) -> Result:
    [coder] = recorded(folder / "recording", dense, left_out=() if left_out is None else (left_out,))
    config = CoderConfig(reads=(4,), writes=(4,), d_sae=dense.shape[1], widths=widths, activation=TopKConfig(k=2))
    site = Site.parse("1.resid_post")
    hooked = HookedCoder(SparseCoder(config), Wiring.of([site], [site]), RowFilter(None, {}))
    return analyse(Observed("planted", hooked, coder), PlantedText())


def test_all_numbers_are_those_of_the_dense_latents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In blocks that end within a token's entries, with tokens that do not count and tokens on which nothing fires."""
    monkeypatch.setattr(densities, "ENTRIES", 97)
    dense = latents(0, ROWS, 40)
    dense[:, 3], dense[:, 30:33], dense[:, 7] = latents(1, ROWS, 1, 0.5)[:, 0], 0, 0
    dense[[5, 900], 7] = 1.5
    dense[64:96] = 0
    left_out = np.random.default_rng(2).random(ROWS) < 0.1
    result = found(tmp_path, dense, (8, 40), left_out)
    kept, documents = dense[~left_out], (np.arange(ROWS) // 64)[~left_out]
    fires = kept > 0
    assert result.details["firings"] == fires.sum(0).tolist()
    assert (result.details["tokens"], result.details["documents"]) == (len(kept), 32)
    first, second = result.details["rings"]
    assert (first["dense"], second["silent"], first["rare"]) == (1, 3, 1)
    assert first["living"] + second["living"] == (fires.sum(0) >= 10).sum()
    scores = {score.measure.name: score for score in result.scores}
    assert scores["L0"].value == pytest.approx(fires.sum() / len(kept))
    assert scores["L0 of ring 1"].value == pytest.approx(fires[:, 8:].sum() / len(kept))
    assert scores["activation of ring 0"].value == pytest.approx(kept[:, :8].sum() / kept.sum())
    assert scores["living of ring 1"].value == pytest.approx((fires[:, 8:].sum(0) >= 10).mean())
    of_document = [kept[documents == number][:, :8].sum() for number in range(32)]
    np.testing.assert_allclose(scores["activation of ring 0"].numerator, of_document, rtol=1e-6)


def test_where_rings_are_alike_their_nulls_lie_in_nineteen_of_twenty_intervals(tmp_path: Path) -> None:
    """Of features that all fire equally often the place in the dictionary is of no account."""
    inside = 0
    for seed in range(40):
        result = found(tmp_path / str(seed), latents(seed, ROWS, 32, 0.05), (8, 32))
        [score] = result.of("activation of ring 0")
        assert score.null == 0.25
        inside += score.interval.low <= score.null <= score.interval.high
    assert inside >= 33, "fewer of 40 at a chance of 95 % each are seen once in 500 times"


def test_a_ring_that_does_more_is_found(tmp_path: Path) -> None:
    dense = latents(0, ROWS, 32, 0.02)
    dense[:, :8] = latents(1, ROWS, 8, 0.2)
    result = found(tmp_path, dense, (8, 32))
    for name in ("activation of ring 0", "L0 of ring 0", "dense of ring 0"):
        [score] = result.of(name)
        assert score.null is not None
        assert score.interval.low > score.null
        assert score.interval.low < score.value < score.interval.high or score.value == 1


def test_one_ring_has_no_rings_to_tell_of_and_silence_is_said(tmp_path: Path) -> None:
    alone = found(tmp_path, latents(0, ROWS, 16), (16,))
    assert {score.measure.name for score in alone.scores} == {"L0", "living", "dense", "rare", "silent"}
    with pytest.raises(NotMeasurable, match="no feature of planted fires on 2,048 tokens"):
        found(tmp_path / "silent", np.zeros((ROWS, 16)), (16,))
