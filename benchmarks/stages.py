"""Where the time of a training step goes: torch's operators, in milliseconds a step.

    python benchmarks/stages.py [--architecture topk] [--d-sae 12288] [--batch 2048]

The trainer and the activations of step.py, in this process. Behind the operators: _linear_pointwise (addmm where it is
float32) is the product that selects; _embedding_bag sums decoder rows, inputs and errors (the reconstruction and both
weights' gradients); _embedding_bag_per_sample_weights_backward is the inner products (exact pre-activations, gradients
of latents). What is left is Python, numpy, and the watch itself: torch's profiler would be lighter, but what it
allocates has every large tensor fall on fresh pages.
"""

import argparse
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from activations import synthetic
from harness import BATCHES, Contender, Size, available_threads, new_job
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).parent / "peers"))

from job import Job
from ours import SITE, new_trainee

from matryoshka.data.stream import Batch
from matryoshka.training.allocator import keep_freed_memory

WARM_UP, STEPS, ROWS = 5, 20, 20


class Watch(TorchDispatchMode):
    """Adds up the seconds that each operator takes."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds, self.calls = defaultdict[str, float](float), defaultdict[str, int](int)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        started = time.perf_counter()
        result = func(*args, **(kwargs or {}))
        self.seconds[func.overloadpacket.__name__] += time.perf_counter() - started
        self.calls[func.overloadpacket.__name__] += 1
        return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--architecture", choices=("matryoshka", "batchtopk", "topk"), default="matryoshka")
    parser.add_argument("--d-sae", type=int, default=12_288)
    parser.add_argument("--batch", type=int, default=2048)
    given = parser.parse_args()
    keep_freed_memory()
    size = Size(768, given.d_sae, 32, given.batch)
    contender = Contender(given.architecture, "ours.py", given.architecture, size)
    job = Job(**new_job(contender, "cpu", available_threads(), steps=10_000))
    batches = synthetic(BATCHES * size.batch, size.d).split(size.batch)
    trainee = new_trainee(job)
    positions = torch.arange(size.batch)
    trainee.calibrate(Batch({SITE: batches[0]}, positions))

    def step(number: int) -> None:
        trainee.step(Batch({SITE: batches[number % len(batches)]}, positions), number, measure=False)

    with Watch() as watch:
        for number in range(WARM_UP):
            step(number)
        watch.seconds.clear()
        watch.calls.clear()
        started = time.perf_counter()
        for number in range(WARM_UP, WARM_UP + STEPS):
            step(number)
        whole = time.perf_counter() - started
    inside = sum(watch.seconds.values())
    print(
        f"{1000 * whole / STEPS:8.2f} ms a step, {1000 * inside / STEPS:.2f} of them in operators; the {ROWS} largest:"
    )
    for name in sorted(watch.seconds, key=lambda name: -watch.seconds[name])[:ROWS]:
        seconds = watch.seconds[name]
        print(f"{1000 * seconds / STEPS:8.2f} ms {seconds / inside:6.1%}  {name}  × {watch.calls[name] / STEPS:g}")


if __name__ == "__main__":
    main()
