"""Fair timing of training steps: contenders in processes of their own, one at work at a time, in alternating rounds.

    1. each peer has a virtual environment, made once (`environment`), and a worker program in peers/
    2. a contender is a process that lives through its match: it builds its trainer, takes warm-up steps, then waits
       for orders (peers/paced.py has the protocol); a waiting process uses no processor
    3. a match times its contenders in rounds (A B C, A B C, …), since machines have slow phases: a ratio of two is the
       median of the ratios within rounds, given with the smallest and the largest. A round in which other programs took
       processor time is repeated
    4. peak memory is measured apart (`memory`): the tuned allocator of the timing never gives memory back, so that its
       fragmentation would count

All processes get the same number of threads and the same allocator. A CPU's page faults are dear, so glibc's malloc is
told to keep what it has once got (`TUNED`), which speeds up every trainer that allocates large tensors anew each step.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import activations
import torch

from matryoshka.coder.kernels.cpu import has_native_bfloat16

HERE = Path(__file__).parent
TUNED = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "1000000000"}
OFFLINE = {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled"}
STEPS = 10_000
"""Length of the run that a trainer which is only timed is told, for its schedules: longer than any warm-up."""
BATCHES = 16
"""Batches of activations in memory, fed over and over."""
FOREIGN = 0.05
"""Share of the processors that other programs may take before a round is repeated: threads that wait for each other
suffer from a third one many times its share."""


class Size(NamedTuple):
    """What is trained on what; `fractions` of d_sae are the Matryoshka's prefixes."""

    d: int
    d_sae: int
    k: int
    batch: int
    fractions: tuple[float, ...] = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)

    @property
    def widths(self) -> list[int]:
        return [round(self.d_sae * fraction) for fraction in self.fractions]


class Contender(NamedTuple):
    """A trainer at a size."""

    name: str
    program: str
    """a file in peers/"""
    architecture: str
    size: Size
    best: bool = False
    environment: str | None = None
    """the peer whose environment runs it; none: the one that runs this"""


class Setting(NamedTuple):
    """What all contenders have in common."""

    device: str
    threads: int
    tuned: bool
    peers: Path
    data: Path
    """folder for the activations, and for what the processes print"""


class Effort(NamedTuple):
    """How long a match lasts: so many undisturbed rounds, but no longer than `seconds` once it has had `least` of them,
    and twice as long at most; if it does not have them by then, the disturbed ones count too."""

    rounds: int
    seconds: float
    least: int = 3
    foreign: float = FOREIGN
    """A round is undisturbed if other programs took at most this share of the processors."""


class Round(NamedTuple):
    """Each contender once."""

    seconds: dict[str, float]
    """a step's, by contender"""
    foreign: float
    """share of the processors' time that went to other programs (or, on a virtual machine, to others' machines)"""


class Timings(NamedTuple):
    """A contender in a match."""

    seconds: list[float]
    """a step's, round by round"""
    foreign: float
    """the largest share of other programs in these rounds"""
    end: dict[str, Any]
    """what it said when it quit: peaks of memory, steps taken, FVU after the first and after the last of them"""


