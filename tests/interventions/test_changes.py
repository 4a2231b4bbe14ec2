"""Changed features against the formula written out in loops, and against a splice."""

import pytest
import torch
from coders import hooked_at, raw_coder
from torch import Tensor

from matryoshka.coder.architecture import CoderConfig
from matryoshka.coder.coder import SparseCoder
from matryoshka.data.rowfilter import RowFilter
from matryoshka.data.tokens import Tokens
from matryoshka.errors import MatryoshkaError
from matryoshka.interventions.changes import Change, activations, changed
from matryoshka.lm.model import LanguageModel
from matryoshka.lm.sites import Site, Wiring
from matryoshka.study.hooked import HookedCoder
from matryoshka.study.splice import spliced

READ, WRITE = Site("mlp_in", 1), Site("mlp_out", 1)
TRANSCODER, SAE = (READ, WRITE), (Site("resid_mid", 2), Site("resid_mid", 2))


@pytest.fixture
def text(lm: LanguageModel, tokens: Tokens) -> Tensor:
    """Four windows."""
    return torch.from_numpy(tokens.windows("held_out")[:4])


def coder_at(lm: LanguageModel, tokens: Tokens, read: Site, write: Site, d_sae: int = 24, k: int = 5) -> HookedCoder:
    """A random coder of the model's activations."""
    text = torch.from_numpy(tokens.windows("held_out")[:4])
    config = CoderConfig(
        reads=(192,), writes=(192,), d_sae=d_sae, widths=(8, d_sae), activation={"kind": "topk", "k": k}
    )
    coder = SparseCoder(config).initialise(0, tied=False).eval()
    x, y = (lm.read(text, [site])[site][:, 1:].flatten(0, 1) for site in (read, write))
    return hooked_at(raw_coder(coder, x, y), lm, tokens.windows("held_out"), read, write)


def kept_positions(lm: LanguageModel, text: Tensor, hooked: HookedCoder) -> Tensor:
    return hooked.keep(text, lm.read(text, hooked.wiring.sites))


@pytest.mark.parametrize("sites", [TRANSCODER, SAE])
def test_y_changes_by_the_formula_and_by_nothing_else(
    lm: LanguageModel, tokens: Tokens, text: Tensor, sites: tuple[Site, Site]
) -> None:
    hooked = coder_at(lm, tokens, *sites)
    kept = kept_positions(lm, text, hooked)
    x, before = (lm.read(text, [site])[site] for site in sites)
    changes = [Change(3), Change(9, factor=2.5), Change(17, level=1.5)]
    with changed(lm, hooked, text, kept, changes):
        after = lm.read(text, [sites[1]])[sites[1]]

    latents = hooked.coder.encode(x.flatten(0, 1)).dense().view(*text.shape, -1)
    expected, fired = before.clone(), 0
    for b, t in kept.nonzero().tolist():
        for change in changes:
            a = latents[b, t, change.feature]
            fired += int(a > 0)
            expected[b, t] += (change.factor * a + change.level - a) * hooked.coder.W_dec[change.feature]
    assert fired > 50
    assert torch.allclose(after, expected, atol=1e-5)
    assert after[~kept].equal(before[~kept])
    assert not kept[:, 0].any()


def test_where_a_feature_does_not_fire_ablating_and_scaling_change_nothing(
    lm: LanguageModel, tokens: Tokens, text: Tensor
) -> None:
    hooked = coder_at(lm, tokens, *TRANSCODER)
    kept = kept_positions(lm, text, hooked)
    before = lm.read(text, [WRITE])[WRITE]
    fires = hooked.coder.encode(lm.read(text, [READ])[READ].flatten(0, 1)).dense()[:, 3].view(text.shape) > 0
    for change in (Change(3), Change(3, factor=4)):
        with changed(lm, hooked, text, kept, [change]):
            after = lm.read(text, [WRITE])[WRITE]
        assert ((after != before).any(-1) == (fires & kept)).all()
    with changed(lm, hooked, text, kept, [Change(3, level=2)]):
        assert ((lm.read(text, [WRITE])[WRITE] != before).any(-1) == kept).all()


@pytest.mark.parametrize("sites", [TRANSCODER, SAE])
def test_ablating_all_features_leaves_the_error_and_the_bias(
    lm: LanguageModel, tokens: Tokens, text: Tensor, sites: tuple[Site, Site]
) -> None:
    hooked = coder_at(lm, tokens, *sites)
    kept = kept_positions(lm, text, hooked)
    x, y = (lm.read(text, [site])[site][kept] for site in sites)
    error = y - hooked.coder.decode(hooked.coder.encode(x))[-1]
    with spliced(lm, kept, {sites[1]: error + hooked.coder.b_dec}):
        expected = lm.logits(text)
    with changed(lm, hooked, text, kept, [Change(f) for f in range(24)]):
        assert torch.allclose(lm.logits(text), expected, atol=1e-4)
    assert not torch.allclose(lm.logits(text), expected, atol=1e-1)


def test_a_coder_of_several_written_sites_changes_each_by_its_columns(
    lm: LanguageModel, tokens: Tokens, text: Tensor
) -> None:
    reads, writes = [Site("mlp_in", 1), Site("mlp_in", 2)], [Site("mlp_out", 1), Site("mlp_out", 2)]
    config = CoderConfig(reads=(384,), writes=(384,), d_sae=24, widths=(24,), activation={"kind": "topk", "k": 5})
    coder = SparseCoder(config).initialise(0, tied=False).eval()
    wiring = Wiring.of(reads, writes)
    crosscoder = HookedCoder(coder, wiring, RowFilter.measure(lm, tokens.windows("held_out"), wiring.sites))
    kept = kept_positions(lm, text, crosscoder)
    before = lm.read(text, wiring.sites)
    a = coder.encode(torch.cat([before[site] for site in reads], -1)[kept]).dense()[:, 3, None].detach()
    rows = coder.decoder_rows(torch.tensor([3])).view(2, 192)
    with changed(lm, crosscoder, text, kept, [Change(3)]):
        after = lm.read(text, writes)
    expected = before[writes[0]].clone()
    expected[kept] -= a * rows[0]
    assert torch.allclose(after[writes[0]], expected, atol=1e-5)
    assert (after[writes[1]] != before[writes[1]]).any(), "the later one is reached by both"
    with lm.replace(writes[0], lambda y: expected):
        between = lm.read(text, [writes[1]])[writes[1]].clone()
    between[kept] -= a * rows[1]
    assert torch.allclose(after[writes[1]], between, atol=1e-5)


def test_activations_are_columns_of_the_dense_latents(lm: LanguageModel, tokens: Tokens, text: Tensor) -> None:
    hooked = coder_at(lm, tokens, *TRANSCODER)
    latents = hooked.coder.encode(lm.read(text, [READ])[READ].flatten(0, 1))
    features = torch.tensor([20, 0, 7])
    assert activations(latents, features).equal(latents.dense()[:, features])


def test_features_that_are_not_there_or_named_twice_are_refused(
    lm: LanguageModel, tokens: Tokens, text: Tensor
) -> None:
    hooked = coder_at(lm, tokens, *TRANSCODER)
    kept = kept_positions(lm, text, hooked)
    for changes, message in (
        ([Change(24)], "feature 24: the coder has 24, numbered 0 to 23"),
        ([Change(-1)], "feature -1"),
        ([Change(3), Change(3, factor=2)], r"\[3, 3\]: each can be changed once"),
    ):
        with pytest.raises(MatryoshkaError, match=message), changed(lm, hooked, text, kept, changes):
            pass
