"""What a contender is told, and what it trains on: its job, and an iterator of batches.

Imported inside every peer's environment, as all that stands beside it here but `ours.py`: torch, numpy and safetensors
are enough.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import NamedTuple

from torch import Tensor


class Job(NamedTuple):
    """What a contender is to train, given as JSON on its command line."""

    architecture: str
    """matryoshka, batchtopk, topk, jumprelu; for the floor a dtype"""
    best: bool
    """the peer's fastest options instead of its default ones"""
    d: int
    d_sae: int
    k: int
    batch: int
    widths: list[int]
    device: str
    threads: int
    steps: int
    """the length of the run that each trainer is told, for its schedules"""
    seed: int
    """of the initial weights"""
    lr: float | None
    """the learning rate, with the decay that the peer's documentation recommends; none: all as the peer has it"""


class Batches(Iterator[Tensor]):
    """The batches [batch, d] that a contender trains on.

    A contender that learns sets `reconstruct`, x [rows, d] → x_hat [rows, d] as a training step of its own selects,
    before or while it trains.
    """

    reconstruct: Callable[[Tensor], Tensor] | None = None

    @abstractmethod
    def peek(self, rows: int) -> Tensor:
        """The first rows [rows, d] in the order of training (at most as many as there are), without moving on."""
