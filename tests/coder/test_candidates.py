"""What a product of low precision proposes and exact values decide: float32's own selection; how much is missed."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from matryoshka.coder import candidates, kernels
from matryoshka.coder.architecture import CoderConfig
from matryoshka.coder.candidates import EXACT, Candidates, Slack, shortfall
from matryoshka.coder.coder import SparseCoder
from matryoshka.coder.kernels import cpu, reference
from matryoshka.coder.latents import Pattern, from_mask
from matryoshka.coder.nonlinearity import BatchTopK, JumpReLU, TopK
from matryoshka.data.stream import Batch
from matryoshka.lm.sites import Site, Wiring
from matryoshka.training.plan import Plan
from matryoshka.training.recipe import CoderSection, TrainingSection
from matryoshka.training.trainee import Trainee

SITE = Site.parse("0.mlp_out")
D, D_SAE, K, BATCH, FEATURES = 128, 2048, 24, 512, 1500


def normal(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def activations(seed):
    """A few of many features a row, some of them often on; one number of each row is as large as all others."""
    on = torch.rand(BATCH, FEATURES, generator=torch.Generator().manual_seed(seed)) < 0.3 / torch.arange(
        1, FEATURES + 1
    ).pow(0.7)
    rows = torch.nn.functional.normalize(normal(FEATURES, D, seed=1))
    x = on * (1 + 0.5 * normal(BATCH, FEATURES, seed=seed + 1000)).abs() @ rows
    return x + 2 * normal(BATCH, 1, seed=seed + 2000) * torch.eye(D)[5] + 0.05 * normal(BATCH, D, seed=seed + 3000)


def new_trainee(activation, select="float32"):
    config = CoderConfig(
        reads=(D,), writes=(D,), d_sae=D_SAE, widths=(128, D_SAE), activation={"kind": activation, "k": K}
    )
    section = CoderSection(read=str(SITE), d_sae=D_SAE, k=K, activation=activation)
    plan = Plan("coder", section, Wiring.of([SITE], [SITE]), config)
    training = TrainingSection(select=select, lr=3e-3, dead_after_tokens=20_000)
    trainee = Trainee(plan, SparseCoder(config).initialise(0, tied=True), training, 60)
    trainee.calibrate(batch(0))
    return trainee


def batch(seed):
    return Batch({SITE: activations(seed)}, torch.arange(BATCH))


@pytest.fixture(scope="module", params=["batchtopk", "topk", "jumprelu"])
def trained(request):
    """A coder that has learned, in training mode, and batches as it sees them."""
    trainee = new_trainee(request.param)
    for step in range(40):
        trainee.step(batch(step), step, measure=step == 39)
    assert trainee.report(40)["fvu"][-1] < 0.9
    return trainee.coder, [trainee.scaling.x(activations(seed)) for seed in range(500, 505)]


def missed(coder, xs, precision):
    """(share of float32's own latents that are not active where `precision` proposes, the shares that are expected)"""
    lost, expected, number = 0, [], 0
    for x in xs:
        coder.precision = "float32"
        own = coder(x, x).latents.dense() > 0
        coder.precision = precision
        forward = coder(x, x)
        lost += int((own & ~(forward.latents.dense() > 0)).sum())
        number += int(own.sum())
        expected.append(coder.shortfall(forward).item())
    return lost / number, expected


@pytest.mark.parametrize("precision", ["bfloat16", "fp8"])
@torch.no_grad()
def test_what_is_selected_is_what_float32_selects(trained, precision):
    coder, xs = trained
    lost, expected = missed(coder, xs, precision)
    assert lost <= 1e-4
    assert max(expected) <= 1e-3


@torch.no_grad()
def test_too_few_candidates_miss_what_is_expected_of_them(trained, monkeypatch):
    coder, xs = trained
    if isinstance(coder.activation, JumpReLU):
        monkeypatch.setitem(candidates.SLACK, "fp8", Slack(1.0, 0.02))
        monkeypatch.setattr(coder.activation, "bandwidth", 1e-6)
    else:
        monkeypatch.setitem(candidates.SLACK, "fp8", Slack(1.1, 0.0))
    lost, expected = missed(coder, xs, "fp8")
    assert 1e-4 < lost < 0.05
    assert lost / 3 < sum(expected) / len(expected) < 20 * lost


def test_latents_of_low_precision_are_exact_and_learn_as_float32s_do(trained):
    coder, (x, *_) = trained
    results = []
    for precision in ("float32", "bfloat16"):
        coder.precision = precision
        coder.zero_grad()
        forward = coder(x, x)
        forward.total_error.backward()
        gradients = [weights.grad for weights in (coder.W_enc, coder.b_enc, coder.W_dec)]
        results.append([forward.latents.dense(), forward.errors, *gradients])
    for exact, low in zip(*results, strict=True):
        torch.testing.assert_close(low, exact, rtol=1e-3, atol=1e-4)


def test_in_eval_mode_nothing_is_proposed(trained):
    coder, (x, *_) = trained
    coder.eval()
    try:
        coder.precision = "float32"
        exact = coder.encode(x)
        coder.precision = "fp8"
        assert torch.equal(coder.encode(x).values, exact.values)
    finally:
        coder.train()


def test_a_step_says_how_much_was_missed(monkeypatch):
    trainee = new_trainee("batchtopk")
    trainee.coder.precision = "fp8"
    trainee.step(batch(1), 0, measure=True)
    assert trainee.report(1)["short"] < 1e-3
    monkeypatch.setitem(candidates.SLACK, "fp8", Slack(1.02, 0.0))
    trainee.step(batch(1), 1, measure=True)
    assert trainee.report(1)["short"] > 1e-3


# the cut


@pytest.fixture(params=[cpu, reference], ids=["cpu", "reference"])
def operations(request):
    with kernels.using(request.param):
        yield


@st.composite
def proposals(draw):
    """(exact pre-activations, some of them equal or not positive; the same with errors, in bfloat16)"""
    rows, d_sae, seed = draw(st.integers(1, 5)), draw(st.integers(1, 30)), draw(st.integers(0, 99))
    exact = normal(rows, d_sae, seed=seed)
    if draw(st.booleans()):
        exact = (2 * exact).round()
    exact -= draw(st.sampled_from([0, 2, 9]))
    return exact, (exact + draw(st.sampled_from([0.01, 1])) * normal(rows, d_sae, seed=seed + 1)).bfloat16()


def positions(latents):
    return (latents.rows * latents.d_sae + latents.indices).tolist()


@pytest.mark.usefixtures("operations")
@settings(max_examples=60)
@given(proposals(), st.data())
def test_the_cut_is_the_exact_selection_where_all_are_candidates(case, data):
    """Ties, rows with fewer positive entries than are wanted, and batches without any among them."""
    exact, rough = case
    k = data.draw(st.integers(1, exact.shape[1]))
    for activation in (BatchTopK(k), TopK(k)):
        own = activation.select(exact)
        everything = from_mask(rough + 100, torch.arange(rough.numel()))
        places = activation.cut(everything._replace(values=exact.flatten()))
        selected = everything._replace(values=exact.flatten()).keep(places)
        assert torch.equal(selected.dense().relu(), own.dense().relu())
        assert len(selected.values) == len(own.values)


@pytest.mark.usefixtures("operations")
@settings(max_examples=60)
@given(proposals(), st.data())
def test_candidates_are_the_largest_rough_ones_and_the_cut_takes_the_largest_exact_ones_of_them(case, data):
    exact, rough = case
    k, slack = data.draw(st.integers(1, exact.shape[1])), Slack(1.5, 0.0)
    activation = BatchTopK(k)
    proposed = activation.select(rough, slack)
    assert positions(proposed) == reference.batch_topk(rough, slack.number(k * len(rough), rough.numel())).tolist()
    values = exact[proposed.rows, proposed.indices]
    selected = proposed._replace(values=values).keep(activation.cut(proposed._replace(values=values)))
    only = torch.full_like(exact, -1).index_put((proposed.rows, proposed.indices), values)
    assert positions(selected) == reference.batch_topk(only, k * len(exact)).tolist()


def test_ties_at_the_exact_cut_go_by_position():
    proposed = from_mask(torch.ones(2, 3), torch.arange(6))._replace(values=torch.tensor([1.0, 2, 1, 1, 3, 1]))
    assert BatchTopK(2).cut(proposed).tolist() == [0, 1, 2, 4]


def test_jumprelu_proposes_from_a_margin_below_its_threshold():
    activation = JumpReLU(k=None, d_sae=3, bandwidth=0.2).train()
    pre = torch.tensor([[1.05, 0.89, 0.87]])
    assert activation.select(pre, EXACT).indices.tolist() == [0]
    proposed = activation.select(pre, Slack(1.0, 0.02))
    assert proposed.indices.tolist() == [0, 1]
    assert activation.cut(proposed) is None
    assert activation.activate(proposed).values.tolist() == [pytest.approx(1.05), 0]


@pytest.mark.usefixtures("operations")
@settings(max_examples=60)
@given(st.integers(1, 6), st.integers(1, 20), st.integers(0, 99), st.data())
def test_a_pattern_of_some_entries_is_the_one_made_anew(batch_size, d_sae, seed, data):
    generator = torch.Generator().manual_seed(seed)
    pre = torch.rand(batch_size, d_sae, generator=generator)
    whole = from_mask(pre, (pre.flatten() < 0.6).nonzero().squeeze(1))
    places = (torch.rand(len(whole.indices), generator=generator) < 0.5).nonzero().squeeze(1)
    ours = whole.keep(places)
    anew = Pattern(ours.indices.clone(), ours.offsets.clone(), d_sae)
    assert positions(ours) == [positions(whole)[place] for place in places.tolist()]
    assert torch.equal(anew.rows, ours.rows)
    for mine, fresh in zip(ours.pattern.by_latent, anew.by_latent, strict=True):
        assert torch.equal(mine, fresh)


# how much is missed


@pytest.mark.parametrize("share", [1.02, 1.1, 1.25])
def test_the_expected_share_is_the_true_one_of_normal_errors(share):
    exact = normal(1, 400_000, seed=0)
    rough = exact + 0.1 * normal(1, 400_000, seed=1)
    n = 20_000
    proposed = from_mask(rough, cpu.batch_topk(rough, int(share * n)))
    exact_of_proposed = proposed._replace(values=exact.flatten()[proposed.indices])
    places = BatchTopK(n).cut(exact_of_proposed)
    selected = exact_of_proposed.keep(places)
    own = set(cpu.batch_topk(exact, n).tolist())
    lost = len(own - set(selected.indices.tolist())) / n
    expected = BatchTopK(n).shortfall(selected, Candidates(proposed, places), Slack(share, 0.0)).item()
    assert lost / 2 <= expected <= 4 * lost + 1e-4


def test_nothing_is_missed_where_all_or_all_positive_ones_were_candidates():
    rough = torch.tensor([[3.0, 2, 1, -1]])
    for activation, positions in ((BatchTopK(2), [0, 1, 2, 3]), (TopK(2), [0, 1, 2, 3]), (BatchTopK(3), [0, 1])):
        proposed = from_mask(rough, torch.tensor(positions))
        places = torch.tensor([0, 1])
        short = activation.shortfall(proposed.keep(places), Candidates(proposed, places), Slack(4.0, 0.0))
        assert short == 0


def test_the_shortfall_of_one_group_by_hand():
    """Errors of 0.1 at the cut, widened; 10 candidates in the gap of 0.2 below it; of those below, density × deviation
    × the loss at that gap are expected to be missed."""
    exact = torch.tensor([[1.0, 1, 2, 0.5]])
    rough = exact + torch.tensor([[0.1, -0.1, 0.2, 9]])
    one = torch.ones(1, 1)
    deviation = 0.1 * candidates.SPREAD
    g = 0.2 / deviation
    density_of_normal, tail = math.exp(-(g**2) / 2) / math.sqrt(2 * math.pi), math.erfc(g / math.sqrt(2)) / 2
    expected = 10 / 0.2 * deviation * (density_of_normal - g * tail)
    assert expected < 3
    above = torch.tensor([[-1.0, *[0.1] * 10, 0.3, 5]])
    found = shortfall(exact, rough, one, 0.2 * one, above)
    assert found.item() == pytest.approx(expected / 3, rel=1e-4)


def test_rough_values_that_are_exact_miss_nothing():
    exact, one = torch.tensor([[1.0, 2.0]]), torch.ones(1, 1)
    assert shortfall(exact, exact, one, 0.1 * one, 0.05 * one) == 0
