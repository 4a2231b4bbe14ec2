"""The sparse maps and all their gradients against autograd through the dense formulas."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from matryoshka.coder import kernels
from matryoshka.coder.kernels import cpu, reference
from matryoshka.coder.latents import from_mask
from matryoshka.coder.sparse import exact_values, nested_decode, nested_errors, pre_activations

CHECK = settings(max_examples=40)
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5}


def normal(*shape, seed, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.fixture(params=[cpu, reference], ids=["cpu", "reference"])
def operations(request):
    with kernels.using(request.param):
        yield


@st.composite
def patterns(draw):
    """Latents on rows of different lengths, empty ones among them."""
    batch, d_sae, dtype = draw(st.integers(1, 6)), draw(st.integers(1, 24)), draw(st.sampled_from(list(TOLERANCE)))
    seed = draw(st.integers(0, 99))
    kept = torch.rand(batch, d_sae, generator=torch.Generator().manual_seed(seed)) < draw(
        st.sampled_from([0.0, 0.1, 0.5, 1.0])
    )
    return from_mask(normal(batch, d_sae, seed=seed, dtype=dtype), kept.flatten().nonzero().squeeze(1))


def leaves(*tensors):
    return [t.clone().requires_grad_() for t in tensors]


def close(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        tolerance = TOLERANCE[a.dtype]
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("layout", ["latent-major", "input-major"])
@pytest.mark.parametrize("selected_in", [None, torch.bfloat16])
@pytest.mark.usefixtures("operations")
@CHECK
@given(selected=patterns(), d_in=st.integers(1, 5))
def test_pre_activations_are_the_dense_product_at_the_pattern(layout, selected_in, selected, d_in):
    batch, dtype = selected.pattern.batch, selected.values.dtype
    inputs, b_enc = normal(batch, d_in, seed=1, dtype=dtype), normal(selected.d_sae, seed=2, dtype=dtype)
    W_enc = normal(selected.d_sae, d_in, seed=3, dtype=dtype).T
    if layout == "input-major":
        W_enc = W_enc.contiguous()
    upstream = normal(len(selected.indices), seed=4, dtype=dtype)

    dense = leaves(inputs, W_enc, b_enc)
    expected = (dense[0] @ dense[1] + dense[2])[selected.rows, selected.indices]
    theirs = torch.autograd.grad((expected * upstream).sum(), dense)

    found = selected._replace(values=expected.detach())
    if selected_in is not None:
        found = exact_values(inputs, W_enc, b_enc, selected._replace(values=found.values.to(selected_in)))
    ours = leaves(inputs, W_enc, b_enc)
    exact = pre_activations(*ours, found).values
    close([exact], [expected])
    close(torch.autograd.grad((exact * upstream).sum(), ours), theirs)


@pytest.mark.parametrize("learns", [0, 1, 2])
@pytest.mark.usefixtures("operations")
def test_what_learns_alone_learns_as_with_the_others(learns):
    """Of inputs, W_enc and b_enc, and of latents, W_dec and target: the rest is frozen."""
    selected = from_mask(normal(6, 24, seed=0), torch.arange(0, 6 * 24, 5))

    def encoded(*parts):
        return pre_activations(*parts, exact_values(*parts, selected)).values.square().sum()

    def errors(values, W_dec, target):
        return nested_errors(selected._replace(values=values), W_dec, target, (4, 24))[1]

    for loss, parts in (
        (encoded, [normal(6, 5, seed=1), normal(5, 24, seed=2), normal(24, seed=3)]),
        (errors, [selected.values, normal(24, 3, seed=4), normal(6, 3, seed=5)]),
    ):
        together = leaves(*parts)
        alone = [part.clone().requires_grad_(i == learns) for i, part in enumerate(parts)]
        (found,) = torch.autograd.grad(loss(*alone), alone[learns])
        assert torch.equal(found, torch.autograd.grad(loss(*together), together)[learns])


@pytest.mark.usefixtures("operations")
@CHECK
@given(latents=patterns(), d_out=st.integers(1, 5), data=st.data())
def test_nested_errors_and_their_gradients_are_the_dense_formula_of_every_prefix(latents, d_out, data):
    batch, dtype, d_sae = latents.pattern.batch, latents.values.dtype, latents.d_sae
    widths = tuple(sorted({*data.draw(st.sets(st.integers(1, d_sae), max_size=5)), d_sae}))
    W_dec, target = normal(d_sae, d_out, seed=1, dtype=dtype), normal(batch, d_out, seed=2, dtype=dtype)

    dense = leaves(latents.values, W_dec, target)
    full = latents._replace(values=dense[0]).dense()
    y_hat = torch.stack([full[:, :n] @ dense[1][:n] for n in widths])
    expected = (dense[2] - y_hat).square().sum(-1).mean(-1)
    theirs = torch.autograd.grad(-3 * expected.sum(), dense)

    for prefixes in (widths, torch.tensor(widths)):
        ours = leaves(latents.values, W_dec, target)
        errors, total, excess = nested_errors(latents._replace(values=ours[0]), *ours[1:], prefixes)
        close([errors, total, excess], [expected.detach(), expected.sum(), (y_hat[-1] - dense[2]).detach()])
        close(torch.autograd.grad(-3 * total, ours), theirs)


def test_errors_and_reconstructions_agree():
    latents = from_mask(normal(20, 64, seed=0).relu(), torch.arange(0, 20 * 64, 3))
    W_dec, target, widths = normal(64, 5, seed=1), normal(20, 5, seed=2), (4, 16, 64)
    errors, total, excess = nested_errors(latents, W_dec, target, widths)
    left = target - nested_decode(latents, W_dec, widths)
    torch.testing.assert_close(errors, left.square().sum(-1).mean(-1))
    torch.testing.assert_close(total, errors.sum())
    torch.testing.assert_close(excess, -left[-1])


def test_a_single_prefix_has_no_gradient():
    """What the latents learn from is added up before anybody can weight it."""
    latents, W_dec = from_mask(normal(4, 8, seed=0), torch.arange(0, 32, 2)), normal(8, 3, seed=1).requires_grad_()
    errors, total, excess = nested_errors(latents, W_dec, normal(4, 3, seed=2), (2, 8))
    assert total.requires_grad
    for alone in (errors[0], errors.sum(), excess.square().sum()):
        with pytest.raises(RuntimeError, match="does not require grad"):
            alone.backward()


def test_a_second_backward_pass_is_refused_not_wrong():
    latents = from_mask(normal(4, 8, seed=0), torch.arange(0, 32, 2))
    W_dec = normal(8, 3, seed=1).requires_grad_()
    _, total, _ = nested_errors(latents, W_dec, normal(4, 3, seed=2), (2, 8))
    total.backward(retain_graph=True)
    with pytest.raises((RuntimeError, AttributeError)):
        total.backward()
