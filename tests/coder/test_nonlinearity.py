"""What each activation selects, how thresholds follow training, and JumpReLU's estimators by hand."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from matryoshka.coder.architecture import (
    BatchTopKConfig,
    CoderConfig,
    JumpReLUConfig,
    NonlinearityConfig,
    ReLUConfig,
    TopKConfig,
)
from matryoshka.coder.coder import SparseCoder
from matryoshka.coder.kernels import cpu
from matryoshka.coder.nonlinearity import BatchTopK, JumpReLU, ReLU, TopK, build


def normal(*shape, seed, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


# selection


def test_relu_keeps_whatever_is_positive():
    pre = normal(6, 20, seed=0).requires_grad_()
    for mode in (True, False):
        latents = ReLU().train(mode)(pre)
        assert torch.equal(latents.dense(), pre.relu())
        assert torch.equal(latents.offsets.diff(), (pre > 0).sum(1))
    latents.values.sum().backward()
    assert torch.equal(pre.grad, (pre > 0).float())


def test_relu_of_no_positive_entry_is_empty():
    latents = ReLU()(torch.tensor([[-1.0, 0.0], [-2.0, -0.0]]))
    assert len(latents.values) == 0
    assert latents.offsets.tolist() == [0, 0, 0]


@settings(max_examples=40)
@given(batch=st.integers(1, 5), d_sae=st.integers(1, 20), data=st.data())
def test_topk_is_the_relu_of_the_row_wise_topk(batch, d_sae, data):
    k, seed = data.draw(st.integers(1, d_sae)), data.draw(st.integers(0, 99))
    pre = normal(batch, d_sae, seed=seed)
    top = pre.topk(k, dim=1)
    expected = torch.zeros_like(pre).scatter(1, top.indices, top.values.relu())
    for mode in (True, False):
        latents = TopK(k).train(mode)(pre)
        assert torch.equal(latents.dense(), expected)
        assert latents.offsets.diff().tolist() == [k] * batch


def test_a_value_that_topk_selects_but_relu_closes_is_not_active():
    latents = TopK(3)(torch.tensor([[2.0, -1.0, -2.0, -3.0]]))
    assert latents.fired().tolist() == [1, 0, 0, 0]
    assert latents.dense().tolist() == [[2, 0, 0, 0]]


def first_of_the_largest(pre, n):
    """The oracle: sort by value, then by position."""
    flat = pre.flatten().tolist()
    order = sorted(range(len(flat)), key=lambda i: (-flat[i], i))[:n]
    return sorted(i for i in order if flat[i] > 0)


@settings(max_examples=80)
@given(batch=st.integers(1, 4), d_sae=st.integers(1, 10), data=st.data())
def test_batchtopk_keeps_the_largest_positive_entries_and_the_first_of_ties(batch, d_sae, data):
    values = data.draw(st.lists(st.integers(-2, 3), min_size=batch * d_sae, max_size=batch * d_sae))
    k = data.draw(st.integers(1, d_sae))
    pre = torch.tensor(values, dtype=torch.float32).view(batch, d_sae)
    assert cpu.batch_topk(pre, k * batch).tolist() == first_of_the_largest(pre, k * batch)
    latents = BatchTopK(k)(pre)
    assert len(latents.values) == min(k * batch, int((pre > 0).sum()))
    assert (latents.values > 0).all()


@settings(max_examples=80)
@given(data=st.data())
def test_batchtopk_is_exact_for_values_of_any_size(data):
    """Subnormal, huge and infinite ones, negative zeros, and crowds that differ in their last bits only."""
    close = st.integers(0, 5).map(lambda ulps: 1 + ulps * 2**-23)
    numbers = st.one_of(st.floats(allow_nan=False, width=32), close)
    values = data.draw(st.lists(numbers, min_size=1, max_size=24))
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
    pre = torch.tensor(values, dtype=torch.float64).to(dtype)[None]
    n = data.draw(st.integers(1, 30))
    assert cpu.batch_topk(pre, n).tolist() == first_of_the_largest(pre, n)


def test_batchtopk_tells_float64_values_apart_that_float32_does_not():
    pre = 1 + torch.tensor([[1.0, 3.0, 0.0, 2.0]], dtype=torch.float64) * 2**-50
    assert cpu.batch_topk(pre, 2).tolist() == [1, 3]


@pytest.mark.parametrize("seed", range(3))
def test_batchtopk_is_exact_on_a_large_batch(seed):
    pre = normal(128, 512, seed=seed)
    expected = pre.flatten().topk(128 * 7).indices.sort().values
    assert torch.equal(cpu.batch_topk(pre, 128 * 7), expected)


def test_batchtopk_shares_its_budget_between_rows():
    pre = torch.cat([normal(1, 50, seed=0).abs() + 10, normal(3, 50, seed=1).abs()])
    latents = BatchTopK(5)(pre)
    assert latents.offsets.diff().tolist() == [20, 0, 0, 0]


def test_batchtopk_on_bfloat16_ties_still_keeps_exactly_k_a_row():
    pre = normal(64, 256, seed=0, dtype=torch.bfloat16)
    assert pre.flatten().unique().numel() < pre.numel() / 4  # ties abound
    assert len(BatchTopK(8)(pre).values) == 8 * 64


def test_batchtopk_of_no_positive_entry_is_empty_and_leaves_the_threshold():
    activation = BatchTopK(2)
    latents = activation(-torch.ones(3, 4))
    assert len(latents.values) == 0
    assert latents.offsets.tolist() == [0, 0, 0, 0]
    assert activation.threshold == 0
    assert activation.steps == 0


def test_gradients_reach_selected_pre_activations_only():
    for activation in (TopK(3), BatchTopK(3)):
        pre = normal(4, 20, seed=0).requires_grad_()
        latents = activation(pre)
        latents.values.sum().backward()
        assert torch.equal(pre.grad, (latents.dense() > 0).float())


# BatchTopK's threshold


def train(activation, steps, *, seed=0, dtype=torch.float32, d_sae=64, batch=64):
    """Training steps on fresh normal pre-activations; returns the mean of their smallest selected values."""
    smallest = []
    for step in range(steps):
        pre = normal(batch, d_sae, seed=seed * 10_000 + step, dtype=dtype)
        smallest.append(activation(pre).values.min().double())
    return torch.stack(smallest).mean().item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("start", [0.0, 3.0])
def test_the_threshold_converges_from_zero_and_from_thrice_the_target(dtype, start):
    target = train(BatchTopK(8), 50, dtype=dtype)
    activation = BatchTopK(8)
    activation.threshold.fill_(start * target)
    activation.steps.fill_(10_000)  # long after the first steps' plain mean
    train(activation, 400, seed=1, dtype=dtype)
    assert activation.threshold.dtype == torch.float32
    assert activation.threshold.item() == pytest.approx(target, rel=0.02)


def test_the_threshold_is_near_the_target_after_a_few_steps_already():
    activation = BatchTopK(8)
    target = train(activation, 5)
    assert activation.threshold.item() == pytest.approx(target, rel=1e-5)


def test_a_large_threshold_moves_by_less_than_a_bfloat16_step():
    activation = BatchTopK(1)
    activation.threshold.fill_(1.0)
    activation.steps.fill_(10_000)
    activation(torch.tensor([[1.0078125, 0.0]], dtype=torch.bfloat16))
    assert 1.0 < activation.threshold.item() < 1.0 + 2**-8


@pytest.mark.parametrize("autocast", [False, True])
def test_the_threshold_is_float32_whatever_selects(autocast):
    coder = SparseCoder(
        CoderConfig(reads=(8,), writes=(8,), d_sae=64, widths=(64,), activation={"kind": "batchtopk", "k": 4})
    )
    coder.initialise(0, tied=True)
    coder.precision = "float32" if autocast else "bfloat16"
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        x = normal(32, 8, seed=0)
        forward = coder(x, x)
    assert forward.selected.values.dtype == torch.float32
    assert forward.errors.dtype == torch.float32
    assert coder.activation.threshold.dtype == torch.float32
    assert coder.activation.threshold.item() == forward.latents.values.min().item() > 0


def test_the_threshold_moves_in_training_steps_only():
    activation = BatchTopK(4)
    train(activation, 3)
    before = copy.deepcopy(dict(activation.named_buffers()))
    assert before.keys() == {"threshold", "steps"}
    pre = normal(16, 64, seed=99)
    with torch.no_grad():
        activation(pre)
    with torch.inference_mode():
        activation(pre)
    activation.eval()(pre)
    assert all(torch.equal(before[name], tensor) for name, tensor in activation.named_buffers())
    activation.train()(pre)
    assert activation.threshold != before["threshold"]
    assert activation.steps == before["steps"] + 1


def test_the_threshold_is_saved_and_restored():
    activation = BatchTopK(4)
    train(activation, 3)
    other = BatchTopK(4)
    other.load_state_dict(activation.state_dict())
    assert other.threshold == activation.threshold > 0
    pre = normal(16, 64, seed=7)
    assert torch.equal(activation.eval()(pre).dense(), other.eval()(pre).dense())


def test_training_goes_on_from_the_buffers_that_a_checkpoint_holds():
    activation, other = BatchTopK(4), BatchTopK(4)
    train(activation, 3)
    for name, buffer in other.named_buffers():
        buffer.copy_(activation.get_buffer(name))
    train(activation, 2, seed=2)
    train(other, 2, seed=2)
    assert other.threshold == activation.threshold


def test_how_many_steps_there_were_is_no_part_of_the_weights():
    assert BatchTopK(4).state_dict().keys() == {"threshold"}


def test_inference_keeps_about_k_on_fresh_data_and_needs_no_batch():
    activation = BatchTopK(8)
    train(activation, 60)
    activation.eval()
    pre = normal(2000, 64, seed=123)
    latents = activation(pre)
    assert len(latents.values) / len(pre) == pytest.approx(8, rel=0.03)
    alone = activation(pre[:1])
    assert torch.equal(alone.dense(), latents.dense()[:1])


# JumpReLU


BANDWIDTH = 0.4


def jumprelu(d_sae, seed=0):
    """Thresholds well above half a bandwidth, in float64."""
    activation = JumpReLU(k=4, d_sae=d_sae, bandwidth=BANDWIDTH).double()
    with torch.no_grad():
        activation.log_growth.copy_(0.3 * normal(d_sae, seed=seed, dtype=torch.float64))
    return activation


def rectangle(u):
    return (u.abs() < 0.5).double()


def test_jumprelu_keeps_what_exceeds_its_latents_threshold():
    activation = jumprelu(12)
    pre = normal(6, 12, seed=1, dtype=torch.float64)
    expected = pre * (pre > activation.log_growth.exp())
    for mode in (True, False):
        assert torch.equal(activation.train(mode)(pre).dense(), expected)
    assert (activation.eval()(pre).values > 0).all()


def test_jumprelu_gradients_are_those_of_the_paper():
    """∂/∂z = H(z − θ) and ∂/∂θ = −(θ/ε) · rect((z − θ)/ε), also where z is just below θ."""
    activation = jumprelu(12)
    pre = normal(40, 12, seed=2, dtype=torch.float64).requires_grad_()
    upstream = normal(40, 12, seed=3, dtype=torch.float64)
    (activation(pre).dense() * upstream).sum().backward()

    theta = activation.log_growth.detach().exp()
    near = rectangle((pre.detach() - theta) / BANDWIDTH)
    assert (near * (pre.detach() < theta)).sum() > 5  # the case is there
    of_theta = -(theta / BANDWIDTH * near * upstream).sum(0)
    torch.testing.assert_close(pre.grad, upstream * (pre.detach() > theta))
    torch.testing.assert_close(activation.log_growth.grad, of_theta * theta)


def test_jumprelu_l0_counts_and_its_gradient_goes_to_thresholds_only():
    """∂/∂θ of Σ H(z − θ) = −(1/ε) · rect((z − θ)/ε)."""
    activation = jumprelu(12)
    pre = normal(40, 12, seed=4, dtype=torch.float64).requires_grad_()
    l0 = activation.l0(activation.select(pre))
    theta = activation.log_growth.detach().exp()
    assert l0.item() == pytest.approx((pre > theta).sum().item() / 40)

    l0.backward()
    near = rectangle((pre.detach() - theta) / BANDWIDTH)
    torch.testing.assert_close(activation.log_growth.grad, -near.sum(0) / BANDWIDTH / 40 * theta)
    assert pre.grad is None


def test_entries_just_below_the_threshold_are_in_the_pattern_but_not_active():
    activation = JumpReLU(k=1, d_sae=3, bandwidth=0.2)  # thresholds 1
    latents = activation(torch.tensor([[1.5, 0.95, 0.85]]))
    assert latents.indices.tolist() == [0, 1]
    assert latents.fired().tolist() == [1, 0, 0]
    assert activation.eval()(torch.tensor([[1.5, 0.95, 0.85]])).indices.tolist() == [0]


def test_jumprelu_calibrates_to_k_active_latents():
    activation = JumpReLU(k=6, d_sae=64, bandwidth=0.1)
    pre = normal(500, 64, seed=5)
    activation.calibrate(pre)
    latents = activation.eval()(pre)
    assert len(latents.values) / 500 == pytest.approx(6, abs=2 / 500)
    assert len(activation(normal(500, 64, seed=6)).values) / 500 == pytest.approx(6, rel=0.05)


def test_the_dead_come_down_to_the_median_threshold_of_the_living():
    activation = JumpReLU(k=1, d_sae=5, bandwidth=1.0)
    before = torch.tensor([1.0, 2.0, 4.0, 8.0, 0.5]).log()
    for dead, after in (
        ([False, False, False, True, True], [1, 2, 4, 2, 0.5]),
        ([True] * 5, [1, 2, 4, 8, 0.5]),
        ([False] * 5, [1, 2, 4, 8, 0.5]),
    ):
        activation.log_growth.data.copy_(before)
        activation.revive(torch.tensor(dead))
        assert activation.log_growth.exp().tolist() == pytest.approx(after)


def test_a_jumprelu_of_which_nobody_knows_k_has_nothing_to_aim_at():
    activation = JumpReLU(k=None, d_sae=3, bandwidth=0.1)
    assert activation.penalty(activation.select(torch.ones(2, 3))) is None
    with pytest.raises(ValueError, match="aim at"):
        activation.calibrate(torch.ones(2, 3))


# all of them

CONFIGS = {
    "relu": ReLUConfig(),
    "topk": TopKConfig(k=4),
    "batchtopk": BatchTopKConfig(k=4),
    "jumprelu": JumpReLUConfig(k=4, bandwidth=0.1),
}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("factor", [0.05, 30.0])
def test_rescaled_activations_are_homogeneous(name, factor):
    activation = build(CONFIGS[name], d_sae=32).double()
    activation.calibrate(normal(64, 32, seed=0, dtype=torch.float64))
    activation(normal(64, 32, seed=0, dtype=torch.float64))
    pre = normal(64, 32, seed=1, dtype=torch.float64)
    before = activation.eval()(pre).dense()
    assert 0 < (before > 0).sum() <= (pre > 0).sum()
    assert name == "relu" or (before > 0).sum() < (pre > 0).sum()
    activation.rescale(factor)
    torch.testing.assert_close(activation(pre * factor).dense(), before * factor)


@pytest.mark.parametrize("name", CONFIGS)
def test_only_jumprelu_has_a_term_of_its_own_in_the_loss(name):
    activation = build(CONFIGS[name], d_sae=32)
    selected = activation.select(normal(64, 32, seed=1))
    penalty = activation.penalty(selected)
    assert (penalty is not None) == isinstance(activation, JumpReLU)
    if penalty is not None:
        l0 = activation.l0(selected)
        assert l0 == (selected.values > 1).sum() / 64, "thresholds start at 1"
        assert penalty == (l0 / 4 - 1) ** 2


def test_build_gives_the_activation_of_that_config():
    kinds = {"relu": ReLU, "topk": TopK, "batchtopk": BatchTopK, "jumprelu": JumpReLU}
    for name, kind in kinds.items():
        activation = build(CONFIGS[name], d_sae=8)
        assert type(activation) is kind
        assert name == "relu" or activation.k == 4
    assert build(JumpReLUConfig(bandwidth=0.3), d_sae=8).bandwidth == 0.3


# their configuration: each kind with its own parameters

NONLINEARITY = TypeAdapter(NonlinearityConfig)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_config_is_found_again_by_its_kind(config):
    assert NONLINEARITY.validate_python(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"kind": "relu", "k": 3}, "k"),
        ({"kind": "topk", "k": 3, "bandwidth": 0.1}, "bandwidth"),
        ({"kind": "batchtopk", "k": 3, "threshold": 0.1}, "threshold"),
        ({"kind": "jumprelu", "k": 3, "temperature": 0.1}, "temperature"),
    ],
)
def test_parameters_of_another_kind_are_refused(values, named):
    with pytest.raises(ValidationError) as refused:
        NONLINEARITY.validate_python(values)
    (error,) = refused.value.errors()
    assert (error["type"], error["loc"]) == ("extra_forbidden", (values["kind"], named))


@pytest.mark.parametrize("values", [{"kind": "gelu"}, {"k": 3}, {"kind": "topk"}, {"kind": "jumprelu", "bandwidth": 0}])
def test_a_config_that_is_none_of_them_is_refused(values):
    with pytest.raises(ValidationError):
        NONLINEARITY.validate_python(values)


def test_thresholds_come_back_from_a_file_to_the_last_bit_and_0_is_one(tmp_path):
    config = CoderConfig(reads=(4,), writes=(4,), d_sae=50, widths=(50,), activation=JumpReLUConfig(k=2))
    coder = SparseCoder(config).initialise(0, tied=True).eval()
    activation = coder.activation
    activation.threshold.copy_(torch.rand(50, generator=torch.Generator().manual_seed(1)))
    activation.threshold[7] = 0
    activation.log_growth.data.copy_(0.3 * normal(50, seed=2))
    coder.save(tmp_path / "coder")
    again = SparseCoder.load(tmp_path / "coder").activation
    assert torch.equal(again.theta, activation.theta)
    assert again.theta[7] == 0
    pre = again.theta.detach().repeat(2, 1)
    pre[1] = pre[0].nextafter(torch.tensor(2.0))
    assert again(pre).dense().count_nonzero(1).tolist() == [0, 50]
