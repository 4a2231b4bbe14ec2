"""Direct effects are compared with the models' own logits and with the norms' equations by hand."""

import math

import pytest
import torch
from torch import Tensor

from matryoshka.errors import MatryoshkaError
from matryoshka.lm.model import LanguageModel
from matryoshka.lm.sites import Site
from matryoshka.lm.unembed import direct_logits, final_scale, typical_scale

LAST = Site("resid_post", 2)


@pytest.fixture
def uncapped(tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> LanguageModel:
    """Each family in turn, the final logits as they are before Gemma-2's soft-capping."""
    monkeypatch.setattr(tiny.model.config.get_text_config(), "final_logit_softcapping", None, raising=False)
    return tiny


def layer_norm(lm: LanguageModel) -> bool:
    return lm.info.model_type in ("gpt2", "gpt_neox")


def centre(lm: LanguageModel, x: Tensor) -> Tensor:
    return x - x.mean(-1, keepdim=True) if layer_norm(lm) else x


def scale_by_hand(lm: LanguageModel, r: Tensor) -> Tensor:
    config = lm.model.config.get_text_config()
    if layer_norm(lm):
        eps = config.layer_norm_epsilon if lm.info.model_type == "gpt2" else config.layer_norm_eps
        return (r.var(-1, unbiased=False) + eps).sqrt()
    return (r.square().mean(-1) + config.rms_norm_eps).sqrt()


def bias_logits(lm: LanguageModel) -> Tensor:
    """[vocab]: what the final norm's bias adds to the logits, found by type."""
    biases = [p for name, p in lm.model.named_parameters() if name.endswith(("ln_f.bias", "final_layer_norm.bias"))]
    head = lm.model.get_output_embeddings().weight
    return head @ biases[0] if biases else torch.zeros(len(head))


def less_mean(x: Tensor) -> Tensor:
    return x - x.mean(-1, keepdim=True)


def test_the_residual_itself_gives_the_models_logits(uncapped: LanguageModel, ids: Tensor):
    r = uncapped.read(ids, [LAST])[LAST].flatten(0, 1)
    parts = direct_logits(uncapped, r, 1.0) / scale_by_hand(uncapped, r)[:, None]
    expected = less_mean(uncapped.logits(ids).flatten(0, 1))
    assert expected.std() > 0.1
    torch.testing.assert_close(parts + less_mean(bias_logits(uncapped)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [1.0, 1e-3])  # so small that eps counts
def test_the_scale_is_the_norms(tiny: LanguageModel, ids: Tensor, size: float):
    r = size * tiny.read(ids, [LAST])[LAST]
    by_hand = scale_by_hand(tiny, r)
    torch.testing.assert_close(final_scale(tiny, r), by_hand, rtol=1e-5, atol=0)
    typical = math.sqrt(by_hand.square().mean().item())
    assert typical_scale(tiny, r.flatten(0, 1)) == pytest.approx(typical, rel=1e-5)


def test_adding_a_direction_changes_the_logits_as_stated(uncapped: LanguageModel, ids: Tensor):
    """At one token, by a direction at right angles to its residual: the scale changes in second order only."""
    row, position, epsilon = 1, 4, 1e-2
    r = uncapped.read(ids, [LAST])[LAST][row, position]
    direction = torch.randn(r.shape, generator=torch.Generator().manual_seed(2))
    r_centred = centre(uncapped, r)
    direction -= r_centred * (direction @ r_centred) / r_centred.square().sum()

    def logits_with(step: float) -> Tensor:
        def add(x: Tensor) -> Tensor:
            x = x.clone()
            x[row, position] += step * direction
            return x

        with uncapped.replace(LAST, add):
            return uncapped.logits(ids)[row, position]

    change = less_mean(logits_with(epsilon) - logits_with(-epsilon)) / (2 * epsilon)
    stated = direct_logits(uncapped, direction[None], typical_scale(uncapped, r[None]))[0]
    assert stated.std() > 0.05
    torch.testing.assert_close(stated, change, rtol=1e-3, atol=1e-4)


def test_along_the_residual_the_norm_takes_the_change_back(uncapped: LanguageModel, ids: Tensor):
    """Why the scale has to be said to be held fixed: a longer residual gives the same logits."""
    with uncapped.replace(LAST, lambda x: 1.01 * x):
        longer = uncapped.logits(ids)
    r = uncapped.read(ids, [LAST])[LAST].flatten(0, 1)
    stated = direct_logits(uncapped, 0.01 * r, typical_scale(uncapped, r))
    assert (longer - uncapped.logits(ids)).abs().max() < 0.01 * stated.abs().max()


def test_rows_are_independent_and_their_mean_over_the_vocabulary_is_0(tiny: LanguageModel):
    directions = torch.randn(4, 16, generator=torch.Generator().manual_seed(3), requires_grad=True)
    effects = direct_logits(tiny, directions, 0.5)
    assert effects.shape == (4, tiny.info.d_vocab)
    assert not effects.requires_grad
    torch.testing.assert_close(effects.mean(-1), torch.zeros(4), rtol=0, atol=1e-5)
    torch.testing.assert_close(effects[2:3], direct_logits(tiny, directions[2:3], 1.0) / 0.5)


def test_a_large_vocabulary_is_taken_in_parts(tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch):
    directions = torch.eye(16)
    whole = direct_logits(tiny, directions, 1.0)
    monkeypatch.setattr("matryoshka.lm.unembed.ROWS", 7)
    torch.testing.assert_close(direct_logits(tiny, directions, 1.0), whole)


def test_what_is_not_a_direction_or_a_scale_is_refused(tiny: LanguageModel):
    with pytest.raises(MatryoshkaError, match="directions of width 15, expected 16"):
        direct_logits(tiny, torch.zeros(2, 15), 1.0)
    for wrong in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(MatryoshkaError, match="expected a positive number"):
            direct_logits(tiny, torch.zeros(2, 16), wrong)
    with pytest.raises(MatryoshkaError, match="got no tokens"):
        typical_scale(tiny, torch.zeros(0, 16))
