"""A GPU's work as CUDA graphs: launched once by Python, then repeated by the GPU alone.

A step is some hundred kernels. Where each takes a few µs, as with a small coder, the GPU would mostly wait for the host
to launch them one by one; a graph of them all is one launch.
"""

from collections.abc import Callable, Hashable
from functools import cache
from typing import Any

import torch
from torch import Tensor


class Graphs:
    """Runs `work(form, *inputs)`. Each form, with inputs of the same shapes, is run by Python once, captured the second
    time, and from then on replayed: the same kernels in the same order, so the same bits.

    `work` returns nothing and never makes the host wait. What it leaves behind it writes into tensors that were there
    before; whatever else it allocates, the next graph overwrites.
    """

    def __init__(self, work: Callable[..., None], stream: torch.cuda.Stream | None = None) -> None:
        """With `stream`, replays run there, beside those of others, and `join` has what follows wait for them."""
        self._work, self._stream = work, stream
        self._graphs: dict[Hashable, torch.cuda.CUDAGraph | None] = {}
        self._places: dict[Hashable, Tensor] = {}
        self._kept: torch.cuda.CUDAGraph | None = None

    def __call__(self, form: Hashable, *inputs: Tensor | None) -> None:
        shapes = [_shape(inputs, x) for x in inputs]
        key = (form, *shapes)
        if key not in self._graphs:  # kernels are compiled now, and handles made: a capture may not do that
            self._graphs[key] = None
            self._work(form, *inputs)
            return
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        with torch.cuda.stream(self._stream):
            placed = [None if x is None else self._place(shape, x) for shape, x in zip(shapes, inputs, strict=True)]
            if (graph := self._graphs[key]) is None:
                graph = self._graphs[key] = self._captured(form, placed)
            graph.replay()

    def join(self) -> None:
        """Whatever is launched from now on comes after the replays so far."""
        if self._stream is not None:
            torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)

    def _place(self, shape: Hashable, x: Tensor) -> Tensor:
        """The numbers of `x`, where graphs read them."""
        if shape not in self._places:
            self._places[shape] = torch.empty_like(x, memory_format=torch.contiguous_format)
        return self._places[shape].copy_(x)

    def _captured(self, form: Hashable, inputs: list[Tensor | None]) -> torch.cuda.CUDAGraph:
        graph, device = torch.cuda.CUDAGraph(), next(x.device for x in inputs if x is not None)
        if self._kept is None:
            self._kept = _shared(device) if self._stream is None else _keeper(device)
        where = {"pool": self._kept.pool(), "stream": self._stream}  # cuBLAS' workspaces are a stream's
        # a thread that reads ahead goes on meanwhile, in a stream of its own
        with torch.cuda.device(device), torch.cuda.graph(graph, capture_error_mode="thread_local", **where):
            self._work(form, *inputs)
        return graph


def _shape(inputs: tuple[Tensor | None, ...], x: Tensor | None) -> Any:
    """What an input must have in common with another to be read at the same place; of one that is given twice (an SAE's
    target is what it reads) both are the first."""
    return None if x is None else (next(i for i, other in enumerate(inputs) if other is x), x.shape, x.dtype)


def _keeper(device: torch.device) -> torch.cuda.CUDAGraph:
    """A graph that is never replayed, and keeps memory for others: that of graphs alone ends with the last of them."""
    graph, some = torch.cuda.CUDAGraph(), torch.zeros(1, device=device)
    with torch.cuda.device(device), torch.cuda.graph(graph, capture_error_mode="thread_local"):
        some.add_(0)
    return graph


@cache
def _shared(device: torch.device) -> torch.cuda.CUDAGraph:
    """The keeper for all that are replayed one after another: they leave nothing behind. Those beside one another need
    one each."""
    return _keeper(device)


class Clock:
    """Step and learning rate as the device's work reads them: numbers for a CPU; for a GPU tensors, since a graph reads
    the same place each time."""

    def __init__(self, device: torch.device) -> None:
        self.step: int | Tensor = 0
        self.rate: float | Tensor = 0.0
        if device.type != "cpu":
            self.step = torch.zeros((), dtype=torch.int64, device=device)
            self.rate = torch.zeros((), dtype=torch.float32, device=device)

    def set(self, step: int, rate: float) -> None:
        """It is this step now."""
        if isinstance(self.step, Tensor) and isinstance(self.rate, Tensor):
            self.step.fill_(step)
            self.rate.fill_(rate)
        else:
            self.step, self.rate = step, rate
