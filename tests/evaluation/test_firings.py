"""One pass of the language model: what it keeps, against reading the same windows by hand."""

import numpy as np
import pytest
import torch

from matryoshka.coder.coder import CoderConfig, SparseCoder
from matryoshka.data.activations import RowFilter
from matryoshka.data.tokens import Tokens
from matryoshka.evaluation.firings import FEATURES, Reading, is_test, middle, read
from matryoshka.evaluation.placed import Placed
from matryoshka.lm.model import LanguageModel
from matryoshka.lm.sites import Site
from matryoshka.progress import silent

READ, WRITE = Site("mlp_in", 2), Site("mlp_out", 2)
WINDOWS = 40  # more than one batch
HALVES = [False, True, True, True, True, False, True, False]
"""Of the first documents of a text, for ever: results on disk were measured so."""


@pytest.fixture(scope="module")
def placed() -> Placed:
    # of the 60 that are largest some are not positive: they do not fire
    config = {"d_in": 192, "d_out": 192, "d_sae": 96, "widths": (8, 96), "activation": "topk", "k": 60}
    return Placed(SparseCoder(CoderConfig.model_validate(config)).initialise(0, tied=False), READ, WRITE)


@pytest.fixture(scope="module")
def reading(lm: LanguageModel, tokens: Tokens, placed: Placed) -> Reading:
    return read(lm, tokens.windows("held_out"), placed, 64 * WINDOWS, silent)


def test_what_is_kept_is_what_the_language_model_and_the_coder_say(
    lm: LanguageModel, tokens: Tokens, placed: Placed, reading: Reading
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
        dense[counted.flatten()] = placed.coder.eval().encode(activations[READ][counted]).dense() > 0
    assert dense.any()
    for latent in range(96):
        assert np.array_equal(reading.firings(latent), dense[:, latent].nonzero().squeeze(1).numpy())

    kept, x = reading.residual[counted.flatten()], activations[sites[2]][counted].numpy()
    assert np.isfinite(reading.residual).all()
    assert kept / np.linalg.norm(kept, axis=1, keepdims=True) == pytest.approx(
        x / np.linalg.norm(x, axis=1, keepdims=True), abs=2e-3
    )


def test_projections_are_of_standardised_activations_onto_as_many_directions_as_latents_may_be_drawn(
    lm: LanguageModel, tokens: Tokens, reading: Reading
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


def test_a_pass_leaves_the_coder_in_the_mode_in_which_it_was(lm: LanguageModel, tokens: Tokens, placed: Placed) -> None:
    told: list[tuple[int, int]] = []
    for mode in (True, False):
        placed.coder.train(mode)
        read(lm, tokens.windows("held_out"), placed, 64 * 3, lambda *at: told.append(at))
        assert placed.coder.training == mode
    assert told == [(3, 3), (3, 3)]


def test_the_half_of_a_document_depends_on_nothing_but_the_text_and_its_number() -> None:
    documents = np.arange(400).reshape(20, 20)
    test = is_test("a text", documents)
    assert 0.4 < test.mean() < 0.6
    assert np.array_equal(is_test("a text", documents[::-1, 5:]), test[::-1, 5:])
    assert not np.array_equal(is_test("another text", documents), test)
    assert is_test("a text", documents)[0, :8].tolist() == HALVES
