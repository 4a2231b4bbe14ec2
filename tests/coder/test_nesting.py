"""Widths, and the nested reconstruction against the naive dense formula."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from matryoshka.coder.architecture import resolve_widths
from matryoshka.coder.kernels import cpu
from matryoshka.coder.latents import Latents, Pattern, from_mask
from matryoshka.coder.sparse import nested_decode, random_widths
from matryoshka.errors import MatryoshkaError


def normal(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def naive(dense, W_dec, widths):
    """Every prefix decoded anew."""
    return torch.stack([dense[:, :n] @ W_dec[:n] for n in widths])


def random_latents(batch, d_sae, density, seed):
    """Latents in float64 with rows of different lengths, and some stored zeros."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(batch, d_sae, generator=generator, dtype=torch.float64).relu()
    kept = torch.rand(batch, d_sae, generator=generator) < density
    return from_mask(values, kept.flatten().nonzero().squeeze(1))


@st.composite
def cases(draw):
    """(latents, d_out, widths)"""
    batch, d_sae, d_out = draw(st.integers(1, 5)), draw(st.integers(1, 24)), draw(st.integers(1, 5))
    density, seed = draw(st.sampled_from([0.0, 0.1, 0.5, 1.0])), draw(st.integers(0, 99))
    inner = draw(st.sets(st.integers(1, d_sae)))
    return random_latents(batch, d_sae, density, seed), d_out, tuple(sorted({*inner, d_sae}))


