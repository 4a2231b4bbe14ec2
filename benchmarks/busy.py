"""What a training step takes on a quiet machine and on a busy one, by how long OpenMP's threads spin before they sleep.

    python benchmarks/busy.py [--rounds 3]

Each time is of a process of its own, whose GOMP_SPINCOUNT is said: libgomp's own choice, what `import matryoshka` sets,
and one thread. Busy means one endless loop a processor beside it.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict

LOOP = [sys.executable, "-c", "while True: pass"]
STEP = """
import sys
sys.path[:0] = sys.argv[1:]
import matryoshka  # before torch, as the command does
import time, torch
from activations import synthetic
from harness import Size
from ours import SITE, new_trainee
from job import Job
from matryoshka.data.stream import Batch
from matryoshka.training.allocator import keep_freed_memory
keep_freed_memory()
size = Size(256, 2048, 24, 1024)
shape = (size.d, size.d_sae, size.k, size.batch, size.widths)
job = Job("matryoshka", False, *shape, "cpu", torch.get_num_threads(), steps=10_000, seed=0, lr=None)
trainee, x = new_trainee(job), synthetic(size.batch, size.d)
batch = Batch({SITE: x}, torch.arange(size.batch))
trainee.calibrate(batch)
seconds = []
for step in range(40):
    began = time.perf_counter()
    trainee.step(batch, step, measure=False)
    seconds.append(time.perf_counter() - began)
print(sorted(seconds[10:])[15])
"""
SETTINGS = {
    "libgomp's own": {"GOMP_SPINCOUNT": "300000"},
    "matryoshka's": {},
    "one thread": {"OMP_NUM_THREADS": "1"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    here = os.path.dirname(os.path.abspath(__file__))
    words = [sys.executable, "-c", STEP, here, os.path.join(here, "peers")]
    for busy in (False, True):
        loops = [subprocess.Popen(LOOP) for _ in range(len(os.sched_getaffinity(0)))] if busy else []
        time.sleep(1)
        times = defaultdict(list)
        try:
            for _ in range(given.rounds):
                for name, setting in SETTINGS.items():
                    done = subprocess.run(words, env=os.environ | setting, capture_output=True, text=True, check=True)
                    times[name].append(1000 * float(done.stdout))
        finally:
            for loop in loops:
                loop.kill()
        for name, of_name in times.items():
            spread = f"{min(of_name):.1f} to {max(of_name):.1f}"
            where = "busy" if busy else "quiet"
            print(f"{where:6} {name:16} {statistics.median(of_name):7.1f} ms a step ({spread})", flush=True)


if __name__ == "__main__":
    main()
