"""Attribution against loops over dense tensors, and against real ablations so small that the first order is all."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from coders import hooked_at, raw_coder
from torch import Tensor

from matryoshka.coder.architecture import CoderConfig
from matryoshka.coder.coder import SparseCoder
from matryoshka.data.rowfilter import RowFilter
from matryoshka.data.tokens import Tokens, Windows
from matryoshka.interventions.attribution import Attribution, attribute, next_token_loss
from matryoshka.interventions.changes import Change, changed
from matryoshka.lm.model import LanguageModel, load
from matryoshka.lm.sites import Site
from matryoshka.study.hooked import HookedCoder
from matryoshka.study.reader import predicting, spread

READ, WRITE = Site("mlp_in", 1), Site("mlp_out", 1)
SITES = [(READ, WRITE), (WRITE, WRITE)]
D_SAE, N = 24, 6


def coder_at(lm: LanguageModel, tokens: Tokens, read: Site, write: Site, k: int = 5) -> HookedCoder:
    """A random coder of the model's activations."""
    config = CoderConfig(
        reads=(192,), writes=(192,), d_sae=D_SAE, widths=(8, D_SAE), activation={"kind": "topk", "k": k}
    )
    coder = SparseCoder(config).initialise(0, tied=False).eval()
    text = torch.from_numpy(tokens.windows("train")[:4])
    x, y = (lm.read(text, [site])[site][:, 1:].flatten(0, 1).float() for site in (read, write))
    return hooked_at(raw_coder(coder, x, y), lm, tokens.windows("held_out"), read, write)


def of_one(lm: LanguageModel, windows: Windows, hooked: HookedCoder, tokens: int) -> Attribution:
    [attribution] = attribute(lm, windows, [hooked], tokens)
    return attribution


def loss(lm: LanguageModel, text: Tensor, kept: Tensor) -> float:
    logits = lm.logits(text)[:, :-1][kept[:, :-1]]
    return F.cross_entropy(logits.double(), text[:, 1:][kept[:, :-1]], reduction="sum").item()


@pytest.mark.parametrize("sites", SITES)
def test_it_is_what_loops_over_dense_latents_sum(lm: LanguageModel, tokens: Tokens, sites: tuple[Site, Site]) -> None:
    windows, hooked = tokens.windows("held_out"), coder_at(lm, tokens, *sites)
    found = of_one(lm, windows, hooked, N * 64)
    assert found.windows.tolist() == spread(N, len(windows)).tolist()

    text = torch.from_numpy(windows[found.windows])
    read = lm.read(text, sites)
    kept = RowFilter.measure(lm, windows, sites)(text, read)
    kept[:, -1] = False
    slope = lm.gradient(text, [sites[1]], next_token_loss(text, kept))[sites[1]]
    latents = hooked.coder.encode(read[sites[0]].flatten(0, 1)).dense().view(*text.shape, -1).detach()
    effect, firing, size = np.zeros((N, D_SAE)), np.zeros((N, D_SAE)), np.zeros(D_SAE)
    for w, t in kept.nonzero().tolist():
        for f in range(D_SAE):
            single = -(latents[w, t, f] * (slope[w, t] @ hooked.coder.W_dec[f])).item()
            effect[w, f] += single
            size[f] += abs(single)
            firing[w, f] += latents[w, t, f].item() > 0
    assert np.allclose(found.effect.toarray(), effect, atol=1e-4)
    assert np.allclose(found.size, size, atol=1e-4)
    assert (found.firing.toarray() == firing).all()
    assert (found.fired == firing.sum(0)).all()
    assert np.allclose(found.total, effect.sum(0), atol=1e-4)
    assert firing.sum() == 5 * kept.sum()
    assert np.abs(effect).max() > 0.05


