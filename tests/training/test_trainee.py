"""One step of training: the same as the plain dense formulas, dead latents, clipping, memory."""

import copy
import subprocess
import sys

import pytest
import torch
from interpreted import DEVICE, fast, interpret
from small_trainee import D_IN, D_OUT, D_SAE, WIDTHS, K, batch, make, normal
from torch.utils._python_dispatch import TorchDispatchMode

from matryoshka.coder import kernels
from matryoshka.coder.architecture import CoderConfig, TopKConfig
from matryoshka.coder.coder import SparseCoder
from matryoshka.coder.kernels.cpu import total_norm
from matryoshka.coder.metrics import Meter
from matryoshka.data.stream import Batch
from matryoshka.lm.info import describe
from matryoshka.lm.sites import Site, Wiring
from matryoshka.training import checkpoint
from matryoshka.training.dead import REFRESH
from matryoshka.training.optim import Adam, Schedule
from matryoshka.training.plan import Plan, plan
from matryoshka.training.recipe import CoderSection, Config, TrainingSection
from matryoshka.training.trainee import Trainee

FEW = 16
"""Rows of a batch for the interpreter, which takes them one after the other."""


@pytest.fixture
def on_triton(monkeypatch):
    """Steps take the Triton kernels, on tensors of the device that this is."""
    if fast is None:
        pytest.skip("Triton is not installed")
    interpret(monkeypatch)
    with kernels.using(fast):
        yield DEVICE


