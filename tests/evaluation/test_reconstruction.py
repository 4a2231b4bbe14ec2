"""Splicing coders into the language model: the measures against closed forms and hand-written splices."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from matryoshka.coder.coder import CoderConfig, SparseCoder
from matryoshka.data.activations import RowFilter
from matryoshka.data.tokens import Tokens, Windows
from matryoshka.evaluation.placed import Placed
from matryoshka.evaluation.reconstruction import activation_metrics, evaluate
from matryoshka.lm.model import LanguageModel
from matryoshka.lm.sites import Site

READ, WRITE = Site("mlp_in", 2), Site("mlp_out", 2)
TOKENS = 64 * 12


def spread(windows: Windows) -> Tensor:
    """The 12 windows that the measures take: evenly over the split, not one document at its head."""
    return torch.from_numpy(windows[np.arange(12) * len(windows) // 12])


def coder(d_sae: int = 32, **fields: object) -> SparseCoder:
    config = {
        "d_in": 192,
        "d_out": 192,
        "d_sae": d_sae,
        "widths": (8, d_sae),
        "activation": "topk",
        "k": 4,
        **fields,
    }
    return SparseCoder(CoderConfig.model_validate(config)).initialise(0, tied=False).eval()


def perfect() -> SparseCoder:
    """Reconstructs what it reads: a skip connection that is the identity."""
    made = coder(skip=True)
    with torch.no_grad():
        assert made.W_skip is not None
        made.W_skip.copy_(torch.eye(192))
        made.W_dec.zero_()
    return made


def constant(value: Tensor) -> SparseCoder:
    made = coder()
    with torch.no_grad():
        made.W_dec.zero_()
        made.b_dec.copy_(value)
    return made


def kept_rows(lm: LanguageModel, tokens: Tokens, site: Site) -> Tensor:
    windows = tokens.windows("held_out")
    batch = spread(windows)
    read = lm.read(batch, [site])
    return read[site][RowFilter.measure(lm, windows, [site])(batch, read)]


def test_a_perfect_coder_recovers_everything(lm: LanguageModel, tokens: Tokens) -> None:
    results = evaluate(lm, tokens.windows("held_out"), Placed(perfect(), WRITE, WRITE), TOKENS)
    assert results["fvu"] == pytest.approx([0, 0], abs=1e-10)
    for name in ("ce_recovered_zero", "ce_recovered_mean", "kl_recovered_zero", "kl_recovered_mean"):
        assert results[name] == pytest.approx([1, 1], abs=1e-4)
    assert results["kl"] == pytest.approx([0, 0], abs=1e-5)


def test_a_coder_that_writes_the_mean_has_fvu_1_and_recovers_nothing(lm: LanguageModel, tokens: Tokens) -> None:
    mean = kept_rows(lm, tokens, WRITE).double().mean(0).float()
    results = evaluate(lm, tokens.windows("held_out"), Placed(constant(mean), WRITE, WRITE), TOKENS)
    assert results["fvu"] == pytest.approx([1, 1], abs=1e-5)
    assert results["ce_recovered_mean"] == pytest.approx([0, 0], abs=1e-3)
    assert results["kl"] == pytest.approx([results["kl_mean"]] * 2, rel=1e-3)


def test_a_coder_that_writes_zeros_equals_zero_ablation(lm: LanguageModel, tokens: Tokens) -> None:
    results = evaluate(lm, tokens.windows("held_out"), Placed(constant(torch.zeros(192)), WRITE, WRITE), TOKENS)
    assert results["ce"] == pytest.approx([results["ce_zero"]] * 2, rel=1e-5)
    assert results["ce_recovered_zero"] == pytest.approx([0, 0], abs=1e-3)
    assert results["ce_zero"] > results["ce_clean"]


def test_a_transcoder_is_spliced_in_at_the_site_it_writes(lm: LanguageModel, tokens: Tokens) -> None:
    """Against a splice by hand, with a plain hook on the module."""
    windows = tokens.windows("held_out")
    placed = Placed(coder(), READ, WRITE)
    results = evaluate(lm, windows, placed, TOKENS)
    batch = spread(windows)
    read = lm.read(batch, [READ, WRITE])
    kept = RowFilter.measure(lm, windows, [READ, WRITE])(batch, read)
    y_hat = placed.coder.decode(placed.coder.encode(read[READ][kept]))[-1]

    def hook(_module: object, _args: object, output: Tensor) -> Tensor:
        output = output.clone()
        output[kept] = y_hat
        return output

    handle = lm.model.transformer.h[2].mlp.register_forward_hook(hook)
    with torch.no_grad():
        logits = lm.model(batch).logits
    handle.remove()
    scored = kept[:, :-1]
    expected = F.cross_entropy(logits[:, :-1][scored], batch[:, 1:][scored]).item()
    assert results["ce"][-1] == pytest.approx(expected, rel=1e-5)
    with torch.no_grad():
        clean = F.cross_entropy(lm.model(batch).logits[:, :-1][scored], batch[:, 1:][scored]).item()
    assert results["ce_clean"] == pytest.approx(clean, rel=1e-5)


def test_fvu_is_of_the_target_site_and_not_an_average_of_batches(lm: LanguageModel, tokens: Tokens) -> None:
    windows = tokens.windows("held_out")
    placed = Placed(coder(), READ, WRITE)
    results = activation_metrics(lm, windows, [placed], TOKENS)[0]
    batch = spread(windows)
    read = lm.read(batch, [READ, WRITE])
    kept = RowFilter.measure(lm, windows, [READ, WRITE])(batch, read)
    x, y = read[READ][kept], read[WRITE][kept].double()
    latents = placed.coder.encode(x)
    for m, y_hat in enumerate(placed.coder.decode(latents).double()):
        expected = (y - y_hat).square().sum() / (y - y.mean(0)).square().sum()
        assert results["fvu"][m] == pytest.approx(expected.item(), rel=1e-5)
    assert results["l0"] == 4
    assert results["silent"] == pytest.approx((latents.fired() == 0).double().mean().item())


def test_what_is_left_out_is_neither_replaced_nor_scored(lm: LanguageModel, tokens: Tokens) -> None:
    results = evaluate(lm, tokens.windows("held_out"), Placed(coder(), READ, WRITE), TOKENS)
    rows = len(kept_rows(lm, tokens, WRITE))
    assert results["tokens"] <= rows < TOKENS
    assert results["tokens"] + results["tokens_left_out"] == TOKENS


def test_measuring_does_not_disturb_training(lm: LanguageModel, tokens: Tokens) -> None:
    training = coder(activation="batchtopk").train()
    before = {name: value.clone() for name, value in training.state_dict().items()}
    activation_metrics(lm, tokens.windows("held_out"), [Placed(training, READ, WRITE)], TOKENS)
    assert training.training
    assert all(before[name].equal(value) for name, value in training.state_dict().items())
