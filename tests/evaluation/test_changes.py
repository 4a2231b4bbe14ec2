"""Changed features against the formula written out in loops, and against a splice."""

import pytest
import torch
from torch import Tensor

from matryoshka.coder.coder import CoderConfig, SparseCoder
from matryoshka.data.activations import RowFilter
from matryoshka.data.tokens import Tokens
from matryoshka.errors import MatryoshkaError
from matryoshka.evaluation.changes import Change, activations, changed
from matryoshka.evaluation.placed import Placed, splice
from matryoshka.lm.model import LanguageModel
from matryoshka.lm.sites import Site

READ, WRITE = Site("mlp_in", 1), Site("mlp_out", 1)
TRANSCODER, SAE = (READ, WRITE), (Site("resid_mid", 2), Site("resid_mid", 2))


@pytest.fixture
def text(lm: LanguageModel, tokens: Tokens) -> Tensor:
    """Four windows."""
    return torch.from_numpy(tokens.windows("held_out")[:4])


def placed_at(lm: LanguageModel, text: Tensor, read: Site, write: Site, d_sae: int = 24, k: int = 5) -> Placed:
    """A random coder, calibrated so that its units are not the model's."""
    config = {"d_in": 192, "d_out": 192, "d_sae": d_sae, "widths": (8, d_sae), "activation": "topk", "k": k}
    coder = SparseCoder(CoderConfig.model_validate(config)).initialise(0, tied=False).eval()
    x, y = (lm.read(text, [site])[site][:, 1:].flatten(0, 1) for site in (read, write))
    coder.calibrate(x, y)
    assert abs(coder.scale_out - 1) > 0.1
    return Placed(coder, read, write)


def kept_positions(lm: LanguageModel, tokens: Tokens, text: Tensor, placed: Placed) -> Tensor:
    sites = [placed.read, placed.write]
    return RowFilter.measure(lm, tokens.windows("held_out"), sites)(text, lm.read(text, sites))


@pytest.mark.parametrize("sites", [TRANSCODER, SAE])
def test_y_changes_by_the_formula_and_by_nothing_else(
    lm: LanguageModel, tokens: Tokens, text: Tensor, sites: tuple[Site, Site]
) -> None:
    placed = placed_at(lm, text, *sites)
    placed = placed._replace(coder=placed.coder.fold())
    kept = kept_positions(lm, tokens, text, placed)
    x, before = (lm.read(text, [site])[site] for site in sites)
    changes = [Change(3), Change(9, factor=2.5), Change(17, level=1.5)]
    with changed(lm, placed, text, kept, changes):
        after = lm.read(text, [placed.write])[placed.write]

    latents = placed.coder.encode(x.flatten(0, 1)).dense().view(*text.shape, -1)
    expected, fired = before.clone(), 0
    for b, t in kept.nonzero().tolist():
        for change in changes:
            a = latents[b, t, change.feature]
            fired += int(a > 0)
            expected[b, t] += (change.factor * a + change.level - a) * placed.coder.W_dec[change.feature]
    assert fired > 50
    assert torch.allclose(after, expected, atol=1e-5)
    assert after[~kept].equal(before[~kept])
    assert not kept[:, 0].any()


def test_where_a_feature_does_not_fire_ablating_and_scaling_change_nothing(
    lm: LanguageModel, tokens: Tokens, text: Tensor
) -> None:
    placed = placed_at(lm, text, *TRANSCODER)
    kept = kept_positions(lm, tokens, text, placed)
    before = lm.read(text, [WRITE])[WRITE]
    fires = placed.coder.encode(lm.read(text, [READ])[READ].flatten(0, 1)).dense()[:, 3].view(text.shape) > 0
    for change in (Change(3), Change(3, factor=4)):
        with changed(lm, placed, text, kept, [change]):
            after = lm.read(text, [WRITE])[WRITE]
        assert ((after != before).any(-1) == (fires & kept)).all()
    with changed(lm, placed, text, kept, [Change(3, level=2)]):
        assert ((lm.read(text, [WRITE])[WRITE] != before).any(-1) == kept).all()


@pytest.mark.parametrize("sites", [TRANSCODER, SAE])
def test_ablating_all_features_leaves_the_error_and_the_bias(
    lm: LanguageModel, tokens: Tokens, text: Tensor, sites: tuple[Site, Site]
) -> None:
    placed = placed_at(lm, text, *sites)
    kept = kept_positions(lm, tokens, text, placed)
    x, y = (lm.read(text, [site])[site][kept] for site in sites)
    error = y - placed.coder.decode(placed.coder.encode(x))[-1]
    with splice(lm, placed.write, kept, error + placed.coder.fold().b_dec):
        expected = lm.logits(text)
    with changed(lm, placed, text, kept, [Change(f) for f in range(24)]):
        assert torch.allclose(lm.logits(text), expected, atol=1e-4)
    assert not torch.allclose(lm.logits(text), expected, atol=1e-1)


def test_a_coder_changes_the_same_folded_or_not(lm: LanguageModel, tokens: Tokens, text: Tensor) -> None:
    placed = placed_at(lm, text, *TRANSCODER)
    kept = kept_positions(lm, tokens, text, placed)
    folded = placed._replace(coder=placed.coder.fold())
    logits = []
    for each, level in ((placed, 2.0 * placed.coder.scale_out.item()), (folded, 2.0)):
        with changed(lm, each, text, kept, [Change(3), Change(5, level=level)]):
            logits.append(lm.logits(text))
    assert torch.allclose(*logits, atol=1e-4)
    assert not torch.allclose(logits[0], lm.logits(text), atol=1e-2)


def test_activations_are_columns_of_the_dense_latents(lm: LanguageModel, text: Tensor) -> None:
    placed = placed_at(lm, text, *TRANSCODER)
    latents = placed.coder.encode(lm.read(text, [READ])[READ].flatten(0, 1))
    features = torch.tensor([20, 0, 7])
    assert activations(latents, features).equal(latents.dense()[:, features])


def test_features_that_are_not_there_or_named_twice_are_refused(
    lm: LanguageModel, tokens: Tokens, text: Tensor
) -> None:
    placed = placed_at(lm, text, *TRANSCODER)
    kept = kept_positions(lm, tokens, text, placed)
    for changes, message in (
        ([Change(24)], "feature 24: the coder has 24, numbered 0 to 23"),
        ([Change(-1)], "feature -1"),
        ([Change(3), Change(3, factor=2)], r"\[3, 3\]: each can be changed once"),
    ):
        with pytest.raises(MatryoshkaError, match=message), changed(lm, placed, text, kept, changes):
            pass
