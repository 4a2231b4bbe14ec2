"""Windows of tokens → an endless, shuffled, resumable stream of activation batches.

    1. a seeded permutation of the training windows, a new one for each epoch
    2. chunks of windows through the language model, which stops after the last site read (`LiveChunks`)
       or from disk (`data.cache.CachedChunks`)
    3. rows to leave out are dropped: BOS and attention sinks
    4. the rows of a chunk, shuffled by a seeded permutation, in batches; a last part smaller than a batch is dropped

The state is four numbers (seed, epoch, chunk, batch): everything else follows from them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from matryoshka.data.rowfilter import RowCounts, RowFilter, refuse_not_finite
from matryoshka.data.tokens import Windows
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
    """Many rows in the order of their tokens, and how many tokens were read for it and left out."""

    activations: dict[Site, Float[Tensor, "rows d"]]
    positions: Int[Tensor, " rows"]
    counts: RowCounts


Ordered = tuple[Chunk, Int[Tensor, " rows"]]
"""A chunk, and the order in which its rows are taken."""


@runtime_checkable
class Chunks(Protocol):
    """Where chunks come from: a live model, a disk cache, a test's own tensors."""

    keep: RowFilter
    """Which rows are in them."""

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

    `chunk_rows` bounds the tokens of a chunk, `lm_batch` the windows of one forward pass.
    """

    def __init__(
        self, lm: LanguageModel, windows: Windows, sites: Sequence[Site], chunk_rows: int, lm_batch: int = 16
    ) -> None:
        self.lm, self.windows, self.sites, self.lm_batch = lm, windows, tuple(dict.fromkeys(sites)), lm_batch
        self.per_chunk = min(len(windows), max(1, chunk_rows // windows.context))
        self.keep = RowFilter.measure(lm, windows, self.sites)

    def __len__(self) -> int:
        return len(self.windows) // self.per_chunk

    def chunk(self, seed: int, epoch: int, index: int) -> Chunk:
        """The windows at places index · per_chunk … of the epoch's permutation, run through the model."""
        order = permutation(len(self.windows), seed, epoch)
        numbers = order[index * self.per_chunk : (index + 1) * self.per_chunk].sort().values
        size, n, not_finite = len(numbers) * self.windows.context, 0, 0
        # filled in place: no second copy of the chunk ever exists
        like = {"dtype": self.lm.dtype, "device": self.lm.device}
        rows = {site: torch.empty(size, self.lm.info.check(site), **like) for site in self.sites}
        positions = torch.empty(size, dtype=torch.int64, device=self.lm.device)
        for part in numbers.split(self.lm_batch):
            tokens = torch.from_numpy(self.windows[part.numpy()]).to(self.lm.device)
            read = self.lm.read(tokens, self.sites)
            keep, bad = self.keep.sort(tokens, read)
            end, not_finite = n + int(keep.sum()), not_finite + int(bad.sum())
            for site in self.sites:
                rows[site][n:end] = read[site][keep]
            place = part[:, None] * self.windows.context + torch.arange(self.windows.context)
            positions[n:end] = place.to(keep.device)[keep]
            n = end
        counts = RowCounts(size, size - n - not_finite, not_finite)
        refuse_not_finite(counts, self.sites, self.lm)
        return Chunk({site: buffer[:n] for site, buffer in rows.items()}, positions[:n], counts)


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """One, kept: torch keeps memory by the stream that asked for it, so each new one would hold on to a chunk."""
    return torch.cuda.Stream(device)


def _aside(device: torch.device, make: Callable[[int, int], Ordered], epoch: int, index: int) -> Ordered:
    """`make(epoch, index)` in a thread; on a GPU in a CUDA stream of its own, or it would queue behind training.

    The stream first waits for what training has queued, which may still read the memory of the chunk before the last.
    """
    if device.type != "cuda":
        return make(epoch, index)
    aside = _stream(device)
    aside.wait_stream(torch.cuda.default_stream(device))
    with torch.cuda.stream(aside):
        made = make(epoch, index)
        aside.synchronize()
    return made


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
        self._next: tuple[tuple[int, int], Future[Ordered]] | None = None

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
        if len(chunk.positions) < self.batch:
            raise MatryoshkaError(
                f"a chunk of activations has {len(chunk.positions)} rows, fewer than training.batch = {self.batch}"
                " (bring more text, or lower training.batch)"
            )
        order = permutation(len(chunk.positions), self.seed, epoch, index, 1)
        return chunk, order.to(chunk.positions.device)

    def _begin(self) -> Ordered:
        """The chunk at the current place; the one after it is started if reading ahead."""
        place = (self.epoch, self.index)
        made = self._next[1].result() if self._next and self._next[0] == place else self._make(*place)
        if self._thread is not None:
            after = self._after(*place)
            self._next = (after, self._thread.submit(_aside, made[0].positions.device, self._make, *after))
        if self.next_batch == 0:  # a resumed chunk was counted when it was begun
            self.counts = self.counts.plus(made[0].counts)
        return made
