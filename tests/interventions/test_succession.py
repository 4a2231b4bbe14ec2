"""A latent removed, and what becomes of those that follow it: of a copy, against by hand, and of what lies before."""

import numpy as np
import pytest
import torch
from coders import random_coder

from matryoshka.coder.architecture import CoderConfig, TopKConfig
from matryoshka.coder.coder import SparseCoder
from matryoshka.data.rowfilter import RowFilter
from matryoshka.data.tokens import Tokens, Windows
from matryoshka.interventions.succession import MATCHED, REMOVED, Removal, falls, upstream
from matryoshka.lm.model import LanguageModel
from matryoshka.lm.sites import Site, Wiring
from matryoshka.study.hooked import HookedCoder

FIRINGS = np.random.default_rng(0).integers(1, 1000, 64)


@pytest.fixture(scope="module")
def windows(tokens: Tokens) -> Windows:
    return tokens.windows("held_out")


def separate(lm: LanguageModel, windows: Windows, *sites: str) -> HookedCoder:
    """An SAE with as many latents as there are dimensions, rows at right angles: to remove one touches no other."""
    d, site = lm.info.d_model, Site.parse(sites[0])
    config = CoderConfig(reads=(d,), writes=(d,), d_sae=d, widths=(d,), activation=TopKConfig(k=d // 4))
    coder = SparseCoder(config).initialise(0, tied=True).eval()
    with torch.no_grad():
        rows = torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(1)))[0]
        coder.W_dec.copy_(rows)
        coder.W_enc.copy_(rows.T if coder.W_enc.shape == rows.T.shape else rows)
    coder.requires_grad_(False)
    wiring = Wiring.of([site], [Site.parse(sites[-1])])
    return HookedCoder(coder, wiring, RowFilter.measure(lm, windows, wiring.sites))


def plain(lm: LanguageModel, hooked: HookedCoder, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(kept positions, dense latents of all positions) by hand."""
    activations = lm.read(tokens, hooked.wiring.sites)
    x = activations[hooked.wiring.reads[0]]
    return hooked.keep(tokens, activations)[0], hooked.coder.encode(x[0]).dense()


def firing(lm: LanguageModel, windows: Windows, first: HookedCoder, second: HookedCoder) -> list[Removal]:
    """Latents that fire together in a window each, by hand."""
    found = []
    for window in (3, 0, 7):
        tokens = torch.from_numpy(windows[[window]])
        (kept, a), (_, b) = plain(lm, first, tokens), plain(lm, second, tokens)
        a, b = a * kept[:, None], b * kept[:, None]
        for predecessor in a.sum(0).topk(2).indices.tolist():
            successor = int(((a[:, predecessor] > 0).float() @ b).argmax())
            found.append(Removal(window, predecessor, successor))
    return found


def test_a_copy_dies_and_lives_where_another_latent_is_removed(lm: LanguageModel, windows: Windows) -> None:
    """The successor reads the site that the predecessor writes, and is its copy."""
    coder = separate(lm, windows, "1.resid_post")
    removals = [trial._replace(successor=trial.predecessor) for trial in firing(lm, windows, coder, coder)]
    found = falls(lm, windows, coder, coder, removals, np.arange(1, coder.coder.widths[-1] + 1))
    assert (found.tokens > 0).all()
    assert found.after[REMOVED] == pytest.approx(np.zeros(len(removals)), abs=1e-3 * found.before.max())
    assert found.died[REMOVED].tolist() == pytest.approx(found.tokens.tolist(), abs=1)
    assert found.after[MATCHED] == pytest.approx(found.before, rel=1e-4)
    assert not found.died[MATCHED].any()


def test_falls_through_a_block_are_those_by_hand(lm: LanguageModel, windows: Windows) -> None:
    """Another window, latent and coder each, removed at every token on which it fires, in whole forward passes."""
    first, second = (random_coder(lm, windows, site, site) for site in ("1.resid_post", "2.resid_post"))
    removals = firing(lm, windows, first, second)
    told: list[tuple[int, int]] = []
    found = falls(lm, windows, first, second, removals, FIRINGS, lambda *progress: told.append(progress))
    assert told[-1] == (len(removals), len(removals))
    for i, (window, predecessor, successor) in enumerate(removals):
        tokens = torch.from_numpy(windows[[window]])
        (kept_a, a), (kept_b, b) = plain(lm, first, tokens), plain(lm, second, tokens)
        rows, own, before = first.coder.decoder_rows(), a[:, predecessor] * kept_a, b[:, successor] * kept_b
        both = (own > 0) & (before > 0)
        assert found.tokens[i] == both.sum()
        assert found.before[i] == pytest.approx(float(before[both].sum()), rel=1e-5)
        by = [-own[:, None] * rows[predecessor], torch.zeros(len(own), rows.shape[1])]
        for position in (own > 0).nonzero()[:, 0].tolist():
            others = [j for j in a[position].nonzero()[:, 0].tolist() if j != predecessor]
            distance = [abs(np.log(FIRINGS[j]) - np.log(FIRINGS[predecessor])) for j in others]
            nearest = others[int(np.argmin(distance))]
            by[MATCHED][position] = -a[position, nearest] * rows[nearest]
        for kind, change in enumerate(by):
            with lm.replace(first.wiring.writes[0], lambda y, change=change: y + change):
                after = plain(lm, second, tokens)[1][:, successor] * both
            assert found.after[kind, i] == pytest.approx(float(after.sum()), rel=1e-4, abs=1e-4)
            assert found.died[kind, i] == int((both & (after <= 0)).sum())
    assert not np.allclose(found.after[REMOVED], found.after[MATCHED])


def test_what_is_written_behind_what_is_read_is_no_predecessor(lm: LanguageModel, windows: Windows) -> None:
    early, late = (random_coder(lm, windows, site, site) for site in ("1.resid_post", "2.resid_post"))
    across = random_coder(lm, windows, "1.mlp_in", "2.mlp_out")
    assert upstream(early, late)
    assert upstream(early, early)
    assert not upstream(late, early)
    assert not upstream(across, random_coder(lm, windows, "2.mlp_in", "2.mlp_out"))
    with pytest.raises(ValueError, match="is not upstream of"):
        falls(lm, windows, late, early, [Removal(0, 0, 0)], FIRINGS)
