"""The Meter against closed forms in float64, however the rows are cut into batches."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from matryoshka.coder.architecture import CoderConfig
from matryoshka.coder.coder import SparseCoder
from matryoshka.coder.latents import from_mask
from matryoshka.coder.metrics import Meter


def normal(*shape, seed, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def meter_of(prefixes, writes, d_sae):
    """A new meter of coders with so many prefixes that write sites of these sizes."""
    widths = (*range(1, prefixes), d_sae)
    config = CoderConfig(reads=(1,), writes=writes, d_sae=d_sae, widths=widths, activation={"kind": "relu"})
    return Meter(config)


def sparse(dense):
    return from_mask(dense, (dense != 0).flatten().nonzero().squeeze(1))


def closed_form(y, y_hat):
    """FVU of all rows at once, in float64."""
    y, y_hat = y.double(), y_hat.double()
    return ((y - y_hat).square().sum((1, 2)) / (y - y.mean(0)).square().sum()).tolist()


def measure(y, y_hat, latents, cuts=(), writes=None):
    """A meter that saw the rows in the batches that `cuts` makes of them."""
    meter = meter_of(len(y_hat), writes or (y.shape[1],), latents.shape[1])
    edges = [0, *cuts, len(y)]
    for start, end in pairwise(edges):
        meter.update(y[start:end], y_hat[:, start:end], sparse(latents[start:end]))
    return meter


@settings(max_examples=40)
@given(
    rows=st.integers(2, 40),
    prefixes=st.integers(1, 4),
    offset=st.sampled_from([0.0, 3.0, 1e3]),
    seed=st.integers(0, 99),
    data=st.data(),
)
def test_the_meter_does_not_depend_on_how_rows_are_cut(rows, prefixes, offset, seed, data):
    cuts = sorted(data.draw(st.sets(st.integers(1, rows - 1))))
    y = normal(rows, 3, seed=seed) + offset
    y_hat = y + 0.5 * normal(prefixes, rows, 3, seed=seed + 1)
    latents = normal(rows, 6, seed=seed + 2).relu()
    meter = measure(y, y_hat, latents, cuts)
    assert meter.fvu() == pytest.approx(closed_form(y, y_hat), rel=1e-9)
    assert meter.l0() == pytest.approx((latents > 0).sum().item() / rows)
    assert meter.silent() == pytest.approx((~(latents > 0).any(0)).double().mean().item())
    assert meter.fired.tolist() == (latents > 0).sum(0).tolist()


def test_fvu_is_exact_on_float32_data_whose_mean_is_a_thousand_deviations():
    y = normal(5000, 16, seed=0) + 1e3
    y_hat = (y + 0.4 * normal(1, 5000, 16, seed=1)).contiguous()
    meter = measure(y, y_hat, torch.ones(5000, 2), cuts=range(128, 5000, 128))
    assert meter.fvu() == pytest.approx(closed_form(y, y_hat), rel=1e-10)
    assert meter.fvu()[0] == pytest.approx(0.16, rel=0.05)


def test_fvu_is_no_average_of_the_batches_ratios():
    y = torch.cat([normal(50, 3, seed=0), normal(50, 3, seed=1) + 20])  # two batches with means of their own
    y_hat = (y + 0.5 * normal(100, 3, seed=2))[None]
    per_batch = [closed_form(y[rows], y_hat[:, rows])[0] for rows in (slice(50), slice(50, 100))]
    fvu = measure(y, y_hat, torch.ones(100, 2), cuts=[50]).fvu()[0]
    assert fvu == pytest.approx(closed_form(y, y_hat)[0])
    assert fvu < 0.1 * sum(per_batch) / 2


def test_fvu_centres_each_dimension_on_its_own_mean():
    y = normal(200, 2, seed=0) + torch.tensor([100.0, -100.0])
    y_hat = y.mean(0).expand_as(y)[None].contiguous()
    scalar_mean = ((y - y_hat[0]).square().sum() / (y - y.mean()).square().sum()).item()
    assert scalar_mean < 0.001  # what a mean over all elements would report
    assert measure(y, y_hat, torch.ones(200, 2)).fvu() == pytest.approx([1.0])


def test_fvu_is_that_of_the_target_site():
    """A transcoder whose target varies a hundred times less than its input."""
    config = CoderConfig(reads=(6,), writes=(2,), d_sae=8, widths=(4, 8), activation={"kind": "topk", "k": 2})
    coder = SparseCoder(config).initialise(0, tied=False)
    x, y = 100 * normal(300, 6, seed=0), normal(300, 2, seed=1) + 5
    coder.calibrate(x, y.mean(0)).eval()
    with torch.no_grad():
        coder.W_dec.zero_()  # b_dec alone is left: the mean of the target
        latents = coder.encode(x)
        y_hat = coder.decode(latents)
    meter = Meter(config)
    meter.update(y, y_hat, latents)
    assert meter.fvu() == pytest.approx([1.0, 1.0], rel=1e-5)


def test_each_prefix_has_its_own_fvu():
    y = normal(100, 3, seed=0)
    y_hat = torch.stack([torch.zeros_like(y), y, y + normal(100, 3, seed=1)])
    fvu = measure(y, y_hat, torch.ones(100, 4)).fvu()
    assert fvu == pytest.approx(closed_form(y, y_hat))
    assert fvu[1] == 0 < fvu[0] < fvu[2]


def test_stored_zeros_count_neither_as_active_nor_as_fired():
    latents = from_mask(torch.tensor([[0.0, 2.0, 0.0], [1.0, 0.0, 0.0]]), torch.arange(6))
    meter = meter_of(1, (1,), 3)
    meter.update(torch.tensor([[0.0], [1.0]]), torch.zeros(1, 2, 1), latents)
    assert meter.l0() == 1.0
    assert meter.fired.tolist() == [1, 1, 0]
    assert meter.silent() == pytest.approx(1 / 3)


def test_a_saved_meter_goes_on_where_it_was():
    y, latents = normal(60, 3, seed=0) + 7, normal(60, 4, seed=2).relu()
    y_hat = y + normal(2, 60, 3, seed=1)
    first, second = measure(y[:25], y_hat[:, :25], latents[:25]), meter_of(2, (3,), 4)
    second.load_state_dict(first.state_dict())
    second.update(y[25:], y_hat[:, 25:], sparse(latents[25:]))
    assert second.fvu() == measure(y, y_hat, latents, cuts=[25]).fvu()


def test_measuring_keeps_no_graph():
    y_hat = normal(1, 20, 3, seed=1).requires_grad_()
    meter = measure(normal(20, 3, seed=0), y_hat, torch.ones(20, 2))
    assert not any(buffer.requires_grad for buffer in meter.buffers())


@pytest.mark.parametrize("cuts", [(), (7, 30)])
def test_a_meter_of_two_written_sites_is_two_meters(cuts):
    latents = normal(60, 4, seed=5).relu()
    sites = [normal(60, 3, seed=0) + 7, 100 * normal(60, 2, seed=1)]
    hats = [site + (0.5 + i) * normal(2, 60, site.shape[1], seed=2 + i) for i, site in enumerate(sites)]
    both = measure(torch.cat(sites, 1), torch.cat(hats, 2), latents, cuts, writes=(3, 2))
    alone = [measure(site, y_hat, latents, cuts) for site, y_hat in zip(sites, hats, strict=True)]
    for of_site, meter in zip(both.fvu_of_sites(), alone, strict=True):
        assert of_site == pytest.approx(meter.fvu(), rel=1e-12)
    means = [sum(pair) / 2 for pair in zip(*(meter.fvu() for meter in alone), strict=True)]
    assert both.fvu() == pytest.approx(means, rel=1e-12)
    assert both.l0() == alone[0].l0()
    assert torch.equal(both.fired, alone[1].fired)
