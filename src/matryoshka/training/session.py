"""One session of training: from a configuration and its plans to what trains, and from that to saved coders."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from matryoshka.coder.coder import SparseCoder
from matryoshka.data.rowfilter import RowFilter
from matryoshka.data.stream import ActivationStream
from matryoshka.distributed import World
from matryoshka.lm.sites import Wiring
from matryoshka.training import checkpoint
from matryoshka.training.allocator import keep_freed_memory
from matryoshka.training.plan import Plan
from matryoshka.training.provenance import card
from matryoshka.training.recipe import Config
from matryoshka.training.spread import spread
from matryoshka.training.supply import Supply, supply
from matryoshka.training.trainee import Trainee

CALIBRATION_ROWS = 2048
"""Rows that fix a coder's scales and means, at least: enough that a mean is good to a few per cent of a deviation."""
Learned = tuple[SparseCoder, Wiring, RowFilter]
"""A coder as it stands, where it belongs, and which rows count for it."""
T = TypeVar("T")


@dataclass(frozen=True)
class Session:
    """The opened parts of a run: whatever can be refused is refused before there is one."""

    config: Config
    plans: Sequence[Plan]
    """Of all coders."""
    world: World
    supply: Supply
    stream: ActivationStream
    trainees: Sequence[Trainee]
    """Of this process."""
    state: dict[str, Any]
    """Step and best held-out FVU, from a checkpoint or the start's."""

    @classmethod
    def open(
        cls,
        config: Config,
        plans: Sequence[Plan],
        resumed: Path | None = None,
        world: World = World(),  # noqa: B008
    ) -> "Session":
        """Model, text, activations and this process' coders as they are at the start, or at the checkpoint `resumed`.

        Raises MatryoshkaError for what training cannot start from.
        """
        own = spread(plans, world.size)[world.rank]
        keep_freed_memory()
        opened = supply(config)
        stream = open_stream(config, opened, plans, world)
        trainees = new_trainees(config, own, opened.device)
        state: dict[str, Any] = {"step": 0, "best": {}}
        if resumed is not None:
            state = checkpoint.load(resumed, trainees, config.steps, world)
            stream.load_state_dict(state["stream"])
        else:
            calibrate(trainees, stream)
        return cls(config, plans, world, opened, stream, trainees, state)

    def of_all(self, own: Sequence[T]) -> list[T]:
        """The same of every coder, in the order of `plans`, given that of this process' coders; plain JSON values."""
        labelled = {trainee.plan.label: value for trainee, value in zip(self.trainees, own, strict=True)}
        parts = self.world.gathered(labelled)
        of_all = {label: value for part in parts for label, value in part.items()}
        return [of_all[plan.label] for plan in self.plans]

    def learned(self, trainee: Trainee) -> Learned:
        """What it has learned so far: what is measured."""
        wiring = trainee.plan.wiring
        return trainee.folded(), wiring, self.supply.keep(self.stream.chunks.keep, wiring)

    def save(self, trainee: Trainee, steps: int, folder: Path) -> None:
        """Save its coder, with the card of what it is after `steps` steps."""
        coder, _, keep = self.learned(trainee)
        coder.card = card(trainee, self.config, self.supply, keep, self.stream.counts, steps)
        coder.save(folder)


def open_stream(
    config: Config,
    supply: Supply,
    plans: Sequence[Plan],
    world: World = World(),  # noqa: B008
) -> ActivationStream:
    """Batches for all `plans`: the same in every process."""
    sites = list(dict.fromkeys(site for plan in plans for site in plan.wiring.sites))
    ahead = reads_ahead(supply.device)
    return ActivationStream(supply.chunks(sites, world), config.training.batch, config.training.seed, ahead)


def reads_ahead(device: torch.device) -> bool:
    """On a GPU the next chunk is made during training; on a CPU both would compete for the same cores."""
    return device.type == "cuda"


def new_trainees(config: Config, plans: Sequence[Plan], device: torch.device) -> list[Trainee]:
    """Initialised coders, not yet calibrated."""
    trainees = []
    for plan in plans:
        coder = SparseCoder(plan.coder).initialise(plan.section.seed, plan.tied)
        beside = len(plans) > 1
        trainees.append(Trainee(plan, coder.to(device), config.training, config.steps, beside=beside))
    return trainees


def calibrate(trainees: Sequence[Trainee], stream: ActivationStream) -> None:
    """Fix each coder's constants from the first activations of the stream."""
    first = stream.peek(max(CALIBRATION_ROWS, stream.batch))
    for trainee in trainees:
        trainee.calibrate(first)
