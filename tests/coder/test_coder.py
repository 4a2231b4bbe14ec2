"""The coder's mathematics in raw units, its initialisation, calibration and folding."""

import copy

import pytest
import torch

from matryoshka.coder.activations import BatchTopK, JumpReLU
from matryoshka.coder.coder import CoderConfig, SparseCoder
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
    config = CoderConfig(d_in=d_in, d_out=d_out, d_sae=widths[-1], widths=widths, activation=activation, k=5, skip=skip)
    return SparseCoder(config).initialise(seed, tied=False)


def trained(activation, *, offset=0.0, **sizes):
    """A calibrated coder in float64 with every parameter away from zero, in eval mode."""
    coder = make(activation, **sizes).double()
    x, y = data(coder.config.d_in, coder.config.d_out, offset=offset)
    coder.calibrate(x, y)
    with torch.no_grad():
        coder.b_enc.copy_(0.1 * normal(coder.config.d_sae, seed=1))
        coder.W_dec.mul_(1.5)
        if coder.W_skip is not None:
            coder.W_skip.copy_(normal(*coder.W_skip.shape, seed=2))
    coder(x, y)  # a training step, for BatchTopK's threshold
    return coder.eval()


# encode and decode


def formula(coder, x):
    """(dense latents, ŷ of each prefix) of raw x in eval mode, straight from the definition."""
    scaled = coder.scale_in * x - coder.b_in
    pre = scaled @ coder.W_enc + coder.b_enc
    match coder.activation:
        case BatchTopK(threshold=threshold):
            latents = pre * (pre > threshold)
        case JumpReLU(log_threshold=log_threshold):
            latents = pre * (pre > log_threshold.exp())
        case _:
            latents = pre.relu() * (pre >= pre.topk(coder.config.k).values[:, -1:])
    y_hat = torch.stack([latents[:, :n] @ coder.W_dec[:n] for n in coder.config.widths]) + coder.b_dec
    if coder.W_skip is not None:
        y_hat = y_hat + scaled @ coder.W_skip
    return latents, y_hat / coder.scale_out


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize(("d_in", "d_out"), [(6, 4), (3, 9), (5, 5)])
def test_encode_and_decode_are_the_formula_in_raw_units(activation, skip, d_in, d_out):
    coder = trained(activation, d_in=d_in, d_out=d_out, skip=skip, offset=3.0)
    x, _ = data(d_in, d_out, rows=50, offset=3.0, seed=7)
    latents, y_hat = formula(coder, x)
    assert 0 < (latents > 0).sum() < (latents > 0).numel() / 2
    encoded = coder.encode(x)
    torch.testing.assert_close(encoded.dense(), latents)
    decoded = coder.decode(encoded, x) if skip else coder.decode(encoded)
    assert decoded.shape == (3, 50, d_out)
    torch.testing.assert_close(decoded, y_hat)


def test_forward_is_encode_and_decode_in_scaled_units():
    coder = trained("topk", skip=True)
    x, y = data(6, 4, rows=20, seed=7)
    forward = coder(x, y)
    latents = coder.encode(x)
    assert torch.equal(forward.latents.dense(), latents.dense())
    torch.testing.assert_close(forward.y, y * coder.scale_out)
    left = coder.scale_out * (y - coder.decode(latents, x))
    torch.testing.assert_close(forward.errors, left.square().sum(-1).mean(-1))
    torch.testing.assert_close(forward.residual, left[-1])


def test_other_widths_can_be_asked_for():
    coder = trained("topk")
    x, y = data(6, 4, rows=20, seed=7)
    other = copy.deepcopy(coder)
    other.config = coder.config.model_copy(update={"widths": (2, 16, 32)})
    expected = formula(other, x)[1]
    torch.testing.assert_close(coder.decode(coder.encode(x), widths=(2, 16, 32)), expected)
    errors = (coder.scale_out * (y - expected)).square().sum(-1).mean(-1)
    torch.testing.assert_close(coder(x, y, (2, 16, 32)).errors, errors)


def test_the_skip_is_part_of_every_prefix():
    coder = trained("topk", skip=True)
    x, _ = data(6, 4, rows=20, seed=7)
    latents = coder.encode(x)
    with_skip = coder.decode(latents, x)
    skip = ((coder.scale_in * x - coder.b_in) @ coder.W_skip) / coder.scale_out
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
    plain = (latents.dense() @ coder.W_dec + coder.b_dec) / coder.scale_out
    torch.testing.assert_close(coder.decode(latents), plain[None])


