"""The processes that work on one job together: how many there are, which of them this is, what they tell each other.

torchrun starts them and says so in each one's environment, which nothing but `World.current` reads. torch is imported
where there are several.
"""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from matryoshka.errors import MatryoshkaError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """Who works along. `with world:` joins the processes' group (gloo on CPUs, NCCL on GPUs) and leaves it again; a
    world of one does nothing.

    What is asked of all (`gathered`, `any`, `told`, `barrier`, `broadcast`) all have to ask, in the same order, within
    `with world:`. It raises MatryoshkaError where one of them has ended.
    """

    rank: int = 0
    """This process, from 0."""
    size: int = 1
    """How many there are."""
    local_rank: int = 0
    """This process among those of its machine: which GPU is its own."""
    _carriers: list[Any] = field(default_factory=list, compare=False, repr=False)
    """The group that tensors travel in: a thread may send them while another asks for something else."""

    @classmethod
    def current(cls) -> "World":
        """As torchrun says; without it a world of one."""
        rank, size, local = (
            int(os.environ.get(*named)) for named in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
        )
        return cls(rank, size, local)

    def __enter__(self) -> "World":
        if self.size > 1:
            import torch
            from torch import distributed

            distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
            self._carriers.append(distributed.new_group())
        return self

    def __exit__(self, *error: object) -> None:
        if self.size > 1:
            from torch import distributed

            self._carriers.clear()
            distributed.destroy_process_group()

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and prints what is of all."""
        return self.rank == 0

    def owner(self, number: int) -> int:
        """Whose part the `number`-th of many like ones is: taken in turns."""
        return number % self.size

    def barrier(self) -> None:
        """Wait until all have come here."""
        self.gathered(None)

    def gathered(self, value: T) -> list[T]:
        """What each process gives, plain JSON values, in the order of ranks; every one is told all."""
        if self.size == 1:
            return [value]
        import torch
        from torch import distributed

        said = torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8)
        lengths = torch.zeros(self.size, dtype=torch.int64)
        lengths[self.rank] = len(said)
        with self._together():
            distributed.all_reduce(lengths)
            heard = torch.zeros(self.size, int(lengths.max()), dtype=torch.uint8)
            heard[self.rank, : len(said)] = said
            distributed.all_reduce(heard)  # each row is one process', and zeros elsewhere
        return [json.loads(bytes(row[:length].tolist())) for row, length in zip(heard, lengths.tolist(), strict=True)]

    def any(self, yes: bool) -> bool:
        """Whether one of them says so."""
        return yes if self.size == 1 else any(self.gathered(yes))

    def told(self, value: T) -> T:
        """What the first process gives."""
        return self.gathered(value)[0]

    def broadcast(self, tensors: "Sequence[Tensor]", owner: int) -> None:
        """Fill these (contiguous) tensors everywhere with what they are in process `owner`."""
        if self.size > 1:
            import torch
            from torch import distributed

            with self._together():
                for tensor in tensors:
                    distributed.broadcast(tensor.view(torch.uint8), owner, group=self._carriers[0])

    @contextmanager
    def _together(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # all that torch says of a process that is gone
            raise MatryoshkaError(
                f"process {self.rank} of {self.size} waits for another one that has ended; its own last line says why"
            ) from error
