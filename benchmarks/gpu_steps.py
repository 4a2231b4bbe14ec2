"""The GPU report's training steps, the products that they are held against, and the kernels that they consist of."""

import itertools
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from activations import synthetic
from gpu_clock import Pace, milliseconds, reserved
from harness import STEPS, Contender, Size, available_threads, new_job
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).parent / "peers"))

from job import Job
from memory import read_peak, reset_peak, synchronise
from ours import SITE, planned

from matryoshka.coder.coder import SparseCoder
from matryoshka.data.stream import Batch
from matryoshka.training.session import CALIBRATION_ROWS
from matryoshka.training.trainee import Trainee

BATCHES = 64
"""Batches of activations on the device, fed over and over."""
WARM_UP = 2 * 8 + 1
"""Steps before the timing: the dead are listed every eighth, and the first two of a form compile and capture."""
PROFILED, KERNELS = 5, 25
"""Steps under the profiler, and the kernels of its table."""
SILENCE = 4.0
"""Taken off the biases of latents that are to stay dead: far below whatever a batch selects."""


class Case(NamedTuple):
    """What is trained: coders of one architecture, all on the same batches."""

    name: str
    architecture: str
    size: Size
    coders: int = 1
    dead: float = 0.0
    """share of the latents"""


class Bench:
    """A case, ready to take steps: coders in training, and batches of `rows` [rows, d]."""

    def __init__(self, case: Case, rows: Tensor) -> None:
        self.batches = rows.split(case.size.batch)
        self.positions = torch.arange(len(rows), device=rows.device)
        self.before, self.reserved_before = reset_peak(rows.device.type), reserved(rows.device.type)
        self.trainees = [_trainee(case, seed, rows.device.type) for seed in range(case.coders)]
        self.numbers = itertools.count()
        for trainee in self.trainees:
            trainee.calibrate(self._batch(rows[: max(CALIBRATION_ROWS, case.size.batch)]))
            if case.dead:
                _kill(trainee, case.dead)

    def step(self) -> None:
        """Every coder learns from the next batch."""
        number = next(self.numbers)
        batch = self._batch(self.batches[number % len(self.batches)])
        for trainee in self.trainees:
            trainee.step(batch, number, measure=False)
        for trainee in self.trainees:
            trainee.join()

    def launch_by_python(self) -> None:
        """From now on steps are launched kernel by kernel, not as a graph."""
        for trainee in self.trainees:
            trainee.graphs = None

    @property
    def graphed(self) -> bool:
        """Whether steps are replayed as graphs."""
        return all(trainee.graphs is not None for trainee in self.trainees)

    def _batch(self, x: Tensor) -> Batch:
        return Batch({SITE: x}, self.positions[: len(x)])


def make_rows(sizes: Iterable[Size], device: str) -> dict[int, Tensor]:
    """Activations for each d among the sizes, enough for BATCHES of its largest batch."""
    largest: dict[int, int] = {}
    for size in sizes:
        largest[size.d] = max(size.batch, largest.get(size.d, 0))
    return {d: synthetic(BATCHES * batch, d, device) for d, batch in largest.items()}


def measure_floor(size: Size, device: str, pace: Pace) -> Iterator[dict[str, Any]]:
    """The bare product of the encoder, [batch, d] × [d, d_sae], in bfloat16 and, where the card has it, in FP8 with a
    scale for each row of both."""
    inputs = torch.randn(size.batch, size.d, device=device)
    weights = torch.randn(size.d_sae, size.d, device=device)  # a latent's weights lie together, as in a coder
    x, W = inputs.bfloat16(), weights.bfloat16().T
    product = torch.empty(size.batch, size.d_sae, dtype=x.dtype, device=device)
    operations: dict[str, Callable[[], object]] = {"bfloat16": lambda: torch.mm(x, W, out=product)}
    if device == "cuda" and torch.cuda.get_device_capability() >= (9, 0):
        (x8, x_scale), (W8, W_scale) = _quantised(inputs), _quantised(weights)
        operations["float8_e4m3fn"] = lambda: torch._scaled_mm(
            x8, W8.T, scale_a=x_scale, scale_b=W_scale.T, out_dtype=torch.bfloat16, use_fast_accum=True
        )
    for dtype, operation in operations.items():
        ms = milliseconds(operation, device, pace)
        tera = 2 * size.batch * size.d * size.d_sae / ms["median"] / 1e9
        yield {**_described(size), "dtype": dtype, "ms": ms, "teraflops": tera}