def dense_step(coder, scaling, silent, optimiser, section, step, x, y):
    """The step written out densely: every prefix decoded anew, autograd through everything, plain Adam. `silent`:
    tokens since each latent fired."""
    y = scaling.scale_out * y
    pre = (scaling.scale_in * x - scaling.b_in) @ coder.W_enc + coder.b_enc
    values = pre.relu().flatten()
    if coder.config.activation.kind == "batchtopk":
        top = values.topk(K * len(x))
        latents = torch.zeros_like(values).scatter(0, top.indices, top.values).view_as(pre)
    else:
        top = pre.relu().topk(K, dim=1)
        latents = torch.zeros_like(pre).scatter(1, top.indices, top.values)
    y_hat = torch.stack([latents[:, :n] @ coder.W_dec[:n] + coder.b_dec for n in WIDTHS])
    loss = ((y - y_hat).square().sum((1, 2)) / (y - y.mean(0)).square().sum()).mean()
    gone = silent >= section.dead_after_tokens
    if gone.any():
        residual = (y - y_hat[-1]).detach()
        candidates = torch.where(gone, pre, 0).relu()
        best = candidates.topk(D_OUT // 2, dim=1)
        r_hat = torch.zeros_like(pre).scatter(1, best.indices, best.values) @ coder.W_dec
        loss = loss + (residual - r_hat).square().sum() / (residual - residual.mean(0)).square().sum() / 32
    optimiser.zero_grad()
    loss.backward()
    with torch.no_grad():
        coder.W_dec.grad -= (coder.W_dec.grad * coder.W_dec).sum(1, keepdim=True) * coder.W_dec
    torch.nn.utils.clip_grad_norm_(coder.parameters(), section.clip)
    optimiser.param_groups[0]["lr"] = Schedule.of(section, 30, x.shape[1]).rate(step)
    if step:
        optimiser.state[coder.W_enc]["exp_avg"][coder.W_enc.grad == 0] = 0
    optimiser.step()
    with torch.no_grad():
        coder.W_dec /= coder.W_dec.norm(dim=1, keepdim=True)
        silent += len(x)
        silent[(latents > 0).any(0)] = 0


@pytest.mark.parametrize("largest_norm", [1e-2, 1e2])
@pytest.mark.parametrize("activation", ["topk", "batchtopk"])
def test_steps_are_those_of_the_dense_formulas(activation, largest_norm):
    report = follow_the_dense_formulas(make(activation, refresh=1, clip=largest_norm), 12)
    assert report["dead"] > 0


@pytest.mark.parametrize("activation", ["topk", "batchtopk"])
def test_steps_on_tritons_kernels_are_those_of_the_dense_formulas(activation, on_triton):
    trainee = make(activation, on_triton, refresh=1, clip=1e-2)
    trainee.dead.tokens_since_fired[::5] = 65  # in two steps none dies
    follow_the_dense_formulas(trainee, 2, FEW)


def follow_the_dense_formulas(trainee, steps, rows=64):
    """Weights after some steps with every term, dead latents and clipping at work."""
    device = trainee.coder.device
    plain, silent = copy.deepcopy(trainee.coder), trainee.dead.tokens_since_fired.clone()
    optimiser = torch.optim.Adam(plain.parameters(), betas=trainee.section.betas)
    for step in range(steps):
        data = batch(step, rows, device)
        trainee.step(data, step, measure=step == steps - 1)
        x, y = data.of(trainee.plan.wiring)
        dense_step(plain, trainee.scaling, silent, optimiser, trainee.section, step, x, y)
        for (name, ours), theirs in zip(trainee.coder.named_parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-5, msg=f"{name} after step {step}")
    assert torch.equal(trainee.dead.tokens_since_fired, silent)
    report = trainee.report(steps)
    assert report["aux"] > 0
    assert K / 2 < report["l0"] <= K * (1 + 1e-6)
    return report


class Questions(TorchDispatchMode):
    """Operators whose result the host must have before it goes on: on a GPU each one waits for all before it."""

    ASKS = ("_local_scalar_dense", "bincount", "equal", "masked_select", "nonzero", "unique")

    def __init__(self):
        super().__init__()
        self.asked = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        masks = name.startswith(("index", "_unsafe_index")) and any(
            isinstance(index, torch.Tensor) and index.dtype == torch.bool
            for given in args
            if isinstance(given, list)
            for index in given
        )
        if (
            masks
            or name.startswith(self.ASKS)
            or (name == "repeat_interleave" and not (kwargs or {}).get("output_size"))
        ):
            self.asked.append(name)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(("activation", "asked"), [("topk", []), ("batchtopk", []), ("jumprelu", ["nonzero"])])
def test_a_step_on_tritons_kernels_asks_nothing_but_how_many_exceed_a_threshold(activation, asked, on_triton):
    """The dead are listed every few steps only."""
    trainee = make(activation, on_triton, select="bfloat16")
    trainee.step(batch(0, FEW, on_triton), 0, measure=False)
    with Questions() as questions:
        trainee.step(batch(1, FEW, on_triton), 1, measure=True)
    assert questions.asked == asked


def test_gradients_lie_in_memory_as_their_weights_do(monkeypatch):
    """Otherwise every step would copy them."""
    trainee = make()
    strides = []

    def look(self, _):
        strides.extend((p.grad.stride(), p.stride()) for p in self.parameters)
        return torch.zeros(())

    monkeypatch.setattr(Adam, "step", look)
    trainee.step(batch(0), 0, measure=False)
    assert len(strides) == 4
    assert all(of_gradient == of_weight for of_gradient, of_weight in strides)


def test_no_gradient_and_no_latent_is_ever_dense_over_the_batch(monkeypatch):
    """A step holds one tensor of batch × d_sae: the pre-activations that select."""
    sizes = []

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and result.is_floating_point() and result.numel() >= 64 * D_SAE:
                sizes.append(getattr(function, "__name__", str(function)))
            return result

    trainee = make("topk")
    with Watch():
        trainee.step(batch(0), 0, measure=False)
    assert [name for name in sizes if name not in ("detach", "contiguous")] == ["addmm"]


# dead latents


def test_dead_latents_are_those_silent_for_that_many_tokens():
    dead = make(dead_after_tokens=100).dead
    assert not dead.now.any(), "a new coder has none"
    dead.tokens_since_fired[:4] = torch.tensor([0, 99, 100, 5000])
    assert dead.now.nonzero().flatten().tolist() == [2, 3]


def test_the_counters_of_dead_latents_are_part_of_a_checkpoint(tmp_path):
    trainee, other = make(), make()
    trainee.dead.tokens_since_fired[3] = 777
    place = dict.fromkeys(("seed", "epoch", "index", "next_batch", "read", "left_out", "not_finite"), 0)
    state = {"best": {"coder": 0.5}, "stream": place}
    checkpoint.save(tmp_path, 5, [trainee], state)
    assert checkpoint.load(tmp_path / "step_5", [other], steps=9) == {"step": 5, **state}
    assert other.dead.now.nonzero().flatten().tolist() == [3]
    assert trainee.folded().state_dict().keys() == SparseCoder(trainee.coder.config).state_dict().keys()


def test_the_dead_are_listed_now_and_then_and_leave_at_once():
    trainee = make()
    coder, counter = trainee.coder, trainee.dead.tokens_since_fired
    counter[[3, 5]] = 65
    assert trainee.dead.listed_at(0).tolist() == [3, 5]
    counter[7] = 65
    counter[5] = 0
    for step in range(1, REFRESH):
        part = trainee.dead.part(coder, trainee.dead.listed_at(step))
        assert part.subset.index.tolist() == [3, 5]
        assert part.now.tolist() == [True, False]
    assert trainee.dead.listed_at(REFRESH).tolist() == [3, 7]


def test_one_that_fires_again_no_longer_reconstructs_or_learns():
    coder = make().coder
    index, x = torch.tensor([3, 5]), normal(20, D_IN, seed=1)
    still = torch.tensor([True, False])
    both, alone = coder.subset(index), coder.subset(index[:1])
    torch.testing.assert_close(both.reconstruct(x, still, 99), alone.reconstruct(x, still[:1], 99))
    both.reconstruct(x, still, 99).sum().backward()
    assert not both.encoder.grad[1].any()
    assert both.encoder.grad[0].any()


def test_without_dead_latents_there_is_no_such_term():
    trainee = make(dead_after_tokens=10**9)
    assert trainee.dead.listed_at(0) is None
    trainee.step(batch(0), 0, measure=True)
    assert trainee.report(1)["aux"] == 0


# the optimiser's step


def test_encoders_rest_while_their_latents_do_where_nothing_ties_them_to_what_they_read():
    trainee = make(aux_coefficient=0.0)
    encoder, resting = trainee.coder.W_enc, 0
    for step in range(8):
        before, (x, y) = encoder.detach().clone(), batch(step).of(trainee.plan.wiring)
        with torch.no_grad():
            active = trainee.coder(trainee.scaling.x(x), trainee.scaling.y(y)).latents.dense().any(0)
        trainee.step(batch(step), step, measure=False)
        moved = (encoder != before).any(0)
        assert moved.equal(active)
        resting += int((~active).sum())
    assert resting > 0


@pytest.mark.parametrize("largest", [0.1, 1e3])
def test_adam_is_adam_after_clipping_whatever_the_memory_layout(largest):
    start = normal(7, 5, seed=0)
    ours = [torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.T.contiguous().T)]
    theirs = [torch.nn.Parameter(start.clone()) for _ in range(2)]
    section = TrainingSection(clip=largest)
    mine, plain = Adam(ours, section), torch.optim.Adam(theirs, lr=1e-2, betas=section.betas)
    for step in range(3):
        for a, b in zip(ours, theirs, strict=True):
            a.grad, b.grad = torch.empty_like(a).copy_(normal(7, 5, seed=step)), normal(7, 5, seed=step)
        in_parts = total_norm([p.grad for p in ours], dot_limit=8)  # fewer than the numbers of a weight
        norm = torch.nn.utils.clip_grad_norm_(theirs, largest)
        torch.testing.assert_close(in_parts, norm)
        torch.testing.assert_close(mine.step(1e-2), norm)
        plain.step()
        assert [p.grad for p in ours] == [None, None]
        torch.testing.assert_close(ours, theirs)


