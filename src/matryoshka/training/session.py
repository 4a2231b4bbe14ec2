"""One session of training: from a configuration and its plans to what trains, and from that to saved coders."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from matryoshka.coder.coder import SparseCoder
from matryoshka.data import cache
from matryoshka.data.rowfilter import RowFilter
from matryoshka.data.stream import ActivationStream, LiveChunks
from matryoshka.data.tokens import Tokens, tokenise
from matryoshka.errors import MatryoshkaError
from matryoshka.lm.model import LanguageModel, load
from matryoshka.lm.sites import Wiring
from matryoshka.progress import progress_bar
from matryoshka.training import checkpoint
from matryoshka.training.allocator import keep_freed_memory
from matryoshka.training.plan import Plan, chunk_rows
from matryoshka.training.provenance import card
from matryoshka.training.recipe import Config
from matryoshka.training.trainee import Trainee

CALIBRATION_ROWS = 2048
"""Rows that fix a coder's scales and means, at least: enough that a mean is good to a few per cent of a deviation."""
Learned = tuple[SparseCoder, Wiring, RowFilter]
"""A coder as it stands, where it belongs, and which rows count for it."""


@dataclass(frozen=True)
class Session:
    """The opened parts of a run: whatever can be refused is refused before there is one."""

    config: Config
    lm: LanguageModel
    tokens: Tokens
    stream: ActivationStream
    trainees: Sequence[Trainee]
    state: dict[str, Any]
    """Step and best held-out FVU, from a checkpoint or the start's."""

    @classmethod
    def open(cls, config: Config, plans: Sequence[Plan], resumed: Path | None = None) -> "Session":
        """Model, text, activations and coders as they are at the start, or at the checkpoint `resumed`.

        Raises MatryoshkaError for what training cannot start from.
        """
        keep_freed_memory()
        model = config.model
        lm = load(model.name, model.revision, model.dtype, model.device)
        tokens = tokenise(config.text, *lm.vocabulary)
        tokens.windows("held_out")  # refused now if there are none
        stream = open_stream(config, lm, tokens, plans)
        trainees = new_trainees(config, plans, lm.device)
        state: dict[str, Any] = {"step": 0, "best": {}}
        if resumed is not None:
            state = checkpoint.load(resumed, trainees, config.steps)
            stream.load_state_dict(state["stream"])
        else:
            calibrate(trainees, stream)
        return cls(config, lm, tokens, stream, trainees, state)

    def learned(self, trainee: Trainee) -> Learned:
        """What it has learned so far: what is measured."""
        wiring = trainee.plan.wiring
        return trainee.folded(), wiring, self.stream.chunks.keep.only(wiring.sites)

    def save(self, trainee: Trainee, steps: int, folder: Path) -> None:
        """Save its coder, with the card of what it is after `steps` steps."""
        coder, _, keep = self.learned(trainee)
        coder.card = card(trainee, self.config, self.lm, self.tokens, keep, self.stream.counts, steps)
        coder.save(folder)


def open_stream(config: Config, lm: LanguageModel, tokens: Tokens, plans: Sequence[Plan]) -> ActivationStream:
    """Batches for all `plans`: from the live model, or from the cache, which is written first if it is not there."""
    sites = list(dict.fromkeys(site for plan in plans for site in plan.wiring.sites))
    live = LiveChunks(lm, tokens.windows("train"), sites, chunk_rows(config), config.activations.lm_batch)
    folder = config.activations.cache
    chunks = live if folder is None else _cached(config, folder, live, tokens)
    return ActivationStream(chunks, config.training.batch, config.training.seed, ahead=reads_ahead(lm.device))


def reads_ahead(device: torch.device) -> bool:
    """On a GPU the next chunk is made during training; on a CPU both would compete for the same cores."""
    return device.type == "cuda"


def _cached(config: Config, folder: Path, live: LiveChunks, tokens: Tokens) -> cache.CachedChunks:
    info, seed = live.lm.info, config.training.seed
    identity = {
        "model": info.name,
        "revision": info.revision,
        "dtype": live.lm.precision,
        "tokens": tokens.hash,
        "context": tokens.context,
    }
    usable = live.per_chunk * (live.windows.context - 1) // config.training.batch * config.training.batch
    count = min(len(live), -(-config.steps * config.training.batch // usable) + 1)
    if not (folder / "index.json").is_file():
        with progress_bar(f"caching activations in {folder}") as update:
            cache.write(live, folder, seed, count, identity, lambda done: update(done, count))
    cached = cache.CachedChunks(folder, identity, list(live.sites), live.lm.device)
    if cached.tokens < (needed := count * live.per_chunk * tokens.context):
        raise MatryoshkaError(
            f"{folder}: holds the activations of {cached.tokens:,} tokens, this run reads {needed:,}: give another"
            " activations.cache, or delete it to have it written anew"
        )
    return cached


def new_trainees(config: Config, plans: Sequence[Plan], device: torch.device) -> list[Trainee]:
    """Initialised coders, not yet calibrated."""
    trainees = []
    for plan in plans:
        tied = plan.wiring.reads == plan.wiring.writes
        coder = SparseCoder(plan.coder).initialise(plan.section.seed, tied)
        trainees.append(Trainee(plan, coder.to(device), config.training, config.steps))
    return trainees


def calibrate(trainees: Sequence[Trainee], stream: ActivationStream) -> None:
    """Fix each coder's constants from the first activations of the stream."""
    first = stream.peek(max(CALIBRATION_ROWS, stream.batch))
    for trainee in trainees:
        trainee.calibrate(first)
