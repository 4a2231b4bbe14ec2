"""One step of training: the same as the plain dense formulas, dead latents, clipping, memory."""

import copy
import subprocess
import sys

import pytest
import torch
from interpreted import DEVICE, fast, interpret
from torch.utils._python_dispatch import TorchDispatchMode

from matryoshka.coder import kernels
from matryoshka.coder.coder import CoderConfig, SparseCoder
from matryoshka.data.activations import Batch
from matryoshka.lm.sites import Site
from matryoshka.training import dead, optim
from matryoshka.training.config import CoderSection, TrainingSection
from matryoshka.training.optim import Adam, learning_rate, normalise_rows, project_rows
from matryoshka.training.plan import Plan
from matryoshka.training.trainee import Trainee

READ, WRITE = Site.parse("0.mlp_in"), Site.parse("0.mlp_out")
D_IN, D_OUT, D_SAE, K, WIDTHS = 12, 10, 96, 4, (8, 24, 96)


def normal(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def batch(seed, rows=64, device="cpu"):
    """Activations of which the written ones are a function of those read."""
    x = normal(rows, D_IN, seed=seed) + 1
    y = torch.tanh(x @ normal(D_IN, D_OUT, seed=999))
    return Batch({READ: x.to(device), WRITE: y.to(device)}, torch.arange(rows))


def make(activation="batchtopk", device="cpu", **training):
    section = CoderSection(read=str(READ), write=str(WRITE), d_sae=D_SAE, k=K, activation=activation)
    config = CoderConfig(d_in=D_IN, d_out=D_OUT, d_sae=D_SAE, widths=WIDTHS, activation=activation, k=K)
    coder = SparseCoder(config).initialise(0, tied=False)
    first = batch(0)
    coder.calibrate(first.activations[READ], first.activations[WRITE])
    values = {"autocast": "off", "lr": 1e-2, "dead_after_tokens": 65, "warm_up": 2, **training}
    return Trainee(Plan("coder", section, READ, WRITE, config), coder.to(device), TrainingSection(**values), 30)


@pytest.fixture
def on_triton(monkeypatch):
    """Steps take the Triton kernels, on tensors of the device that this is."""
    if fast is None:
        pytest.skip("Triton is not installed")
    interpret(monkeypatch)
    monkeypatch.setattr(kernels, "_load", lambda _: fast)
    return DEVICE


def dense_step(coder, optimiser, section, step, x, y):
    """The step written out densely: every prefix decoded anew, autograd through everything, plain Adam."""
    y = coder.scale_out * y
    pre = coder.inputs(x) @ coder.W_enc + coder.b_enc
    values = pre.relu().flatten()
    if coder.config.activation == "batchtopk":
        top = values.topk(K * len(x))
        latents = torch.zeros_like(values).scatter(0, top.indices, top.values).view_as(pre)
    else:
        top = pre.relu().topk(K, dim=1)
        latents = torch.zeros_like(pre).scatter(1, top.indices, top.values)
    y_hat = torch.stack([latents[:, :n] @ coder.W_dec[:n] + coder.b_dec for n in WIDTHS])
    loss = ((y - y_hat).square().sum((1, 2)) / (y - y.mean(0)).square().sum()).mean()
    gone = coder.tokens_since_fired >= section.dead_after_tokens
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
    optimiser.param_groups[0]["lr"] = learning_rate(step, 30, section)
    optimiser.step()
    with torch.no_grad():
        coder.W_dec /= coder.W_dec.norm(dim=1, keepdim=True)
        coder.tokens_since_fired += len(x)
        coder.tokens_since_fired[(latents > 0).any(0)] = 0


@pytest.mark.parametrize("largest_norm", [1e-2, 1e2])
@pytest.mark.parametrize("activation", ["topk", "batchtopk"])
def test_steps_are_those_of_the_dense_formulas(activation, largest_norm, monkeypatch):
    report = follow_the_dense_formulas(make(activation, clip=largest_norm), 12, monkeypatch)
    assert report["dead"] > 0


@pytest.mark.parametrize("activation", ["topk", "batchtopk"])
def test_steps_on_tritons_kernels_are_those_of_the_dense_formulas(activation, on_triton, monkeypatch):
    trainee = make(activation, on_triton, clip=1e-2)
    trainee.coder.tokens_since_fired[::5] = 65  # in two steps none dies
    follow_the_dense_formulas(trainee, 2, monkeypatch)


def follow_the_dense_formulas(trainee, steps, monkeypatch):
    """Weights after some steps with every term, dead latents and clipping at work."""
    monkeypatch.setattr(dead, "REFRESH", 1)
    device = trainee.coder.W_enc.device
    plain = copy.deepcopy(trainee.coder)
    optimiser = torch.optim.Adam(plain.parameters(), betas=trainee.section.betas)
    for step in range(steps):
        data = batch(step, device=device)
        trainee.step(data, step, measure=step == steps - 1)
        dense_step(plain, optimiser, trainee.section, step, data.activations[READ], data.activations[WRITE])
        for (name, ours), theirs in zip(trainee.coder.named_parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-5, msg=f"{name} after step {step}")
    assert torch.equal(trainee.coder.tokens_since_fired, plain.tokens_since_fired)
    report = trainee.report(steps)
    assert report["aux"] > 0
    assert report["l0"] == pytest.approx(K)
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
    """The dead are listed every few steps only, and the norm is asked for on a CPU only."""
    trainee = make(activation, on_triton, autocast="bfloat16")
    trainee.step(batch(0, device=on_triton), 0, measure=False)
    with Questions() as questions:
        trainee.step(batch(1, device=on_triton), 1, measure=True)
    assert questions.asked == asked + ["_local_scalar_dense"] * (on_triton == "cpu")


def test_on_a_gpu_the_constraint_of_unit_rows_is_one_launch_each_way(on_triton, monkeypatch):
    launches = []
    monkeypatch.setattr(fast.launch, "run", lambda kernel, grid, *_, **__: launches.append((kernel.fn.__name__, grid)))
    W_dec = torch.nn.Parameter(torch.ones(600, D_OUT, device=on_triton))
    W_dec.grad = torch.ones_like(W_dec)
    project_rows(W_dec)
    normalise_rows(W_dec)
    assert launches == [("_project_rows", (600,)), ("_normalise_rows", (600,))]


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


def test_the_dead_are_listed_now_and_then_and_leave_at_once():
    trainee = make()
    coder, counter = trainee.coder, trainee.coder.tokens_since_fired
    counter[[3, 5]] = 65
    assert trainee.dead.part(coder, 0).index.tolist() == [3, 5]
    counter[7] = 65
    counter[5] = 0
    for step in range(1, dead.REFRESH):
        part = trainee.dead.part(coder, step)
        assert part.index.tolist() == [3, 5]
        assert part.still.tolist() == [True, False]
    assert trainee.dead.part(coder, dead.REFRESH).index.tolist() == [3, 7]


def test_one_that_fires_again_no_longer_reconstructs_or_learns():
    trainee = make()
    coder = trainee.coder
    index, x = torch.tensor([3, 5]), normal(20, D_IN, seed=1)
    part = dead.gather(coder, index, torch.tensor([True, False]))
    alone = dead.gather(coder, index[:1], torch.tensor([True]))
    torch.testing.assert_close(part.reconstruct(x, 99), alone.reconstruct(x, 99))
    part.reconstruct(x, 99).sum().backward()
    assert not part.encoder.grad[1].any()
    assert part.encoder.grad[0].any()


def test_without_dead_latents_there_is_no_such_term():
    trainee = make(dead_after_tokens=10**9)
    assert trainee.dead.part(trainee.coder, 0) is None
    trainee.step(batch(0), 0, measure=True)
    assert trainee.report(1)["aux"] == 0


# the optimiser's step


@pytest.mark.parametrize("largest", [0.1, 1e3])
def test_adam_is_adam_after_clipping_whatever_the_memory_layout(largest, monkeypatch):
    monkeypatch.setattr(optim, "DOT_LIMIT", 8)  # fewer than the numbers of a weight
    start = normal(7, 5, seed=0)
    ours = [torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.T.contiguous().T)]
    theirs = [torch.nn.Parameter(start.clone()) for _ in range(2)]
    section = TrainingSection(clip=largest)
    mine, plain = Adam(ours, section), torch.optim.Adam(theirs, lr=1e-2, betas=section.betas)
    for step in range(3):
        for a, b in zip(ours, theirs, strict=True):
            a.grad, b.grad = torch.empty_like(a).copy_(normal(7, 5, seed=step)), normal(7, 5, seed=step)
        norm = torch.nn.utils.clip_grad_norm_(theirs, largest)
        torch.testing.assert_close(mine.step(1e-2), norm)
        plain.step()
        assert [p.grad for p in ours] == [None, None]
        torch.testing.assert_close(ours, theirs)


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
