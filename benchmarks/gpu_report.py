"""What one GPU makes of the project, in less than four minutes, as tables.

    python benchmarks/gpu_report.py [--budget SECONDS] [--out DIR] [--device cpu --tiny]

The package, torch, Triton and transformers are enough: no network, no data. In this order:

    1. floor: the encoder's bare product in bfloat16 and FP8, and a copy within the device's memory
    2. steps: of one and of several coders, as graphs and launched by Python, on synthetic activations
    3. kernels: what a large and a small step consist of
    4. text: language models of real shapes with random weights, alone and with a coder behind them
    5. peers: sparsify and sae-lens in their own training loops, if this Python has them

What the budget has no time for is left out, and so is what fails; either is said. DATE-HARDWARE-gpu.json and .md in
--out (benchmarks/results) are written anew after each measurement, so that a run that is stopped leaves what it had.
"""

import argparse
import gc
import importlib.util
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from gpu_clock import Pace
from gpu_steps import Case, make_rows, measure_copy, measure_floor, measure_kernels, measure_steps
from gpu_tables import markdown
from gpu_text import GEMMA2_2B, GPT2_SMALL, TINY_GEMMA2, TINY_GPT2, Reading, measure_text
from harness import HERE, Contender, Process, Setting, Size, available_threads, label, machine

PARTS = ("floor", "copy", "steps", "kernels", "text", "peers")


class Scope(NamedTuple):
    """What is measured, and how long."""

    large: Size
    middle: Size
    small: Size
    copied: int
    """bytes of the copy that measures the memory's bandwidth"""
    readings: list[Reading]
    pace: Pace


FULL = Scope(
    Size(2304, 65_536, 32, 8192),
    Size(2304, 36_864, 32, 4096),
    Size(768, 12_288, 32, 4096),
    2**30,
    [
        Reading("GPT-2 small", GPT2_SMALL, 8, 12_288, 32, 4096, 128, chunks=100, seconds=20),
        Reading("Gemma-2-2B", GEMMA2_2B, 12, 36_864, 32, 4096, 128, chunks=100, seconds=12),
    ],
    Pace(blocks=5, seconds=0.25),
)
TINY = Scope(
    Size(24, 128, 4, 64),
    Size(24, 96, 4, 32),
    Size(16, 64, 4, 32),
    2**20,
    [
        Reading("tiny GPT-2", TINY_GPT2, 1, 64, 4, 32, 16, chunks=2, seconds=1, windows=4, chunk=256),
        Reading("tiny Gemma-2", TINY_GEMMA2, 1, 64, 4, 32, 16, chunks=2, seconds=1, windows=4, chunk=256),
    ],
    Pace(blocks=2, seconds=0.005),
)


class Measurement(NamedTuple):
    """One measurement: what it is called, how many seconds it may take on an H100, and how it is made."""

    part: str
    name: str
    seconds: float
    run: Callable[[], Iterable[dict[str, Any]]]


class Report:
    """What has been measured so far, on the disk as soon as it is."""

    def __init__(self, command: str, device: str, folder: Path, budget: float) -> None:
        about = machine(device, available_threads()) | {"triton": _version("triton")}
        about |= {"transformers": _version("transformers"), "cuda": torch.version.cuda}
        self.results: dict[str, Any] = {"machine": about, "command": command}
        self.results |= {**{part: [] for part in PARTS}, "left_out": [], "seconds": 0.0}
        self.file = folder / f"{label(about)}-gpu.json"
        self.device, self.budget, self.started = device, budget, time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)

    def take(self, measurement: Measurement) -> None:
        """Measure it if there is time, and write down what came of it."""
        left = self.budget - (time.monotonic() - self.started)
        if left < measurement.seconds:
            self._leave_out(measurement, f"{left:.0f} s of {self.budget:g} s are left")
            return
        print(f"{measurement.part}: {measurement.name}", flush=True)
        began = time.monotonic()
        try:
            for result in measurement.run():
                self.results[measurement.part].append(result)
                if isinstance(ms := result.get("ms"), dict):
                    print(f"    {ms['median']:.3f} ms", flush=True)
        except (Exception, SystemExit) as error:  # out of memory, a kernel that this card refuses: the rest goes on
            traceback.print_exc()
            self._leave_out(measurement, f"{type(error).__name__}: {' '.join(str(error).split())[-200:]}")
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()
        self._write()
        print(f"    took {time.monotonic() - began:.1f} s", flush=True)

    def skip(self, part: str, name: str, reason: str) -> None:
        """Say that something is not measured at all."""
        self._leave_out(Measurement(part, name, 0, list), reason)

    def _leave_out(self, measurement: Measurement, reason: str) -> None:
        self.results["left_out"].append(f"{measurement.part}: {measurement.name}: {reason}")
        print(f"left out: {self.results['left_out'][-1]}", flush=True)
        self._write()

    def _write(self) -> None:
        self.results["seconds"] = time.monotonic() - self.started
        self.file.write_text(json.dumps(self.results, indent=2) + "\n")
        self.file.with_suffix(".md").write_text(markdown(self.results))


