"""How much memory a contender's process has needed."""

import contextlib
import resource
import sys
from pathlib import Path

import torch


def synchronise(device: str) -> None:
    """Wait until all that was queued on the device is done."""
    if device == "cuda":
        torch.cuda.synchronize()


def reset_peak(device: str) -> int:
    """Make the memory now in use the peak, where the system can; returns it in bytes."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    # no such file, or forbidden: the peak then includes that of the imports, which is below training's
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return read_peak(device)


def read_peak(device: str) -> int:
    """The largest memory in use since `reset_peak`, in bytes: allocated on a GPU, resident on a CPU."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