def test_bfloat16_activations_are_read_in_the_coders_own_precision():
    coder = make("topk")
    x, y = (values.float() for values in data(6, 4, rows=30))
    coder.calibrate(x, y)
    half = x.bfloat16()
    assert torch.equal(coder.inputs(half), coder.inputs(half.float()))
    assert coder(half, y.bfloat16()).errors.dtype == torch.float32


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


# calibration


@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_calibration_makes_mean_squared_norms_equal_dimensions_at_both_ends(offset):
    x, y = data(6, 4, offset=offset)
    coder = make().double().calibrate(x, y)
    assert (coder.scale_in * x).square().sum(1).mean().item() == pytest.approx(6)
    assert (coder.scale_out * y).square().sum(1).mean().item() == pytest.approx(4)
    assert coder.inputs(x).mean(0).abs().max() < 1e-9


def test_outputs_are_scaled_by_the_targets_statistics():
    x, y = data(6, 6)
    coder = make(d_in=6, d_out=6).double().calibrate(x, y)
    other = make(d_in=6, d_out=6).double().calibrate(50 * x + 9, y)
    assert coder.scale_out == other.scale_out
    assert torch.equal(coder.b_dec, other.b_dec)
    assert coder.scale_in > 40 * other.scale_in


def test_before_training_the_bare_decoder_bias_is_the_targets_mean():
    x, y = data(6, 4, offset=2.0)
    coder = make().double().calibrate(x, y)
    none = coder.encode(x)._replace(values=torch.zeros_like(coder.encode(x).values))
    torch.testing.assert_close(coder.decode(none)[-1], y.mean(0).expand_as(y))


def test_calibration_starts_jumprelu_at_k_active_latents():
    x, y = data(6, 4)
    coder = make("jumprelu").double().calibrate(x, y).eval()
    assert len(coder.encode(x).values) / len(x) == pytest.approx(5, abs=0.02)


@pytest.mark.parametrize(("broken", "named"), [("x", "read"), ("y", "written")])
@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_activations_that_have_no_scale_are_refused(broken, named, value):
    x, y = data(6, 4)
    (x if broken == "x" else y).fill_(value)
    with pytest.raises(MatryoshkaError, match=named):
        make().double().calibrate(x, y)


# folding


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_a_folded_coder_is_the_same_function_without_constants(activation, skip, offset):
    coder = trained(activation, skip=skip, offset=offset)
    x, _ = data(6, 4, rows=100, offset=offset, seed=7)
    before = copy.deepcopy(coder.state_dict())
    folded = coder.fold()

    latents = folded.encode(x)
    assert len(latents.values) > 100
    torch.testing.assert_close(latents.dense(), coder.encode(x).dense() / coder.scale_out)
    torch.testing.assert_close(folded.decode(latents, x), coder.decode(coder.encode(x), x))
    # in raw units the formula has no constants left
    pre = x @ folded.W_enc + folded.b_enc
    torch.testing.assert_close(latents.values, pre[latents.rows, latents.indices].relu())
    y_hat = latents.dense() @ folded.W_dec + folded.b_dec
    if folded.W_skip is not None:
        y_hat = y_hat + x @ folded.W_skip
    torch.testing.assert_close(folded.decode(latents, x)[-1], y_hat)

    assert folded.scale_in == folded.scale_out == 1
    assert not folded.b_in.any()
    assert torch.equal(folded.W_dec, coder.W_dec)
    assert all(torch.equal(before[name], tensor) for name, tensor in coder.state_dict().items())


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_folding_in_float32_loses_little_even_with_a_large_mean(activation):
    coder = trained(activation, offset=100.0).float()
    x = data(6, 4, rows=400, offset=100.0, seed=7)[0].float()
    y_hat, folded = coder.decode(coder.encode(x)), coder.fold()
    error = (folded.decode(folded.encode(x)) - y_hat).square().sum((1, 2))
    assert (error / (y_hat - y_hat.mean(1, keepdim=True)).square().sum((1, 2))).max() < 1e-3


def test_folding_twice_changes_nothing_more():
    folded = trained("jumprelu", skip=True, offset=3.0).fold()
    again = folded.fold()
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in folded.state_dict().items())


# dead latents


def test_dead_latents_are_those_silent_for_that_many_tokens():
    coder = make()
    coder.tokens_since_fired[:4] = torch.tensor([0, 99, 100, 5000])
    assert coder.dead(100).nonzero().flatten().tolist() == [2, 3]
    assert not coder.dead(10_000).any()


def test_the_counters_of_dead_latents_are_saved():
    coder, other = make(), make()
    coder.tokens_since_fired[3] = 777
    other.load_state_dict(coder.state_dict())
    assert other.dead(700).nonzero().flatten().tolist() == [3]


def test_a_new_coder_has_no_dead_latents():
    assert not make().dead(1).any()
