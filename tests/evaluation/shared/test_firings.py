"""One pass of the language model: what it keeps, against reading the same windows by hand."""

import numpy as np
import pytest
import torch

from matryoshka.coder.architecture import CoderConfig, TopKConfig
from matryoshka.coder.coder import SparseCoder
from matryoshka.data.rowfilter import SAMPLE, RowFilter
from matryoshka.data.tokens import Tokens
from matryoshka.evaluation.shared.firings import FEATURES, TextFirings, is_test, middle, read_firings
from matryoshka.lm.model import LanguageModel
from matryoshka.lm.sites import Site, Wiring
from matryoshka.progress import silent
from matryoshka.study.hooked import HookedCoder

READ, WRITE = Site("mlp_in", 2), Site("mlp_out", 2)
WINDOWS = 40  # more than one batch
HALVES = [False, True, True, True, True, False, True, False]
"""Of the first documents of a text, for ever: results on disk were measured so."""


@pytest.fixture(scope="module")
def hooked(lm: LanguageModel, tokens: Tokens) -> HookedCoder:
    # of the 60 that are largest some are not positive: they do not fire
    config = CoderConfig(reads=(192,), writes=(192,), d_sae=96, widths=(8, 96), activation=TopKConfig(k=60))
    coder = SparseCoder(config).initialise(0, tied=False).eval()
    wiring = Wiring.of([READ], [WRITE])
    return HookedCoder(coder, wiring, RowFilter.measure(lm, tokens.windows("held_out"), wiring.sites))


@pytest.fixture(scope="module")
def reading(lm: LanguageModel, tokens: Tokens, hooked: HookedCoder) -> TextFirings:
    other = hooked._replace(wiring=Wiring.of([WRITE], [READ]), fingerprint="another coder of the same pass")
    return read_firings(lm, tokens.windows("held_out"), [other, hooked], 64 * WINDOWS, silent)[1]


def test_what_is_kept_is_what_the_language_model_and_the_coder_say(
    lm: LanguageModel, tokens: Tokens, hooked: HookedCoder, reading: TextFirings
) -> None:
    windows = tokens.windows("held_out")
    numbers = np.arange(WINDOWS) * len(windows) // WINDOWS
    batch = torch.from_numpy(windows[numbers])
    sites = [READ, WRITE, Site("resid_post", 1)]
    activations = lm.read(batch, sites)
    counted = RowFilter.measure(lm, windows, sites)(batch, activations)
    assert middle(lm) == sites[2]
    assert np.array_equal(reading.tokens, batch.numpy())
    assert np.array_equal(reading.documents, windows.documents(numbers))
    assert np.array_equal(reading.counted, counted.numpy())

    dense = torch.zeros(64 * WINDOWS, 96, dtype=torch.bool)
    with torch.no_grad():
        dense[counted.flatten()] = hooked.coder.encode(activations[READ][counted]).dense() > 0
    assert dense.any()
    for latent in range(96):
        assert np.array_equal(reading.firings(latent), dense[:, latent].nonzero().squeeze(1).numpy())

    kept, x = reading.residual[counted.flatten()], activations[sites[2]][counted].numpy()
    assert np.isfinite(reading.residual).all()
    assert kept / np.linalg.norm(kept, axis=1, keepdims=True) == pytest.approx(
        x / np.linalg.norm(x, axis=1, keepdims=True), abs=2e-3
    )


def test_projections_are_of_standardised_activations_onto_as_many_directions_as_latents_may_be_drawn(
    lm: LanguageModel, tokens: Tokens, reading: TextFirings
) -> None:
    """No direction is steeper for a dimension's large variance: a least-squares fit on the standardised activations
    leaves nothing over, and the variance of the projections is that of unit vectors."""
    windows = tokens.windows("held_out")
    batch = torch.from_numpy(windows[np.arange(WINDOWS) * len(windows) // WINDOWS])
    counted = reading.counted.ravel()
    x = lm.read(batch, [READ])[READ].flatten(0, 1).double().numpy()[counted]
    y = reading.projections[counted].astype(np.float64)
    assert y.shape == (counted.sum(), 8 + FEATURES)
    assert not reading.projections[~counted].any()
    standard = (x - x.mean(0)) / x.std(0)
    directions, *_ = np.linalg.lstsq(standard, y - y.mean(0), rcond=None)
    assert standard @ directions + y.mean(0) == pytest.approx(y, abs=2e-3 * np.abs(y).max())
    assert y.var(0).mean() == pytest.approx(1, abs=0.2)
    assert np.abs(np.corrcoef(y.T) - np.eye(8 + FEATURES)).max() < 0.8


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("rows", [0, 1])
def test_where_hardly_a_row_counts_at_first_the_projections_are_not_standardised(
    lm: LanguageModel, tokens: Tokens, hooked: HookedCoder, rows: int
) -> None:
    """The first windows, that others are standardised by, hold no row with so small a norm, or one."""
    windows = tokens.windows("held_out")
    windows._rows = windows._rows[: 20 * SAMPLE]  # of a shorter text
    first = lm.read(torch.from_numpy(windows[:SAMPLE]), [READ])[READ][:, 1:].norm(dim=-1).flatten().sort().values
    largest = first[:2].mean().item() if rows else first[0].item() * 0.999
    few = hooked._replace(keep=hooked.keep.and_at({READ: largest}))
    [reading] = read_firings(lm, windows, [few], windows.context * len(windows), silent)
    counted = reading.counted.ravel()
    assert counted[: SAMPLE * windows.context].sum() == rows
    assert 1 < counted.sum() < 1000
    ratio = np.linalg.norm(reading.projections[counted].astype(np.float64), axis=1) / largest
    assert (ratio < np.sqrt(8 + FEATURES)).all()
    assert (ratio > 0).all()


def test_one_pass_of_the_language_model_is_enough_for_several_coders(
    lm: LanguageModel, tokens: Tokens, hooked: HookedCoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []
    forward = LanguageModel._forward
    monkeypatch.setattr(LanguageModel, "_forward", lambda self, tokens: passes.append(1) or forward(self, tokens))
    taken = []
    for coders in ([hooked], [hooked, hooked._replace(fingerprint="b"), hooked._replace(fingerprint="c")]):
        told: list[tuple[int, int]] = []
        read_firings(lm, tokens.windows("held_out"), coders, 64 * 20, lambda *at, told=told: told.append(at))
        assert told == [(16, 20), (20, 20)]
        taken.append(len(passes))
        passes.clear()
    assert taken[0] == taken[1]


def test_the_half_of_a_document_depends_on_nothing_but_the_text_and_its_number() -> None:
    documents = np.arange(400).reshape(20, 20)
    test = is_test("a text", documents)
    assert 0.4 < test.mean() < 0.6
    assert np.array_equal(is_test("a text", documents[::-1, 5:]), test[::-1, 5:])
    assert not np.array_equal(is_test("another text", documents), test)
    assert is_test("a text", documents)[0, :8].tolist() == HALVES
