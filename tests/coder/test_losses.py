"""Each term against its formula written out, and which parameters it teaches."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from matryoshka.coder.architecture import CoderConfig
from matryoshka.coder.coder import SparseCoder
from matryoshka.coder.losses import (
    CONVENTIONS,
    fvu,
    squared_error,
    variance,
)
from matryoshka.coder.nonlinearity import JumpReLU
from matryoshka.coder.subset import Subset

ACTIVATIONS = ("topk", "batchtopk", "jumprelu")


def prefix_errors(y, y_hat):
    """‖y − ŷ_m‖² of every prefix, mean over rows."""
    return (y - y_hat).square().sum(-1).mean(-1)


def main_term(coder, x, y, name="matryoshka"):
    forward = coder(x, y)
    return CONVENTIONS[name].reconstruction(forward.errors, forward.total_error, forward.y, coder.b_dec)


def main_term_of(name, errors, y, b_dec):
    return CONVENTIONS[name].reconstruction(errors.detach(), errors.sum(), y, b_dec)


def normal(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make(activation="batchtopk", *, widths=(4, 8, 16), skip=False):
    """A small transcoder in float64, 5 → 3, with every parameter away from zero."""
    bandwidth = {"bandwidth": 0.5} if activation == "jumprelu" else {}
    config = CoderConfig(
        reads=(5,),
        writes=(3,),
        d_sae=widths[-1],
        widths=widths,
        activation={"kind": activation, "k": 3, **bandwidth},
        skip=skip,
    )
    coder = SparseCoder(config).initialise(0, tied=False).double()
    with torch.no_grad():
        coder.b_enc.copy_(0.1 * normal(widths[-1], seed=1))
        coder.b_dec.copy_(normal(3, seed=2))
        if coder.W_skip is not None:
            coder.W_skip.copy_(normal(5, 3, seed=3))
        if isinstance(coder.activation, JumpReLU):
            coder.activation.log_growth.fill_(-0.5)
    return coder


# the terms


def by_hand(y, y_hat):
    """(Σ‖y − ŷ‖², Σ‖y − ȳ‖²) by loops over rows and dimensions."""
    rows, dimensions = y.shape
    error = sum(float(y[i, j] - y_hat[i, j]) ** 2 for i in range(rows) for j in range(dimensions))
    means = [sum(float(y[i, j]) for i in range(rows)) / rows for j in range(dimensions)]
    spread = sum((float(y[i, j]) - means[j]) ** 2 for i in range(rows) for j in range(dimensions))
    return error, spread


def test_terms_are_sums_over_dimensions_and_means_over_rows():
    y, y_hat = normal(6, 3, seed=0) + 4, normal(2, 6, 3, seed=1)
    for m in range(2):
        error, spread = by_hand(y, y_hat[m])
        assert squared_error(y, y_hat[m]).item() == pytest.approx(error / 6)
        assert variance(y).item() == pytest.approx(spread / 6)
        assert fvu(prefix_errors(y, y_hat), y)[m].item() == pytest.approx(error / spread)


@settings(max_examples=40)
@given(scale=st.floats(1e-3, 1e3), shift=st.floats(-100, 100), seed=st.integers(0, 99))
def test_fvu_does_not_depend_on_units_or_origin(scale, shift, seed):
    y, y_hat = normal(8, 3, seed=seed), normal(2, 8, 3, seed=seed + 1)
    scaled, scaled_hat = scale * y + shift, scale * y_hat + shift
    ours = fvu(prefix_errors(scaled, scaled_hat), scaled)
    torch.testing.assert_close(ours, fvu(prefix_errors(y, y_hat), y), rtol=1e-6, atol=0)


def test_fvu_is_zero_for_the_target_and_one_for_its_mean():
    y = normal(8, 3, seed=0) + torch.tensor([0.0, 50.0, -9.0])
    y_hat = torch.stack([y, y.mean(0).expand_as(y)])
    torch.testing.assert_close(fvu(prefix_errors(y, y_hat), y), torch.tensor([0.0, 1.0], dtype=torch.float64))


def test_fvu_of_float32_data_with_a_large_mean():
    y = (normal(512, 8, seed=0) + 1e3).float()
    y_hat = (y.double() + 0.3 * normal(512, 8, seed=1)).float()[None]
    exact = fvu(prefix_errors(y.double(), y_hat.double()), y.double())
    torch.testing.assert_close(fvu(prefix_errors(y, y_hat), y).double(), exact, rtol=1e-4, atol=0)


def test_the_sparsity_term_vanishes_at_k_and_pulls_from_both_sides():
    pulls = {}
    for l0, value in [(8, 0.0), (16, 1.0), (4, 0.25)]:
        activation = JumpReLU(k=8, d_sae=16, bandwidth=0.1)
        pre = torch.full((1, 16), -1.0).index_fill(1, torch.arange(l0), 1.01)  # thresholds start at 1
        penalty = activation.penalty(activation.select(pre))
        penalty.backward()
        assert penalty.item() == value
        pulls[l0] = activation.log_growth.grad.sum()
    assert pulls[16] < pulls[8] == 0 < pulls[4]  # descent raises thresholds where too many fire


# conventions, in the units of each project


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def test_conventions_are_what_each_project_computes():
    y, y_hat, b_dec = normal(6, 3, seed=0) + 2, normal(4, 6, 3, seed=1), normal(3, seed=2)
    residual, r_hat = normal(6, 3, seed=3) + 1, normal(6, 3, seed=4)
    pairs = [by_hand(y, each) for each in y_hat]
    aux_error, aux_spread = by_hand(residual, r_hat)
    bare = by_hand(y, b_dec.expand(6, 3))[0]
    expected = {
        "matryoshka": (mean(error / spread for error, spread in pairs), aux_error / aux_spread, 1 / 32),
        "saelens": (sum(error / 6 for error, _ in pairs), aux_error / 6, 1),
        "bussmann": (mean([bare / 18, *(error / 18 for error, _ in pairs)]), aux_error / 18, 1 / 32),
        "dictionary_learning": (sum(error / 6 for error, _ in pairs) / 4**2, aux_error / aux_spread, 1 / 32),
    }
    assert expected.keys() == CONVENTIONS.keys()
    for name, (main, aux, coefficient) in expected.items():
        convention = CONVENTIONS[name]
        assert main_term_of(name, prefix_errors(y, y_hat), y, b_dec).item() == pytest.approx(main), name
        assert convention.aux(residual, r_hat).item() == pytest.approx(aux), name
        assert convention.aux_coefficient == coefficient, name


@pytest.mark.parametrize("name", CONVENTIONS)
def test_every_convention_teaches_every_prefix(name):
    y, b_dec = normal(6, 3, seed=0), normal(3, seed=2)
    y_hat = normal(4, 6, 3, seed=1).requires_grad_()
    main = main_term_of(name, prefix_errors(y, y_hat), y, b_dec)
    main.backward()
    each = (y_hat.grad / (y_hat.detach() - y)).flatten(1)
    torch.testing.assert_close(each, each[0, 0].expand_as(each))  # all prefixes alike
    # and as far as it reports: of a sum of squares, the gradient along y_hat - y is twice the sum
    bare = (y - b_dec).square().mean() / 5 if name == "bussmann" else 0
    along = (y_hat.grad * (y_hat.detach() - y)).sum()
    torch.testing.assert_close(along, 2 * (main.detach() - bare))


# what the main term teaches


@pytest.mark.parametrize("name", CONVENTIONS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_main_term_teaches_every_parameter(activation, name):
    coder = make(activation, skip=True)
    x, y = normal(40, 5, seed=4), normal(40, 3, seed=5)
    main_term(coder, x, y, name).backward()
    taught = {n for n, p in coder.named_parameters() if p.grad is not None and (p.grad != 0).any()}
    thresholds = {"activation.log_growth"} if activation == "jumprelu" else set()
    assert taught == {"W_enc", "b_enc", "W_dec", "b_dec", "W_skip"} | thresholds


def dense_main_term(coder, x, y):
    """The main term with dense latents and every prefix decoded anew; returns the latents too."""
    pre = x @ coder.W_enc + coder.b_enc
    selected = coder.encode(x).dense().detach() > 0
    latents = pre * selected
    y_hat = torch.stack([latents[:, :n] @ coder.W_dec[:n] + coder.b_dec for n in coder.config.widths])
    loss = ((y - y_hat) ** 2).sum((1, 2)).mean() / ((y - y.mean(0)) ** 2).sum()
    return loss, latents


@pytest.mark.parametrize("widths", [(16,), (4, 8, 16), tuple(range(1, 17))])
@pytest.mark.parametrize("activation", ["topk", "batchtopk"])
def test_main_gradients_are_those_of_the_dense_formula(activation, widths):
    x, y = normal(20, 5, seed=4), normal(20, 3, seed=5)
    coder, dense = make(activation, widths=widths), make(activation, widths=widths)
    loss = main_term(coder, x, y)
    expected, _ = dense_main_term(dense, x, y)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    loss.backward()
    expected.backward()
    for (name, ours), theirs in zip(coder.named_parameters(), dense.parameters(), strict=True):
        assert ours.grad.abs().sum() > 0, name
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-10, atol=1e-14, msg=name)


def test_the_main_term_reaches_jumprelu_thresholds_by_the_straight_through_estimator():
    """∂L/∂θ_j = −(θ_j/ε) Σ_b rect((z_bj − θ_j)/ε) ∂L/∂latents_bj (Rajamanoharan et al. 2024)."""
    x, y = normal(60, 5, seed=4), normal(60, 3, seed=5)
    coder, dense = make("jumprelu"), make("jumprelu")
    loss = main_term(coder, x, y)
    loss.backward()

    expected, latents = dense_main_term(dense, x, y)
    latents.retain_grad()
    expected.backward()
    theta, bandwidth = dense.activation.log_growth.detach().exp(), dense.config.activation.bandwidth
    z = (x @ dense.W_enc + dense.b_enc).detach()
    near = ((z - theta).abs() / bandwidth < 0.5).double()
    assert (near * (z < theta)).sum() > 20  # these are inactive and still teach
    of_theta = -(theta / bandwidth) * (near * latents.grad).sum(0)

    torch.testing.assert_close(coder.activation.log_growth.grad, of_theta * theta, rtol=1e-10, atol=1e-14)
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        torch.testing.assert_close(getattr(coder, name).grad, getattr(dense, name).grad, rtol=1e-10, atol=1e-14)


def test_widths_change_gradients():
    x, y = normal(20, 5, seed=4), normal(20, 3, seed=5)
    gradients = {}
    for widths in [(8, 16, 32, 64), (64,)]:
        coder = make("topk", widths=widths)
        main_term(coder, x, y).backward()
        gradients[widths] = coder
    nested, plain = gradients.values()
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        ours, theirs = getattr(nested, name).grad, getattr(plain, name).grad
        assert (ours - theirs).norm() > 0.1 * theirs.norm(), name


def test_each_ring_learns_from_the_errors_of_the_prefixes_that_contain_it():
    """∂/∂W_dec[j] = −2/(M·V) Σ_b latents_bj Σ_{m: n_m > j} (y − ŷ_m)_b, V the total variance."""
    x, y = normal(20, 5, seed=4), normal(20, 3, seed=5)
    widths = (8, 16, 32, 64)
    coder = make("batchtopk", widths=widths)
    main_term(coder, x, y).backward()
    with torch.no_grad():
        encoded = coder.encode(x)
        latents, errors = encoded.dense(), y - coder.decode(encoded)
    total = (y - y.mean(0)).square().sum()
    for j in (0, 7, 8, 15, 16, 31, 32, 63):
        of_prefixes = sum(errors[m] for m, n in enumerate(widths) if n > j)
        torch.testing.assert_close(coder.W_dec.grad[j], -2 / 4 / total * (latents[:, j] @ of_prefixes))


# what the dead latents' term teaches


def aux_gradients(name, activation="batchtopk", k_aux=4):
    """(a coder after the backward pass of the aux term alone, its dead latents); the residual is detached."""
    coder = make(activation)
    dead = torch.zeros(16, dtype=torch.bool)
    dead[[1, 3, 6, 7, 10, 15]] = True
    forward = coder(normal(40, 5, seed=4), normal(40, 3, seed=5))
    assert not forward.residual.requires_grad
    for weight in (coder.W_enc, coder.b_enc, coder.W_dec):
        weight.grad = torch.zeros_like(weight)
    index = dead.nonzero().squeeze(1)
    subset = coder.subset(index)
    some = torch.ones_like(index, dtype=torch.bool)
    CONVENTIONS[name].aux(forward.residual, subset.reconstruct(forward.x, some, k_aux)).backward()
    coder.add_gradients(subset)
    return coder, dead


@pytest.mark.parametrize("name", CONVENTIONS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_aux_term_teaches_dead_latents_only(activation, name):
    coder, dead = aux_gradients(name, activation)
    of_latents = (coder.W_enc.grad.T, coder.W_dec.grad, coder.b_enc.grad[:, None])
    for gradient in of_latents:
        assert (gradient[dead] != 0).any(1).all()
        assert (gradient[~dead] == 0).all()
    assert coder.b_dec.grad is None
    if activation == "jumprelu":
        assert coder.activation.log_growth.grad is None


def residual_reconstruction(pre, W_dec, k_aux):
    """Of a subset with these pre-activations, all of it dead."""
    batch, n = pre.shape
    subset = Subset(torch.arange(n), pre.T, torch.zeros(n, dtype=pre.dtype), W_dec)
    return subset.reconstruct(torch.eye(batch, dtype=pre.dtype), torch.ones(n, dtype=torch.bool), k_aux)


@pytest.mark.parametrize("k_aux", [1, 4, 6, 99])
def test_the_aux_reconstruction_is_the_dense_formula(k_aux):
    """Keep the k_aux largest positive of the dead, drop all else, multiply by W_dec: forward and backward."""
    dead = torch.zeros(16, dtype=torch.bool)
    dead[[1, 3, 6, 7, 10, 15]] = True
    pre, W_dec = normal(9, 16, seed=0).requires_grad_(), normal(16, 3, seed=1).requires_grad_()
    r_hat = residual_reconstruction(pre[:, dead], W_dec[dead], k_aux)
    upstream = normal(9, 3, seed=2)
    ours = torch.autograd.grad((r_hat * upstream).sum(), (pre, W_dec))

    candidates = torch.where(dead & (pre > 0), pre, 0)
    cut = candidates.sort(1, descending=True).values[:, min(k_aux, 15)]
    latents = torch.where(candidates > cut[:, None], candidates, 0)
    torch.testing.assert_close(r_hat, latents @ W_dec)
    theirs = torch.autograd.grad((latents @ W_dec * upstream).sum(), (pre, W_dec))
    torch.testing.assert_close(ours, theirs)


def test_dead_latents_with_negative_pre_activations_reconstruct_nothing():
    pre = torch.tensor([[-1.0, -2.0], [1.0, -2.0]])
    assert residual_reconstruction(pre, torch.eye(2), k_aux=2).tolist() == [[0, 0], [1, 0]]


# what the sparsity term teaches


def test_the_sparsity_term_teaches_thresholds_only():
    coder = make("jumprelu")
    selected = coder(normal(40, 5, seed=4), normal(40, 3, seed=5)).selected
    assert coder.activation.l0(selected).item() > coder.config.k
    coder.activation.penalty(selected).backward()
    thresholds = coder.activation.log_growth.grad
    assert (thresholds <= 0).all()  # descent raises thresholds: fewer latents fire
    assert (thresholds < 0).any()
    assert {name for name, p in coder.named_parameters() if p.grad is not None} == {"activation.log_growth"}
