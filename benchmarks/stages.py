"""Where the time of a training step goes: torch's operators by their own time, in milliseconds a step.

    python benchmarks/stages.py [--architecture topk] [--d-sae 12288] [--batch 2048]

The trainer and the activations of step.py, in this process. Behind the operators: _linear_pointwise (addmm where it is
float32) is the product that selects; _embedding_bag sums decoder rows, inputs and errors (the reconstruction and both
weights' gradients); _embedding_bag_per_sample_weights_backward is the inner products (exact pre-activations, gradients
of latents).
"""

import argparse
import sys
from pathlib import Path

import torch
from activations import synthetic
from harness import BATCHES, Size, available_threads
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).parent / "peers"))

from ours import SITE, new_trainee
from worker import Job

from matryoshka.data.activations import Batch
from matryoshka.training.allocator import keep_freed_memory

WARM_UP, STEPS, ROWS = 5, 20, 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--architecture", choices=("matryoshka", "batchtopk", "topk"), default="matryoshka")
    parser.add_argument("--d-sae", type=int, default=12_288)
    parser.add_argument("--batch", type=int, default=2048)
    given = parser.parse_args()
    keep_freed_memory()
    size = Size(768, given.d_sae, 32, given.batch)
    job = Job(given.architecture, False, size.d, size.d_sae, size.k, size.batch, size.widths, "cpu",
              available_threads(), "")  # fmt: skip
    batches = synthetic(BATCHES * size.batch, size.d).split(size.batch)
    trainee = new_trainee(job)
    trainee.coder.calibrate(batches[0], batches[0])
    positions = torch.arange(size.batch)

    def step(number: int) -> None:
        trainee.step(Batch({SITE: batches[number % len(batches)]}, positions), number, measure=False)

    for number in range(WARM_UP):
        step(number)
    with profile(activities=[ProfilerActivity.CPU]) as found:
        for number in range(WARM_UP, WARM_UP + STEPS):
            step(number)
    events = sorted(found.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    print(f"{total / STEPS / 1000:8.2f} ms a step, in operators; the {ROWS} largest:")
    for event in events[:ROWS]:
        per_step = event.self_cpu_time_total / STEPS / 1000
        print(f"{per_step:8.2f} ms {per_step * STEPS * 1000 / total:6.1%}  {event.key}  × {event.count / STEPS:g}")


if __name__ == "__main__":
    main()
