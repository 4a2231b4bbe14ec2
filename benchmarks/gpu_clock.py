"""How the GPU report times: by the wall, between two waits for the device, since that is what users wait for."""

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent / "peers"))

import torch
from memory import synchronise


class Pace(NamedTuple):
    """How long a thing is timed: the median of so many blocks of about so many seconds."""

    blocks: int
    seconds: float


def milliseconds(work: Callable[[], object], device: str, pace: Pace) -> dict[str, float]:
    """What one call of `work` takes, in ms: median, smallest and largest of the blocks."""
    calls = max(1, min(1000, round(pace.seconds / block_seconds(work, 2, device))))
    taken = [1000 * block_seconds(work, calls, device) for _ in range(pace.blocks)]
    return {"median": statistics.median(taken), "min": min(taken), "max": max(taken), "calls": calls * pace.blocks}


def block_seconds(work: Callable[[], object], calls: int, device: str) -> float:
    """Seconds a call, over so many in a row."""
    synchronise(device)
    started = time.perf_counter()
    for _ in range(calls):
        work()
    synchronise(device)
    return (time.perf_counter() - started) / calls


def reserved(device: str) -> int:
    """Bytes that torch holds of a GPU's memory, in use or not; of a CPU's it holds none."""
    return torch.cuda.memory_reserved() if device == "cuda" else 0
