"""The processes that work on one job together: how many there are, and which of them this is.

torchrun starts them and says so in each one's environment, which nothing but `World.current` reads.
"""

import os
from dataclasses import dataclass

from torch import distributed


@dataclass(frozen=True)
class World:
    """Who works along. `with world:` joins the processes' group (gloo) and leaves it again; a world of one does
    nothing."""

    rank: int = 0
    """This process, from 0."""
    size: int = 1
    """How many there are."""
    local_rank: int = 0
    """This process among those of its machine: which GPU is its own."""

    @classmethod
    def current(cls) -> "World":
        """As torchrun says; without it a world of one."""
        names = (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
        return cls(*(int(os.environ.get(name, default)) for name, default in names))

    def __enter__(self) -> "World":
        if self.size > 1:
            distributed.init_process_group("gloo")
        return self

    def __exit__(self, *error: object) -> None:
        if self.size > 1:
            distributed.destroy_process_group()

    def barrier(self) -> None:
        """Wait until all have come here. Only within `with world:`."""
        if self.size > 1:
            distributed.barrier()
