"""Windows of tokens → an endless, shuffled, resumable stream of activation batches.

    1. a seeded permutation of the training windows, a new one for each epoch
    2. chunks of windows through the language model, which stops after the last site read (`LiveChunks`)
       or from disk (`data.cache.CachedChunks`)
    3. rows to leave out are dropped: BOS and attention sinks
    4. the rows of a chunk, shuffled by a seeded permutation, in batches; a last part smaller than a batch is dropped

The state is four numbers (seed, epoch, chunk, batch): everything else follows from them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from matryoshka.data.rowfilter import RowCounts, RowFilter, refuse_not_finite
from matryoshka.data.tokens import Windows
from matryoshka.distributed import World
from matryoshka.errors import MatryoshkaError
from matryoshka.lm.model import LanguageModel
from matryoshka.lm.sites import Site, Wiring

PLACE = ("seed", "epoch", "index", "next_batch")
"""Where a stream stands."""


class Batch(NamedTuple):
    """The activations of the same tokens at each site, on the model's device."""

    activations: dict[Site, Float[Tensor, "batch d"]]
    positions: Int[Tensor, " batch"]
    """window · context + position of each row's token in the training split."""

    def of(self, wiring: Wiring) -> tuple[Float[Tensor, "batch d_in"], Float[Tensor, "batch d_out"]]:
        """(x, y) of a coder: what it reads, and what it is to write, several sites side by side."""
        return side_by_side(self.activations, wiring.reads), side_by_side(self.activations, wiring.writes)


def side_by_side(activations: Mapping[Site, Float[Tensor, "rows _"]], sites: Sequence[Site]) -> Float[Tensor, "rows d"]:
    """The activations at these sites as one; no copy of a single one's."""
    parts = [activations[site] for site in sites]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


class Chunk(NamedTuple):
    """Many tokens in their order, which of them count, and what became of the others."""

    activations: dict[Site, Float[Tensor, "read d"]]
    positions: Int[Tensor, " read"]
    rows: Int[Tensor, " rows"]
    """Places of the rows that count in `activations` and `positions`, ascending; on the CPU."""
    counts: RowCounts


Ordered = tuple[Chunk, Int[Tensor, " rows"]]
"""A chunk, and the order in which its rows are taken: places in it, on its device."""


@runtime_checkable
class Chunks(Protocol):
    """Where chunks come from: a live model, a disk cache, a test's own tensors."""

    keep: RowFilter
    """Which rows of them count."""

    @property
    def device(self) -> torch.device:
        """Where they are."""
        ...

    def __len__(self) -> int:
        """Chunks in an epoch."""
        ...

    def chunk(self, seed: int, epoch: int, index: int) -> Chunk:
        """The chunk at place `index` of the epoch; the same arguments give the same rows."""
        ...


def seeded(device: torch.device, *seeds: int) -> torch.Generator:
    """A generator that depends on nothing but `seeds`, and on the kind of device."""
    mixed = int(np.random.SeedSequence(seeds).generate_state(1, np.uint64)[0])
    return torch.Generator(device).manual_seed(mixed >> 1)


def permutation(n: int, *seeds: int) -> Int[Tensor, " n"]:
    """A permutation of range(n) that depends on nothing but `seeds`."""
    return torch.randperm(n, generator=seeded(torch.device("cpu"), *seeds))