def measure_copy(size: int, device: str, pace: Pace) -> dict[str, Any]:
    """What a copy of `size` bytes within the device's memory moves, counting those read and those written."""
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    ms = milliseconds(lambda: target.copy_(source), device, pace)
    return {"bytes": size, "ms": ms, "terabytes_per_second": 2 * size / ms["median"] / 1e9}


def measure_steps(case: Case, rows: Tensor, pace: Pace) -> Iterator[dict[str, Any]]:
    """A step of the case as users take it, and then launched by Python where it was a graph; with the seconds that the
    first steps took (kernels are compiled), and the memory that the coders needed beside the batches."""
    device, started = rows.device.type, time.perf_counter()
    bench = Bench(case, rows)
    while True:
        for _ in range(WARM_UP):
            bench.step()
        synchronise(device)
        start = time.perf_counter() - started
        mode = "graph" if bench.graphed else "eager"
        ms = milliseconds(bench.step, device, pace)
        yield {
            "case": case.name,
            **_described(case.size),
            "coders": case.coders,
            "mode": mode,
            "ms": ms,
            "start_seconds": start,
            "peak_bytes": read_peak(device) - bench.before,
            "reserved_bytes": reserved(device) - bench.reserved_before,
            "dead": bench.trainees[0].dead.now.double().mean().item(),
        }
        if mode == "eager":
            return
        bench.launch_by_python()
        reset_peak(device)
        started = time.perf_counter()


def measure_kernels(case: Case, rows: Tensor) -> dict[str, Any]:
    """The kernels of a step, the longest first: how often each runs, and its ms; on a CPU the operators."""
    device, bench = rows.device.type, Bench(case, rows)
    bench.launch_by_python()
    for _ in range(WARM_UP):
        bench.step()
    synchronise(device)
    on_gpu = device == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as profiled:
        for _ in range(PROFILED):
            bench.step()
        synchronise(device)
    kind = DeviceType.CUDA if on_gpu else DeviceType.CPU
    kernels = [
        {
            "name": _shortened(event.key),
            "calls": event.count / PROFILED,
            "ms": (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1000 / PROFILED,
        }
        for event in profiled.key_averages()
        if event.device_type == kind
    ]
    kernels.sort(key=lambda kernel: -kernel["ms"])
    whole = {name: sum(kernel[name] for kernel in kernels) for name in ("calls", "ms")}
    return {"case": case.name, **_described(case.size), **whole, "kernels": kernels[:KERNELS]}


@torch.no_grad()
def _trainee(case: Case, seed: int, device: str) -> Trainee:
    """As `SparseCoder.initialise` starts it, but with random numbers of the device itself: a CPU needs seconds."""
    contender = Contender(case.name, "ours.py", case.architecture, case.size)
    plan, config = planned(Job(**new_job(contender, device, available_threads(), STEPS, seed)))
    with torch.device(device):
        coder = SparseCoder(plan.coder)
        start = torch.randn(coder.W_dec.shape, generator=torch.Generator(device).manual_seed(seed))
    coder.W_dec.copy_(start / start.norm(dim=1, keepdim=True))
    coder.W_enc.copy_(coder.W_dec.T)
    return Trainee(plan, coder, config.training, config.steps, beside=case.coders > 1)


@torch.no_grad()
def _kill(trainee: Trainee, share: float) -> None:
    """Have this share of its latents dead from the start, and stay so."""
    every = round(1 / share)
    trainee.dead.tokens_since_fired[::every] = trainee.dead.after_tokens
    trainee.coder.b_enc[::every] -= SILENCE


def _quantised(rows: Tensor) -> tuple[Tensor, Tensor]:
    """In FP8, and the scale of each row [rows, 1]."""
    scale = rows.abs().amax(dim=1, keepdim=True) / torch.finfo(torch.float8_e4m3fn).max
    return (rows / scale).to(torch.float8_e4m3fn), scale


def _described(size: Size) -> dict[str, Any]:
    return {"d": size.d, "d_sae": size.d_sae, "k": size.k, "batch": size.batch}


def _shortened(kernel: str) -> str:
    """Its name without return type and arguments: C++ spells out types over hundreds of letters."""
    name = kernel.removeprefix("void ").split("(")[0]
    return name if len(name) <= 90 else f"{name[:60]}…{name[-29:]}"