@settings(max_examples=50)
@given(cases())
def test_nested_decode_is_the_dense_formula_of_every_prefix_forward_and_backward(case):
    latents, d_out, widths = case
    W_dec = normal(latents.d_sae, d_out, seed=1)
    upstream = normal(len(widths), len(latents.offsets) - 1, d_out, seed=2)

    values, rows = latents.values.clone().requires_grad_(), W_dec.clone().requires_grad_()
    y_hat = nested_decode(latents._replace(values=values), rows, widths)
    (y_hat * upstream).sum().backward()

    dense, dense_rows = latents.dense().requires_grad_(), W_dec.clone().requires_grad_()
    expected = naive(dense, dense_rows, widths)
    (expected * upstream).sum().backward()

    torch.testing.assert_close(y_hat, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(values.grad, dense.grad[latents.rows, latents.indices], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(rows.grad, dense_rows.grad, rtol=1e-12, atol=1e-12)


def test_float32_is_within_rounding_of_float64():
    latents = random_latents(64, 256, 0.2, seed=0)
    W_dec = normal(256, 16, seed=0)
    widths = (16, 64, 256)
    single = nested_decode(latents._replace(values=latents.values.float()), W_dec.float(), widths)
    exact = naive(latents.dense(), W_dec, widths)
    assert ((single - exact).norm() / exact.norm()).item() < 1e-6


def test_rows_without_latents_decode_to_zero():
    latents = Latents(Pattern(torch.tensor([2]), torch.tensor([0, 0, 1, 1]), 4), torch.tensor([3.0]))
    y_hat = nested_decode(latents, torch.ones(4, 2), (2, 4))
    assert y_hat.tolist() == [[[0, 0]] * 3, [[0, 0], [3, 3], [0, 0]]]


def test_a_batch_without_any_latent_decodes_to_zero():
    latents = Latents(Pattern(torch.zeros(0, dtype=torch.int64), torch.zeros(3, dtype=torch.int64), 4), torch.zeros(0))
    assert nested_decode(latents, torch.ones(4, 2), (2, 4)).tolist() == [[[0, 0]] * 2] * 2


def test_a_latent_on_the_border_belongs_to_the_next_ring():
    for latent, prefixes in [(1, [1.0, 1.0, 1.0]), (2, [0.0, 1.0, 1.0]), (4, [0.0, 0.0, 1.0])]:
        latents = Latents(Pattern(torch.tensor([latent]), torch.tensor([0, 1]), 8), torch.ones(1))
        assert nested_decode(latents, torch.ones(8, 1), (2, 4, 8)).flatten().tolist() == prefixes


def test_each_latent_is_decoded_once_whatever_the_number_of_widths(monkeypatch):
    decoded = []

    def counting(table, rows, *args):
        decoded.append(len(rows))
        return original(table, rows, *args)

    original = cpu.bags
    monkeypatch.setattr(cpu, "bags", counting)
    latents = random_latents(6, 32, 0.4, seed=2)
    W_dec = normal(32, 4, seed=0)
    for widths in [(32,), (8, 16, 32), tuple(range(1, 33))]:
        decoded.clear()
        nested_decode(latents, W_dec, widths)
        assert sum(decoded) == len(latents.indices), widths


def test_a_decoder_row_learns_from_every_prefix_that_contains_it():
    """∂/∂W_dec[j] = Σ_b latents_bj · Σ over prefixes m with n_m > j of ∂/∂ŷ_m."""
    widths, latents = (2, 5, 8), random_latents(4, 8, 0.7, seed=3)
    upstream = normal(3, 4, 3, seed=3)
    W_dec = torch.zeros(8, 3, dtype=torch.float64, requires_grad=True)
    (nested_decode(latents, W_dec, widths) * upstream).sum().backward()
    for j in range(8):
        of_prefixes = sum(upstream[m] for m, n in enumerate(widths) if n > j)
        torch.testing.assert_close(W_dec.grad[j], latents.dense()[:, j] @ of_prefixes)


def test_widths_may_be_numbers_fractions_or_nothing():
    assert resolve_widths([8, 16, 32], 32) == (8, 16, 32)
    assert resolve_widths([0.25, 0.5, 1.0], 32) == (8, 16, 32)
    assert resolve_widths([8, 1.0], 32) == (8, 32)
    assert resolve_widths([], 32) == (32,)
    assert resolve_widths([1], 1) == (1,)


@pytest.mark.parametrize(
    ("widths", "named"),
    [
        ([8, 16], "32"),
        ([16, 8, 32], "ascend"),
        ([8, 8, 32], "ascend"),
        ([0, 32], "at least 1"),
        ([-4, 32], "at least 1"),
        ([0.001, 1.0], "at least 1"),
        ([1.5, 32], "1.5"),
        ([0.0, 32], "0.0"),
        ([float("nan"), 32], "nan"),
        ([32, 64], "32"),
    ],
)
def test_impossible_widths_are_refused_in_one_line(widths, named):
    with pytest.raises(MatryoshkaError, match=r"coder\.widths") as error:
        resolve_widths(widths, 32)
    assert named in str(error.value)
    assert "\n" not in str(error.value)


@settings(max_examples=60)
@given(m=st.integers(1, 12), d_sae=st.integers(1, 5000), seed=st.integers(0, 2**40))
def test_random_widths_ascend_to_d_sae_and_are_at_most_m(m, d_sae, seed):
    widths = random_widths(m, d_sae, torch.Generator().manual_seed(seed))
    assert len(widths) <= m
    assert resolve_widths(widths, d_sae) == widths


def test_random_widths_follow_a_truncated_pareto():
    d_sae, draws = 4096, 3000
    generator = torch.Generator().manual_seed(0)
    lower = torch.tensor([random_widths(2, d_sae, generator)[0] for _ in range(draws)])
    for n in (1, 2, 4, 16, 64, 256, 1024):  # whole numbers: floor(draw) ≤ n where draw < n + 1
        expected = (1 - (n + 1) ** -0.5) / (1 - d_sae**-0.5)
        assert (lower <= n).double().mean().item() == pytest.approx(expected, abs=0.03), n


def test_random_widths_depend_on_the_generator_alone():
    def draw(seed):
        return random_widths(6, 4096, torch.Generator().manual_seed(seed))

    assert draw(0) == draw(0)
    assert len({draw(seed) for seed in range(20)}) == 20