def cases(scope: Scope) -> list[Case]:
    """The most important first."""
    large, middle, small = scope.large, scope.middle, scope.small
    one_each = [Case("matryoshka", "matryoshka", size) for size in (large, small, middle)]
    others = [
        case
        for size in (large, small, middle)
        for case in (
            Case("topk", "topk", size),
            Case("10 % dead", "matryoshka", size, dead=0.1),
            Case("one prefix", "batchtopk", size),
        )
    ]
    return [*one_each, Case("6 coders", "matryoshka", small, coders=6), *others]


def measurements(scope: Scope, device: str) -> Iterator[Measurement]:
    """All of the report's but for the peers."""
    sizes, pace = (scope.large, scope.middle, scope.small), scope.pace
    yield Measurement("copy", "within memory", 2, lambda: [measure_copy(scope.copied, device, pace)])
    for size in sizes:
        yield Measurement("floor", _name(size), 4, partial(measure_floor, size, device, pace))
    rows = make_rows(sizes, device)
    for case in cases(scope):
        yield Measurement(
            "steps", f"{case.name}, {_name(case.size)}", 6, partial(measure_steps, case, rows[case.size.d], pace)
        )
    for case in cases(scope)[:2]:
        run = partial(measure_kernels, case, rows[case.size.d])
        yield Measurement("kernels", _name(case.size), 6, lambda run=run: [run()])
    rows.clear()
    for reading in scope.readings:
        run = partial(measure_text, reading, device, pace)
        yield Measurement("text", reading.name, 15 + reading.seconds, lambda run=run: [run()])


def peers(report: Report, size: Size) -> None:
    """Those that can be imported here, each in a process of its own."""
    here = {"sparsify": "sparsify", "saelens": "sae_lens"}
    contenders = [
        Contender("sparsify-topk", "with_sparsify.py", "topk", size, environment="sparsify"),
        Contender("saelens-matryoshka-best", "with_saelens.py", "matryoshka", size, True, "saelens"),
        Contender("saelens-topk-best", "with_saelens.py", "topk", size, True, "saelens"),
    ]
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(report.device, available_threads(), False, Path(folder), Path(folder))
        for contender in contenders:
            package = here[contender.environment or ""]
            if importlib.util.find_spec(package) is None:
                report.skip("peers", contender.name, f"{package} is not installed in this Python")
            else:
                run = partial(_timed_peer, contender._replace(environment=None), setting)
                report.take(Measurement("peers", contender.name, 45, lambda run=run: [run()]))


def _timed_peer(contender: Contender, setting: Setting) -> dict[str, Any]:
    process = Process(contender, setting, tuned=False)
    process.seconds(3)
    ms = sorted(1000 * process.seconds(5) for _ in range(5))
    peak = process.end()["peak_growth_bytes"]
    size = {name: getattr(contender.size, name) for name in ("d", "d_sae", "k", "batch")}
    spread = {"median": ms[2], "min": ms[0], "max": ms[-1]}
    return {"case": contender.name, **size, "coders": 1, "mode": "its own", "ms": spread, "peak_bytes": peak}


def _name(size: Size) -> str:
    return f"d {size.d}, d_sae {size.d_sae:,}, batch {size.batch}"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="sizes that say nothing but that it runs")
    parser.add_argument("--budget", type=float, default=200, metavar="SECONDS")
    parser.add_argument("--out", type=Path, default=HERE / "results", metavar="DIR")
    given = parser.parse_args(arguments)
    scope = TINY if given.tiny else FULL
    asked = ["python benchmarks/gpu_report.py", *(sys.argv[1:] if arguments is None else arguments)]
    report = Report(" ".join(asked), given.device, given.out, given.budget)
    for measurement in measurements(scope, given.device):
        report.take(measurement)
    peers(report, scope.large)
    print(markdown(report.results))
    print(f"written: {report.file}")


if __name__ == "__main__":
    main()
