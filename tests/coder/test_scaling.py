"""The constants around a coder in training, and a folded coder: the same function of raw activations."""

import copy

import pytest
import torch

from matryoshka.coder.architecture import CoderConfig
from matryoshka.coder.coder import SparseCoder
from matryoshka.coder.scaling import ROWS, Scaling
from matryoshka.errors import MatryoshkaError

ACTIVATIONS = ("topk", "batchtopk", "jumprelu")
ONE_TO_ONE = {"reads": (6,), "writes": (4,)}
CROSSCODER = {"reads": (2, 4), "writes": (3, 2)}


def normal(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def side_by_side(sizes, scale, rows, offset, seed):
    """Sites whose scales differ tenfold from one to the next, with means of their own."""
    parts = [
        scale * 10.0**i * normal(rows, size, seed=seed + 10 * i) + offset * normal(size, seed=100 + i + size)
        for i, size in enumerate(sizes)
    ]
    return torch.cat(parts, dim=1)


def data(config, rows=400, *, offset=0.0, seed=0):
    """(x, y) of all sites."""
    return side_by_side(config.reads, 7, rows, offset, seed), side_by_side(config.writes, 0.3, rows, offset, seed + 1)


def make(activation="batchtopk", *, reads=(6,), writes=(4,), skip=False, widths=(4, 8, 32)):
    config = CoderConfig(
        reads=reads,
        writes=writes,
        d_sae=widths[-1],
        widths=widths,
        activation={"kind": activation, "k": 5},
        skip=skip,
    )
    return SparseCoder(config).initialise(0, tied=False)


def trained(activation, *, offset=0.0, **sizes):
    """(scaling, coder) in float64 after a training step, every parameter away from zero; the coder in eval mode."""
    coder = make(activation, **sizes).double()
    x, y = data(coder.config, offset=offset)
    scaling = Scaling(coder.config).double().measure(x, y)
    coder.calibrate(scaling.x(x), scaling.y(y.mean(0)))
    with torch.no_grad():
        coder.b_enc.copy_(0.1 * normal(coder.config.d_sae, seed=1))
        if coder.W_skip is not None:
            coder.W_skip.copy_(normal(*coder.W_skip.shape, seed=2))
    coder(scaling.x(x), scaling.y(y))  # for BatchTopK's threshold
    return scaling, coder.eval()


def raw(scaling, y_hat):
    """Reconstructions as the targets are."""
    sizes = torch.tensor(scaling.config.writes)
    return y_hat / torch.repeat_interleave(scaling.scale_out, sizes)


# the constants


@pytest.mark.parametrize("offset", [0.0, 30.0])
@pytest.mark.parametrize("sizes", [ONE_TO_ONE, CROSSCODER])
def test_mean_squared_norms_become_dimensions_at_every_site(offset, sizes):
    config = make(**sizes).config
    x, y = data(config, offset=offset)
    scaling = Scaling(config).double().measure(x, y)
    for values, of_sites in ((scaling.x(x) + scaling.b_in, config.reads), (scaling.y(y), config.writes)):
        for site in values.split(of_sites, dim=1):
            assert site.square().sum(1).mean().item() == pytest.approx(site.shape[1])
    assert scaling.x(x).mean(0).abs().max() < 1e-9


def test_outputs_are_scaled_by_the_targets_statistics():
    config = make(reads=(6,), writes=(6,)).config
    x, y = data(config)
    scaling = Scaling(config).double().measure(x, y)
    other = Scaling(config).double().measure(50 * x + 9, y)
    assert scaling.scale_out == other.scale_out
    assert torch.equal(scaling.y(y), other.y(y))
    assert scaling.scale_in > 40 * other.scale_in


def test_bfloat16_activations_are_scaled_in_the_coders_own_precision():
    coder = make("topk")
    x, y = (values.float() for values in data(coder.config, rows=30))
    scaling = Scaling(coder.config).measure(x, y)
    half = x.bfloat16()
    assert torch.equal(scaling.x(half), scaling.x(half.float()))
    assert coder(scaling.x(half), scaling.y(y.bfloat16())).errors.dtype == torch.float32


@pytest.mark.parametrize(("broken", "named"), [("x", "read"), ("y", "written")])
@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
@pytest.mark.parametrize("sizes", [ONE_TO_ONE, CROSSCODER])
def test_activations_that_have_no_scale_are_refused(broken, named, value, sizes):
    config = make(**sizes).config
    x, y = data(config)
    site = (x if broken == "x" else y).split(config.reads if broken == "x" else config.writes, dim=1)[-1]
    site.fill_(value)
    with pytest.raises(MatryoshkaError, match=named):
        Scaling(config).double().measure(x, y)


# folding


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("offset", [0.0, 100.0])
@pytest.mark.parametrize("sizes", [ONE_TO_ONE, CROSSCODER])
def test_a_folded_coder_is_the_same_function_without_constants(activation, skip, offset, sizes):
    scaling, coder = trained(activation, skip=skip, offset=offset, **sizes)
    x, _ = data(coder.config, rows=100, offset=offset, seed=7)
    before = copy.deepcopy(coder.state_dict())
    folded = scaling.fold(coder.train())
    assert not folded.training
    coder.eval()

    inner = coder.encode(scaling.x(x))
    latents, y_hat = folded.encode(x), raw(scaling, coder.decode(inner, scaling.x(x)))
    assert len(latents.values) > 100
    close(latents.dense(), inner.dense() / scaling.scale_out.mean())
    close(folded.decode(latents, x), y_hat)
    # in raw units the formula has no constants left
    pre = x @ folded.W_enc + folded.b_enc
    close(latents.values, pre[latents.rows, latents.indices].relu())
    by_hand = latents.dense() @ folded.W_dec + folded.b_dec
    if folded.W_skip is not None:
        by_hand = by_hand + x @ folded.W_skip
    close(folded.decode(latents, x)[-1], by_hand)

    assert folded.state_dict().keys() == before.keys()
    if len(coder.config.writes) == 1:
        assert torch.equal(folded.W_dec, coder.W_dec)
    assert all(torch.equal(before[name], tensor) for name, tensor in coder.state_dict().items())


def close(ours, theirs):
    """Equal to 1e-12 of the largest."""
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= 1e-12 * theirs.abs().max()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_folding_in_float32_loses_little_even_with_a_large_mean(activation):
    scaling, coder = (part.float() for part in trained(activation, offset=100.0))
    x = data(coder.config, offset=100.0, seed=7)[0].float()
    y_hat, folded = raw(scaling, coder.decode(coder.encode(scaling.x(x)))), scaling.fold(coder)
    error = (folded.decode(folded.encode(x)) - y_hat).square().sum((1, 2))
    assert (error / (y_hat - y_hat.mean(1, keepdim=True)).square().sum((1, 2))).max() < 1e-3


def test_weights_are_folded_in_float64():
    """Folded from float32, each is the float64 result, rounded once."""
    scaling, coder = (part.float() for part in trained("jumprelu", offset=100.0, skip=True))
    exact, rounded = copy.deepcopy(scaling).double().fold(copy.deepcopy(coder).double()), scaling.fold(coder)
    for name in ("W_enc", "b_enc", "W_dec", "b_dec", "W_skip"):
        assert torch.equal(getattr(rounded, name), getattr(exact, name).float()), name


def test_every_block_of_rows_is_folded():
    scaling, coder = trained("topk", reads=(2,), writes=(2,), widths=(ROWS + 5,))
    folded = scaling.fold(coder)
    close(folded.W_enc, coder.W_enc * scaling.scale_in / scaling.scale_out)
    close(folded.b_enc, (coder.b_enc - scaling.b_in @ coder.W_enc) / scaling.scale_out)


def test_constants_that_do_nothing_fold_to_the_same_coder():
    scaling, coder = trained("jumprelu", skip=True, offset=3.0)
    folded = scaling.fold(coder)
    again = Scaling(folded.config).double().fold(folded)
    assert again.config == folded.config
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in folded.state_dict().items())


def test_folding_keeps_jumprelus_window():
    coder = make("jumprelu")
    x, y = (values.float() for values in data(coder.config, rows=64))
    y = 0.01 * y
    scaling = Scaling(coder.config).measure(x, y)
    coder.calibrate(scaling.x(x), scaling.y(y.mean(0)))
    folded = scaling.fold(coder).train()
    ours, theirs = coder.encode(scaling.x(x)), folded.encode(x)
    assert abs(len(ours.values) - len(theirs.values)) < 5
    assert len(theirs.values) > (theirs.values > 0).sum(), "those just below are there"
    assert folded.activation.bandwidth == folded.config.activation.bandwidth != coder.activation.bandwidth