def test_a_small_ablation_costs_what_is_foretold(tokens: Tokens) -> None:
    """Each latent at all the positions it fires on; with a decoder so short that the second order does not show."""
    lm = load("bundled", dtype=torch.float64, device="cpu")
    windows = tokens.windows("held_out")
    hooked = coder_at(lm, tokens, READ, WRITE)
    with torch.no_grad():
        hooked.coder.double().W_dec.mul_(1e-4)
    found = of_one(lm, windows, hooked, 3 * 64)
    text = torch.from_numpy(windows[found.windows])
    kept = predicting(RowFilter.measure(lm, windows, [READ, WRITE])(text, lm.read(text, [READ, WRITE])))
    clean = loss(lm, text, kept)
    for feature in range(8):
        with changed(lm, hooked, text, kept, [Change(feature)]):
            exact = loss(lm, text, kept) - clean
        assert exact == pytest.approx(found.total[feature], rel=1e-2, abs=1e-9)
        assert found.total[feature] != 0


def test_the_first_order_is_the_slope_of_the_loss_along_each_latent(lm: LanguageModel, tokens: Tokens) -> None:
    """Against central differences of a latent scaled up and down a little, at once where it fires."""
    windows, hooked = tokens.windows("held_out"), coder_at(lm, tokens, READ, WRITE)
    text = torch.from_numpy(windows[:3])
    read = lm.read(text, [READ, WRITE])
    kept = predicting(RowFilter.measure(lm, windows, [READ, WRITE])(text, read))
    slope = lm.gradient(text, [WRITE], next_token_loss(text, kept))[WRITE][kept]
    latents = hooked.coder.encode(read[READ][kept])
    entries = -hooked.coder.contribution(latents, slope)
    totals = torch.zeros(D_SAE).index_add_(0, latents.indices, entries)
    strongest = int(totals.abs().argmax())
    ends = []
    for factor in (0.75, 1.25):
        with changed(lm, hooked, text, kept, [Change(strongest, factor=factor)]):
            ends.append(loss(lm, text, kept))
    assert (ends[0] - ends[1]) / 0.5 == pytest.approx(totals[strongest].item(), rel=0.05)


def test_entries_that_are_zero_do_not_fire(lm: LanguageModel, tokens: Tokens) -> None:
    """TopK keeps k entries a row, even where fewer are positive."""
    hooked = coder_at(lm, tokens, READ, WRITE)
    with torch.no_grad():
        hooked.coder.b_enc[3:] = -1e6
    found = of_one(lm, tokens.windows("held_out"), hooked, N * 64)
    assert (found.fired[:3] > 0).any()
    assert not found.fired[3:].any()
    assert not found.total[3:].any()


def test_the_last_position_predicts_nothing_that_is_there() -> None:
    kept = torch.tensor([[False, True, True], [True, False, True]])
    assert predicting(kept).tolist() == [[False, True, False], [True, False, False]]
    tokens = torch.tensor([[0, 1, 2], [0, 2, 1]])
    logits = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    expected = F.cross_entropy(logits[0, 1], tokens[0, 2]) + F.cross_entropy(logits[1, 0], tokens[1, 1])
    assert next_token_loss(tokens, predicting(kept))(logits).item() == pytest.approx(expected.item())


def test_coders_of_one_written_site_share_the_backward_pass_and_get_what_each_gets_alone(
    lm: LanguageModel, tokens: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    windows, sites = tokens.windows("held_out"), [(READ, WRITE), (READ, WRITE), (WRITE, WRITE)]
    coders = [coder_at(lm, tokens, *pair, k=k) for pair, k in zip(sites, (5, 3, 5), strict=True)]
    alone = [of_one(lm, windows, hooked, N * 64) for hooked in coders]
    gradients: list[int] = []
    gradient = lm.gradient
    monkeypatch.setattr(lm, "gradient", lambda *given: gradients.append(1) or gradient(*given))
    together = attribute(lm, windows, coders, N * 64)
    assert len(gradients) == 2 * 2, "two batches of windows, and two filters: those of the transcoders, and the SAE's"
    for one, other in zip(together, alone, strict=True):
        assert (one.effect != other.effect).nnz == (one.firing != other.firing).nnz == 0
        assert (one.size == other.size).all()