class LiveChunks:
    """Chunks straight from a language model.

    `chunk_rows` bounds the tokens of a chunk, `lm_batch` the windows of one forward pass. In a `world` the processes
    take its passes in turns, and tell each other what they have read: each has the same chunk as if it were alone.
    """

    def __init__(
        self,
        lm: LanguageModel,
        windows: Windows,
        sites: Sequence[Site],
        chunk_rows: int,
        lm_batch: int = 16,
        world: World = World(),  # noqa: B008
    ) -> None:
        self.lm, self.windows, self.sites, self.lm_batch = lm, windows, tuple(dict.fromkeys(sites)), lm_batch
        self.world = world
        self.per_chunk = min(len(windows), max(1, chunk_rows // windows.context))
        self.keep = RowFilter.measure(lm, windows, self.sites)

    @property
    def device(self) -> torch.device:
        """The language model's."""
        return self.lm.device

    def __len__(self) -> int:
        return len(self.windows) // self.per_chunk

    def chunk(self, seed: int, epoch: int, index: int) -> Chunk:
        """The windows at places index · per_chunk … of the epoch's permutation, run through the model."""
        order = permutation(len(self.windows), seed, epoch)
        numbers = order[index * self.per_chunk : (index + 1) * self.per_chunk].sort().values
        device, context = self.device, self.windows.context
        tokens = on_device(torch.from_numpy(self.windows[numbers.numpy()]), device)
        # filled in place, and rows that do not count stay where they are: no second copy of the chunk ever exists, and
        # the host need not know their number before the last pass
        buffers = {
            site: torch.empty(*tokens.shape, self.lm.info.check(site), dtype=self.lm.dtype, device=device)
            for site in self.sites
        }
        sorts = torch.empty(2, *tokens.shape, dtype=torch.bool, device=device)
        passes = [slice(start, start + self.lm_batch) for start in range(0, len(numbers), self.lm_batch)]
        for part in (part for number, part in enumerate(passes) if self.world.owner(number) == self.world.rank):
            read = self.lm.read(tokens[part], self.sites)
            for sort, of_part in zip(sorts, self.keep.sort(tokens[part], read), strict=True):
                sort[part] = of_part
            for site in self.sites:
                buffers[site][part] = read[site]
        for number, part in enumerate(passes):
            self.world.broadcast([x[part] for x in (*sorts, *buffers.values())], self.world.owner(number))
        keep, not_finite = sorts.cpu().flatten(1)  # the one question to the device
        rows, bad = keep.nonzero().squeeze(1), int(not_finite.sum())
        counts = RowCounts(len(keep), len(keep) - len(rows) - bad, bad)
        refuse_not_finite(counts, self.sites, self.lm)
        positions = on_device((numbers[:, None] * context + torch.arange(context)).flatten(), device)
        return Chunk({site: buffer.flatten(0, 1) for site, buffer in buffers.items()}, positions, rows, counts)


def on_device(numbers: Int[Tensor, "*n"], device: torch.device) -> Int[Tensor, "*n"]:
    """The CPU's `numbers` there; the host does not wait for a GPU to have them."""
    return numbers.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else numbers.to(device)


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """One, kept: torch keeps memory by the stream that asked for it, so each new one would hold on to a chunk."""
    return torch.cuda.Stream(device)


def _aside(make: Callable[[], Ordered], device: torch.device, left: torch.cuda.Event | None) -> Ordered:
    """`make()` in a thread; on a GPU in a CUDA stream of its own, or it would queue behind training. Its caller need
    not wait for anything.

    `left`: training has queued the last reading of the chunk before; once it is there, that chunk's memory is free.
    """
    if left is None:
        return make()
    left.synchronize()
    aside = _stream(device)
    with torch.cuda.stream(aside):
        made = make()
        aside.synchronize()
    return made


def _lend(chunk: Chunk, order: Int[Tensor, " rows"]) -> None:
    """Have torch keep memory that the reading stream made until the training stream, too, is done with it: the next
    chunk, being made already, could otherwise be written over the last batch before the GPU has gathered it."""
    for tensor in (*chunk.activations.values(), chunk.positions, order):
        if tensor.device.type == "cuda":
            tensor.record_stream(torch.cuda.current_stream(tensor.device))


class ActivationStream(Iterator[Batch]):
    """Batches of `batch` rows from `chunks`, for ever: seeded, shuffled within each chunk, resumable.

    With `ahead`, the next chunk is made by a thread while the current one is consumed (on a GPU the two overlap; two
    chunks are then in memory). `counts` tells what step 3 dropped from the chunks begun so far.
    """

    def __init__(self, chunks: Chunks, batch: int, seed: int, ahead: bool = False) -> None:
        if len(chunks) == 0:
            raise MatryoshkaError("there are fewer training windows than one chunk of activations needs")
        self.chunks, self.batch, self.seed = chunks, batch, seed
        self.epoch = self.index = self.next_batch = 0
        self.counts = RowCounts()
        self._current: Ordered | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="activations") if ahead else None
        self._next: tuple[tuple[int, int], Callable[[], Ordered]] | None = None

    def __next__(self) -> Batch:
        if self._current is None:
            self._current = self._begin()
        chunk, order = self._current
        rows = order[self.next_batch * self.batch : (self.next_batch + 1) * self.batch]
        batch = Batch({site: x[rows] for site, x in chunk.activations.items()}, chunk.positions[rows])
        self.next_batch += 1
        if (self.next_batch + 1) * self.batch > len(order):
            self._current, self.next_batch = None, 0
            self.epoch, self.index = self._after(self.epoch, self.index)
        return batch

    def peek(self, rows: int) -> Batch:
        """The first rows of the current chunk in the order of training (at most `rows`), without moving on."""
        if self._current is None:
            self._current = self._begin()
        chunk, order = self._current
        return Batch({site: x[order[:rows]] for site, x in chunk.activations.items()}, chunk.positions[order[:rows]])

    def state_dict(self) -> dict[str, int]:
        """Where the stream stands: plain numbers."""
        return {name: getattr(self, name) for name in PLACE} | self.counts._asdict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where `state_dict` was taken; the current chunk is made anew when the next batch is asked for."""
        for name in PLACE:
            setattr(self, name, int(state[name]))
        self.counts = RowCounts(*(int(state[name]) for name in RowCounts._fields))
        self._current = self._next = None

    def close(self) -> None:
        """Stop the thread that reads ahead."""
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)

    def _after(self, epoch: int, index: int) -> tuple[int, int]:
        return (epoch, index + 1) if index + 1 < len(self.chunks) else (epoch + 1, 0)

    def _make(self, epoch: int, index: int) -> Ordered:
        chunk = self.chunks.chunk(self.seed, epoch, index)
        if len(chunk.rows) < self.batch:
            raise MatryoshkaError(
                f"a chunk of activations has {len(chunk.rows)} rows, fewer than training.batch = {self.batch}"
                " (bring more text, or lower training.batch)"
            )
        order = chunk.rows[permutation(len(chunk.rows), self.seed, epoch, index, 1)]
        return chunk, on_device(order, self.chunks.device)

    def _start(self, epoch: int, index: int) -> Callable[[], Ordered]:
        """What gives the chunk there: it is being made already if reading ahead."""
        make, device = partial(self._make, epoch, index), self.chunks.device
        if self._thread is None:
            return make
        left = None
        if device.type == "cuda":
            left = torch.cuda.Event()
            left.record(torch.cuda.current_stream(device))
        return self._thread.submit(_aside, make, device, left).result

    def _begin(self) -> Ordered:
        """The chunk at the current place; the one after it is started if reading ahead."""
        place = (self.epoch, self.index)
        made = (self._next[1] if self._next and self._next[0] == place else self._start(*place))()
        if self._thread is not None:
            _lend(*made)
            after = self._after(*place)
            self._next = (after, self._start(*after))
        if self.next_batch == 0:  # a resumed chunk was counted when it was begun
            self.counts = self.counts.plus(made[0].counts)
        return made