# several sites

NARROW, WIDE = Site.parse("1.mlp_out"), Site.parse("2.resid_post")


def two_sites(seed, rows=256, sizes=(6, 14)):
    """Tokens with a few of 24 features on, which both sites see: each with a scale and a mean of its own."""
    on = torch.rand(rows, 24, generator=torch.Generator().manual_seed(seed)) < 0.1
    magnitudes = on * (1 + 0.2 * normal(rows, 24, seed=seed + 50_000))
    narrow = 0.02 * magnitudes @ normal(24, sizes[0], seed=1) + 0.03
    wide = 500 * magnitudes @ normal(24, sizes[1], seed=2) - 300 * normal(1, sizes[1], seed=3)
    return Batch({NARROW: narrow, WIDE: wide}, torch.arange(rows))


def train(one, steps=150):
    """A trainee of the plan that has learned from both sites, and its folded coder before that."""
    coder = SparseCoder(one.coder).initialise(0, tied=one.wiring.reads == one.wiring.writes)
    trainee = Trainee(one, coder, TrainingSection(lr=1e-2, select="float32", dead_after_tokens=5000), steps)
    trainee.calibrate(two_sites(0, 2048, one.coder.reads))
    before = trainee.folded()
    for step in range(steps):
        trainee.step(two_sites(step + 1, sizes=one.coder.reads), step, measure=False)
    assert trainee.bad_step.item() < 0
    return trainee, before


