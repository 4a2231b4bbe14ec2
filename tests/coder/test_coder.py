"""The coder's mathematics in the units of what it is given, its initialisation, and what it tells of its weights."""

import copy

import pytest
import torch

from matryoshka.coder.architecture import CoderConfig
from matryoshka.coder.coder import SparseCoder
from matryoshka.coder.latents import from_mask
from matryoshka.coder.nonlinearity import BatchTopK, JumpReLU
from matryoshka.errors import MatryoshkaError

ACTIVATIONS = ("topk", "batchtopk", "jumprelu")
WIDTHS = (4, 8, 32)


def normal(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def data(d_in, d_out, rows=400, *, offset=0.0, seed=0):
    """Activations at two sites with scales and means of their own."""
    x = 7 * normal(rows, d_in, seed=seed) + offset * normal(d_in, seed=100)
    y = 0.3 * normal(rows, d_out, seed=seed + 1) + offset * normal(d_out, seed=101)
    return x, y


def make(activation="batchtopk", *, d_in=6, d_out=4, skip=False, widths=WIDTHS, seed=0):
    config = CoderConfig(
        reads=(d_in,),
        writes=(d_out,),
        d_sae=widths[-1],
        widths=widths,
        activation={"kind": activation, "k": 5},
        skip=skip,
    )
    return SparseCoder(config).initialise(seed, tied=False)


def trained(activation, *, offset=0.0, **sizes):
    """A calibrated coder in float64 with every parameter away from zero, in eval mode."""
    coder = make(activation, **sizes).double()
    x, y = data(coder.config.d_in, coder.config.d_out, offset=offset)
    coder.calibrate(x, y.mean(0))
    with torch.no_grad():
        coder.b_enc.copy_(0.1 * normal(coder.config.d_sae, seed=1))
        coder.W_dec.mul_(1.5)
        if coder.W_skip is not None:
            coder.W_skip.copy_(normal(*coder.W_skip.shape, seed=2))
    coder(x, y)  # a training step, for BatchTopK's threshold
    return coder.eval()


# encode and decode


def formula(coder, x):
    """(dense latents, ŷ of each prefix) of x in eval mode, straight from the definition."""
    pre = x @ coder.W_enc + coder.b_enc
    match coder.activation:
        case BatchTopK(threshold=threshold):
            latents = pre * (pre > threshold)
        case JumpReLU(theta=theta):
            latents = pre * (pre > theta)
        case _:
            latents = pre.relu() * (pre >= pre.topk(coder.config.k).values[:, -1:])
    y_hat = torch.stack([latents[:, :n] @ coder.W_dec[:n] for n in coder.config.widths]) + coder.b_dec
    if coder.W_skip is not None:
        y_hat = y_hat + x @ coder.W_skip
    return latents, y_hat


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize(("d_in", "d_out"), [(6, 4), (3, 9), (5, 5)])
def test_encode_and_decode_are_the_formula(activation, skip, d_in, d_out):
    coder = trained(activation, d_in=d_in, d_out=d_out, skip=skip, offset=3.0)
    x, _ = data(d_in, d_out, rows=50, offset=3.0, seed=7)
    latents, y_hat = formula(coder, x)
    assert 0 < (latents > 0).sum() < (latents > 0).numel() / 2
    encoded = coder.encode(x)
    torch.testing.assert_close(encoded.dense(), latents)
    decoded = coder.decode(encoded, x) if skip else coder.decode(encoded)
    assert decoded.shape == (3, 50, d_out)
    torch.testing.assert_close(decoded, y_hat)


def test_forward_is_encode_and_decode():
    coder = trained("topk", skip=True)
    x, y = data(6, 4, rows=20, seed=7)
    forward = coder(x, y)
    latents = coder.encode(x)
    assert torch.equal(forward.latents.dense(), latents.dense())
    left = y - coder.decode(latents, x)
    torch.testing.assert_close(forward.errors, left.square().sum(-1).mean(-1))
    torch.testing.assert_close(forward.residual, left[-1])


def test_other_widths_can_be_asked_for():
    coder = trained("topk")
    x, y = data(6, 4, rows=20, seed=7)
    other = copy.deepcopy(coder)
    other.config = coder.config.model_copy(update={"widths": (2, 16, 32)})
    expected = formula(other, x)[1]
    torch.testing.assert_close(coder.decode(coder.encode(x), widths=(2, 16, 32)), expected)
    errors = (y - expected).square().sum(-1).mean(-1)
    torch.testing.assert_close(coder(x, y, (2, 16, 32)).errors, errors)


def test_the_skip_is_part_of_every_prefix():
    coder = trained("topk", skip=True)
    x, _ = data(6, 4, rows=20, seed=7)
    latents = coder.encode(x)
    with_skip = coder.decode(latents, x)
    skip = x @ coder.W_skip
    with torch.no_grad():
        coder.W_skip.zero_()
    torch.testing.assert_close(with_skip - coder.decode(latents, x), skip.expand(3, -1, -1))


def test_a_skip_coder_refuses_to_decode_without_its_input():
    coder = trained("topk", skip=True)
    with pytest.raises(MatryoshkaError, match=r"decode\(latents, x\)"):
        coder.decode(coder.encode(data(6, 4, rows=3)[0]))


def test_one_width_is_a_plain_sparse_autoencoder():
    coder = trained("topk", widths=(32,), d_in=5, d_out=5)
    x, _ = data(5, 5, rows=20, seed=7)
    latents = coder.encode(x)
    plain = latents.dense() @ coder.W_dec + coder.b_dec
    torch.testing.assert_close(coder.decode(latents), plain[None])


def test_bfloat16_activations_are_read_in_the_coders_own_precision():
    coder = make("topk").eval()
    half = data(6, 4, rows=30)[0].bfloat16()
    latents = coder.encode(half)
    assert latents.values.dtype == torch.float32
    assert torch.equal(latents.dense(), coder.encode(half.float()).dense())


# initialisation


@pytest.mark.parametrize("tied", [True, False])
def test_decoder_rows_and_encoder_columns_start_with_unit_norm(tied):
    coder = make(d_in=6, d_out=6).initialise(3, tied=tied)
    ones = torch.ones(32)
    torch.testing.assert_close(coder.W_dec.norm(dim=1), ones)
    torch.testing.assert_close(coder.W_enc.norm(dim=0), ones)
    assert not coder.b_enc.any()


def test_an_sae_starts_tied_and_a_transcoder_does_not():
    coder = make(d_in=6, d_out=6)
    assert torch.equal(coder.initialise(0, tied=True).W_enc, coder.W_dec.T)
    cosines = (coder.initialise(0, tied=False).W_enc * coder.W_dec.T).sum(0)
    assert cosines.abs().mean() < 0.6
    assert coder.W_enc.data_ptr() != coder.W_dec.data_ptr()


def test_the_seed_alone_decides_the_start():
    torch.manual_seed(1)
    first = make(seed=5)
    torch.manual_seed(2)
    again, other = make(seed=5), make(seed=6)
    assert torch.equal(first.W_enc, again.W_enc)
    assert torch.equal(first.W_dec, again.W_dec)
    assert not torch.isclose(first.W_dec, other.W_dec).any()
    assert not torch.isclose(first.W_enc, other.W_enc).any()


# calibration: what of a coder starts from the data


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_an_untied_coder_starts_with_what_its_latents_find(activation):
    x, y = data(6, 4, rows=300, offset=2.0)
    coder = make(activation).double()
    pre, before = x @ coder.W_enc, coder.W_dec.clone()
    cut = pre.flatten().topk(5 * 300).values[-1]
    rows = torch.where(pre >= cut, pre, 0).T @ (y - y.mean(0))
    some = rows.norm(dim=1, keepdim=True) > 0
    coder.pair(x, y)
    torch.testing.assert_close(coder.W_dec, torch.where(some, torch.nn.functional.normalize(rows), before))
    torch.testing.assert_close(coder.b_enc, -0.9 * cut.expand(32))


def test_an_untied_coder_that_finds_nothing_starts_as_it_is():
    coder = make()
    before = copy.deepcopy(coder.state_dict())
    coder.pair(torch.zeros(8, 6), torch.randn(8, 4))
    torch.testing.assert_close(coder.state_dict(), before, rtol=0, atol=0)


def test_before_training_the_bare_decoder_bias_is_the_targets_mean():
    x, y = data(6, 4, offset=2.0)
    coder = make().double().calibrate(x, y.mean(0))
    none = coder.encode(x)._replace(values=torch.zeros_like(coder.encode(x).values))
    torch.testing.assert_close(coder.decode(none)[-1], y.mean(0).expand_as(y))


def test_calibration_starts_jumprelu_at_k_active_latents():
    x, y = data(6, 4)
    coder = make("jumprelu").double().calibrate(x, y.mean(0)).eval()
    assert len(coder.encode(x).values) / len(x) == pytest.approx(5, abs=0.02)


# several sites: positions, side by side


def test_sites_stand_side_by_side():
    config = CoderConfig(reads=(2, 4), writes=(3, 1), d_sae=32, widths=WIDTHS, activation={"kind": "topk", "k": 5})
    several = SparseCoder(config)
    one = make("topk")
    several.load_state_dict(one.state_dict())
    x, y = (values.float() for values in data(6, 4, rows=20, seed=7))
    assert torch.equal(several(x, y).errors, one(x, y).errors)
    assert torch.equal(several.eval().encode(x).dense(), one.eval().encode(x).dense())


# what others may know of the weights, and do to them


def test_decoder_rows_are_what_one_unit_of_a_latent_adds():
    coder = trained("topk")
    some = torch.tensor([7, 0, 31])
    unit = from_mask(torch.ones(1, 32), torch.tensor([7]))._replace(values=torch.ones(1, dtype=torch.float64))
    torch.testing.assert_close(coder.decode(unit)[-1, 0] - coder.b_dec, coder.decoder_rows(some)[0])
    assert torch.equal(coder.decoder_rows()[some], coder.decoder_rows(some))
    assert not coder.decoder_rows().requires_grad


def test_a_contribution_is_how_far_a_latent_moves_the_reconstruction_along_a_slope():
    coder = trained("batchtopk")
    latents, slope = coder.encode(data(6, 4, rows=20, seed=7)[0]), normal(20, 4, seed=8)
    each = coder.contribution(latents, slope)
    torch.testing.assert_close(each, latents.values * (slope[latents.rows] * coder.W_dec[latents.indices]).sum(1))
    moved = (coder.decode(latents)[-1] - coder.b_dec).mul(slope).sum(1)
    torch.testing.assert_close(torch.zeros_like(moved).index_add(0, latents.rows, each), moved)


@pytest.mark.parametrize("skip", [False, True])
def test_what_is_to_explain_is_what_latents_times_rows_should_add_up_to(skip):
    coder = trained("topk", skip=skip)
    x, y = data(6, 4, rows=20, seed=7)
    latents = coder.encode(x)
    left = coder.to_explain(x, y) - latents.dense() @ coder.decoder_rows()
    torch.testing.assert_close(left, y - coder.decode(latents, x)[-1])


def test_a_subset_learns_what_the_dense_coder_learns_of_these_latents():
    coder, dense = trained("topk").train(), trained("topk").train()
    x, _ = data(6, 4, rows=20, seed=7)
    index, upstream = torch.tensor([3, 30, 4]), normal(20, 4, seed=8)
    for weights in (coder.W_enc, coder.b_enc, coder.W_dec):
        weights.grad = torch.ones_like(weights)  # of the other terms: it is added to
    subset = coder.subset(index)
    (subset.reconstruct(x, torch.ones(3, dtype=torch.bool), 99) * upstream).sum().backward()
    coder.add_gradients(subset)

    of_others = torch.ones(32, dtype=torch.bool).index_fill(0, index, False)
    pre = (x @ dense.W_enc + dense.b_enc).masked_fill(of_others, 0).relu()
    (pre @ dense.W_dec * upstream).sum().backward()
    for name in ("W_enc", "b_enc", "W_dec"):
        ours, theirs = getattr(coder, name).grad - 1, getattr(dense, name).grad
        assert theirs.abs().sum() > 0
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10, msg=name)


def test_a_subset_of_a_coder_without_gradients_says_when_to_add_them():
    coder = make()
    subset = coder.subset(torch.tensor([1]))
    with pytest.raises(RuntimeError, match="after the backward pass"):
        coder.add_gradients(subset)