class Process:
    """A contender at work, or waiting for orders."""

    def __init__(self, contender: Contender, setting: Setting, tuned: bool) -> None:
        self.name = contender.name
        self.log = setting.data / f"{contender.name}.log"
        job = new_job(contender, setting.device, setting.threads, STEPS)
        files = ["paced", str(_activations(setting.data, contender.size, setting.device))]
        self.process = launch(contender, job, files, setting.peers, self.log, tuned)
        self._answer()

    def seconds(self, steps: int) -> float:
        """The mean duration of so many steps, taken now."""
        return self._ask({"steps": steps})["seconds"]

    def end(self) -> dict[str, Any]:
        """Let it report and quit."""
        answer = self._ask({"quit": True})
        self.process.communicate()
        return answer

    def _ask(self, order: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None
        print(json.dumps(order), file=self.process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.log.read_text()[-3000:]}\n{self.name} failed: its last words are above")
        return json.loads(line)


def new_job(
    contender: Contender, device: str, threads: int, steps: int, seed: int = 0, lr: float | None = None
) -> dict[str, Any]:
    """What a contender's process is told (peers/job.py)."""
    size = contender.size
    return {
        "architecture": contender.architecture,
        "best": contender.best,
        "d": size.d,
        "d_sae": size.d_sae,
        "k": size.k,
        "batch": size.batch,
        "widths": size.widths,
        "device": device,
        "threads": threads,
        "steps": steps,
        "seed": seed,
        "lr": lr,
    }


def launch(
    contender: Contender, job: dict[str, Any], files: list[str], peers: Path, log: Path, tuned: bool
) -> subprocess.Popen[str]:
    """Start a contender's process (peers/worker.py), which writes what it prints to `log`."""
    python = environment(contender.environment, peers) if contender.environment else Path(sys.executable)
    inherited = {name: value for name, value in os.environ.items() if name not in TUNED}
    threads = {"OMP_NUM_THREADS": str(job["threads"]), "MKL_NUM_THREADS": str(job["threads"])}
    with log.open("w") as opened:
        return subprocess.Popen(
            [python, HERE / "peers" / contender.program, json.dumps(job), *files],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=opened,
            text=True,
            env=inherited | OFFLINE | threads | (TUNED if tuned else {}),
        )


def match(contenders: Sequence[Contender], setting: Setting, effort: Effort) -> dict[str, Timings]:
    """Time the contenders against each other in alternating rounds."""
    processes = [Process(contender, setting, setting.tuned) for contender in contenders]
    steps = {process.name: _steps(process) for process in processes}
    rounds: list[Round] = []
    quiet: list[Round] = []
    started = time.perf_counter()
    while not _enough(len(quiet), len(rounds), time.perf_counter() - started, effort):
        rounds.append(_round(processes, steps))
        quiet = [each for each in rounds if each.foreign <= effort.foreign]
    if len(quiet) < effort.least:
        quiet = rounds
        foreign = max(each.foreign for each in rounds)
        print(f"  other programs took up to {foreign:.0%} of the processors: these times say little", flush=True)
    timings = {}
    for process in processes:
        seconds = [each.seconds[process.name] for each in quiet]
        timings[process.name] = Timings(seconds, max(each.foreign for each in quiet), process.end())
        print(f"  {process.name:34} {statistics.median(seconds):8.3f} s a step, {len(seconds)} rounds", flush=True)
    return timings


def _enough(quiet: int, rounds: int, seconds: float, effort: Effort) -> bool:
    late = seconds > effort.seconds and quiet >= effort.least
    return quiet >= effort.rounds or late or (seconds > 2 * effort.seconds and rounds >= effort.least)


def _round(processes: Sequence[Process], steps: dict[str, int]) -> Round:
    started, others = time.perf_counter(), _other_seconds(processes)
    seconds = {process.name: process.seconds(steps[process.name]) for process in processes}
    capacity = (time.perf_counter() - started) * available_threads()
    return Round(seconds, (_other_seconds(processes) - others) / capacity)


def _other_seconds(processes: Sequence[Process]) -> float:
    """Processor time spent so far on anything but `processes` and this one, on the processors that this one may use.

    Where the system has no /proc it is 0: nothing is known.
    """
    if not Path("/proc/stat").exists():
        return 0.0
    mine = {f"cpu{number}" for number in os.sched_getaffinity(0)}
    lines = [line.split() for line in Path("/proc/stat").read_text().splitlines() if line.split()[0] in mine]
    # user, nice, system, idle, iowait, irq, softirq, steal
    busy = sum(int(line[column]) for line in lines for column in (1, 2, 3, 6, 7, 8))
    own = 0
    for pid in ("self", *(str(process.process.pid) for process in processes)):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        own += int(fields[11]) + int(fields[12])
    return (busy - own) / os.sysconf("SC_CLK_TCK")


def _steps(process: Process) -> int:
    """Warm up; then how many steps take about a second, so that quick contenders are not timed on one alone."""
    process.seconds(2)
    return max(1, min(10, round(1 / process.seconds(1))))


def memory(contender: Contender, setting: Setting) -> dict[str, int]:
    """Peak memory of two steps in a new process with the system's own allocator settings: growth over what there was
    before the trainer was built, and of the whole process."""
    process = Process(contender, setting, tuned=False)
    process.seconds(2)
    end = process.end()
    return {name: end[name] for name in ("peak_growth_bytes", "peak_bytes")}


def ratio(above: Iterable[float], below: Iterable[float]) -> dict[str, float]:
    """Median, smallest and largest of the ratios of two contenders' seconds within the same rounds."""
    within = [a / b for a, b in zip(above, below, strict=True)]
    return {"median": statistics.median(within), "min": min(within), "max": max(within), "rounds": len(within)}


def environment(peer: str, folder: Path) -> Path:
    """The Python of the peer's environment in `folder`, made if it is missing or its pins have changed.

    Where there is `peers/PEER-nodeps.txt` too, what it names is installed last and without what it asks for itself.
    """
    place, needs, bare = folder / peer, HERE / "peers" / f"{peer}.txt", HERE / "peers" / f"{peer}-nodeps.txt"
    pins = needs.read_text() + (bare.read_text() if bare.exists() else "")
    python, stamp = place / "bin" / "python", place / "installed.txt"
    if not (stamp.exists() and stamp.read_text() == pins):
        print(f"making the environment of {peer} in {place} (once; some minutes)", flush=True)
        subprocess.run([sys.executable, "-m", "venv", place], check=True)
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "-r", needs], check=True)
        if bare.exists():
            subprocess.run([*pip, "--no-deps", "-r", bare], check=True)
        stamp.write_text(pins)
    return python


def _activations(folder: Path, size: Size, device: str) -> Path:
    file = folder / f"{size.d}-{size.batch}.safetensors"
    if not file.exists():
        activations.write(file, BATCHES * size.batch, size.d, device)
    return file


def multiplies_bfloat16(device: str) -> bool:
    """Whether the device multiplies in bfloat16 itself."""
    return torch.cuda.is_bf16_supported() if device == "cuda" else has_native_bfloat16()


def available_threads() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine(device: str, threads: int) -> dict[str, Any]:
    """What the numbers depend on besides the programs."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": torch.cuda.get_device_name() if device == "cuda" else _cpu(),
        "cores": os.cpu_count(),
        "threads": threads,
        "native_bfloat16": multiplies_bfloat16(device),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def label(about: dict[str, Any]) -> str:
    """A name for files of results: the date, the hardware, its cores."""
    hardware = "-".join("".join(c if c.isalnum() else " " for c in about["hardware"].lower()).split())
    return f"{about['date']}-{hardware}-{about['cores']}-cores"


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def publish(results: dict[str, Any], table: str, json_file: Path | None, save: bool, suffix: str = "") -> None:
    """Print the table; write the results to `json_file`, and with `save` both to results/DATE-HARDWARE."""
    print(table)
    files = [json_file] if json_file else []
    if save:
        files.append(HERE / "results" / f"{label(results['machine'])}{suffix}.json")
        files[-1].parent.mkdir(exist_ok=True)
        files[-1].with_suffix(".md").write_text(table)
    for file in files:
        file.write_text(json.dumps(results, indent=2) + "\n")
        print(f"written: {file}")
