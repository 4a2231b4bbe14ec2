"""What the latents of a coder are like: against numpy, and where all tokens are alike."""

from pathlib import Path

import numpy as np
import pytest
import torch
from coders import random_coder
from planted import latents, recorded

from matryoshka.analysis import profiles
from matryoshka.analysis.profiles import logit_effects, mean_activations, mean_positions, token_entropies
from matryoshka.data.tokens import Tokens
from matryoshka.lm.model import LanguageModel
from matryoshka.lm.unembed import direct_logits

ROWS = 1024


@pytest.mark.parametrize("entries", [50, profiles.ENTRIES])
def test_sums_over_firings_are_those_of_dense_latents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entries: int
) -> None:
    monkeypatch.setattr(profiles, "ENTRIES", entries)
    dense, left_out = latents(0, ROWS, 12, 0.2), np.random.default_rng(1).random(ROWS) < 0.1
    dense[:, 5] = 0
    [coder] = recorded(tmp_path / "recording", dense, left_out=(left_out,))
    coder.tokens = np.random.default_rng(2).integers(0, 7, ROWS).astype(np.uint32)
    depths = np.arange(ROWS) % 64
    dense[left_out] = 0
    fires, kept = dense > 0, depths[~left_out]
    share = np.array([((kept < depth).mean() + (kept <= depth).mean()) / 2 for depth in range(64)])[depths]
    for latent in range(12):
        own = fires[:, latent]
        p = np.bincount(coder.tokens[own].astype(int)) / max(1, own.sum())
        entropy = -(p[p > 0] * np.log2(p[p > 0])).sum()
        assert token_entropies(coder)[latent] == pytest.approx(entropy)
        assert mean_positions(coder, depths)[latent] == pytest.approx(share[own].mean() if own.any() else 0, abs=1e-6)
        mean = dense[own, latent].astype(np.float32).mean(dtype=np.float64) if own.any() else 0
        assert mean_activations(coder)[latent] == pytest.approx(mean)


def test_a_latent_of_document_starts_lies_early_and_one_of_a_single_token_has_no_entropy(tmp_path: Path) -> None:
    depths, dense = np.arange(ROWS) % 64, np.zeros((ROWS, 3))
    dense[depths < 2, 0] = dense[::7, 1] = dense[depths > 31, 2] = 1.0
    [coder] = recorded(tmp_path / "recording", dense)
    coder.tokens = (np.arange(ROWS) % 7).astype(np.uint32)
    early, anywhere, late = mean_positions(coder, depths)
    assert early == pytest.approx(1 / 64)
    assert anywhere == pytest.approx(0.5, abs=0.01)
    assert late == pytest.approx(0.75)
    assert token_entropies(coder)[1] == 0


def test_logit_effects_are_of_what_goes_into_the_residual_stream(lm: LanguageModel, tokens: Tokens) -> None:
    windows = tokens.windows("held_out")
    stream, inside = (random_coder(lm, windows, site, site) for site in ("1.resid_post", "1.mlp_in"))
    features, means = np.array([3, 17]), np.array([2.0, 0.5])
    logits = direct_logits(lm, stream.coder.decoder_rows(torch.from_numpy(features)), 1.5)[:, : len(lm.token_bytes)]
    effects = logit_effects(lm, stream, features, means, 1.5)
    assert effects is not None
    assert effects == pytest.approx(means * logits.numpy().std(1), rel=1e-5)
    assert logit_effects(lm, inside, features, means, 1.5) is None


def test_depths_count_from_the_start_of_the_document(tokens: Tokens) -> None:
    windows, some = tokens.windows("held_out"), slice(400)
    documents, depths = (of(some).reshape(-1) for of in (windows.documents, windows.depths))
    first = int(windows.bos is not None)
    inside = np.arange(len(depths)) % windows.context > first
    same = documents[1:] == documents[:-1]
    assert (np.diff(depths)[same & inside[1:]] == 1).all()
    assert (depths[1:][~same] == 0).all()
    assert (~same).any()
    assert depths[first] == 0