@torch.no_grad()
def fvu_of_sites(coder, wiring):
    """Of the whole dictionary at each written site, on tokens that nobody has seen."""
    x, y = two_sites(10_000, 2048, coder.config.reads).of(wiring)
    latents, meter = coder.encode(x), Meter(coder.config)
    meter.update(y, coder.decode(latents), latents)
    return [of_prefixes[-1] for of_prefixes in meter.fvu_of_sites()]


@pytest.fixture(scope="module")
def crosscoder():
    """(trainee, its folded coder before training) of one source that reads and writes both sites."""
    config = CoderConfig(reads=(6, 14), writes=(6, 14), d_sae=48, widths=(12, 48), activation=TopKConfig(k=4))
    section = CoderSection(read=(str(NARROW), str(WIDE)), d_sae=48, k=4, activation="topk")
    return train(Plan("coder", section, Wiring.of([NARROW, WIDE], [NARROW, WIDE]), config))


def test_a_crosscoder_learns_both_of_its_sites(crosscoder):
    trainee, before = crosscoder
    wiring = trainee.plan.wiring
    starts, ends = fvu_of_sites(before, wiring), fvu_of_sites(trainee.folded(), wiring)
    assert len(starts) == len(ends) == 2
    for start, end in zip(starts, ends, strict=True):
        assert end < 0.25 * start


def test_a_folded_crosscoder_is_the_trained_one_at_both_sites(crosscoder):
    trainee, _ = crosscoder
    x, y = two_sites(10_000).of(trainee.plan.wiring)
    scaling, folded = trainee.scaling, trainee.folded()
    inner, latents = trainee.coder.encode(scaling.x(x)), folded.encode(x)
    for name, weights in folded.state_dict().items():
        assert torch.isfinite(weights).all(), name
    ours = folded.decode(latents).split((6, 14), dim=-1)
    theirs = trainee.coder.decode(inner).split((6, 14), dim=-1)
    assert scaling.scale_out[0] > 1000 * scaling.scale_out[1]
    for site, of_trained, scale, target in zip(ours, theirs, scaling.scale_out, y.split((6, 14), dim=-1), strict=True):
        left = site - of_trained / scale
        assert left.norm(dim=-1).max() < 1e-3 * (target - target.mean(0)).norm(dim=-1).mean()


def test_a_crosscoder_planned_from_a_configuration_trains():
    coder = {"read": [str(NARROW), str(WIDE)], "d_sae": 64, "widths": [16, 64], "k": 4, "activation": "topk"}
    (one,) = plan(Config.build({"coder": coder}), describe("bundled"))
    trainee, before = train(one, steps=40)
    assert trainee.coder.config.d_in == 2 * 192
    for start, end in zip(fvu_of_sites(before, one.wiring), fvu_of_sites(trainee.folded(), one.wiring), strict=True):
        assert end < 0.5 * start


# memory

REUSE = """
import resource, torch
from matryoshka.training.allocator import keep_freed_memory
keep_freed_memory()
def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def five(): return [torch.ones(2**24) is None for _ in range(5)]
for _ in range(4): five()
before = faults()
five()
print(faults() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator is tuned on Linux only")
def test_freed_memory_is_used_again():
    """Five times 64 MiB are 81,920 pages; in the end none of them is asked for anew."""
    done = subprocess.run([sys.executable, "-c", REUSE], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 1000
