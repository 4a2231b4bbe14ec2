"""How a recording is made: the one pass of the language model that fills it.

1. each window is read once, for all coders; what is kept is the active entries alone. Memory does not grow with
   the tokens
2. progress is committed twice a minute: a killed pass goes on from there
3. several processes record a share of the windows each, and the first one joins them
4. what is there already is taken as it is where it holds what is asked for: the same model, text and windows, and
   these coders and columns. What is of something else, damaged or half is made anew
"""

import hashlib
import json
import logging
import shutil
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from matryoshka.coder.latents import Latents
from matryoshka.data.rowfilter import refuse_not_finite
from matryoshka.data.tokens import Windows
from matryoshka.distributed import World
from matryoshka.errors import MatryoshkaError
from matryoshka.files import sync, write_text
from matryoshka.lm.model import LanguageModel
from matryoshka.lm.sites import Site
from matryoshka.progress import Progress, silent
from matryoshka.study.hooked import HookedCoder
from matryoshka.study.reader import Rows, batches, read, read_batch
from matryoshka.study.recording import HEAD, LEFT_OUT, NOT_FINITE, Head, Recording, read_head

logger = logging.getLogger("matryoshka")
COMMIT_SECONDS = 30.0
UNKNOWN_K = 256
"""Active latents a row of a coder of which nobody knows."""


class ExtraColumn(NamedTuple):
    """Numbers that a later analysis wants of every place, beside the latents; kept in half precision."""

    name: str
    """Of its file; what is computed in another way has another name."""
    width: int
    of: Callable[[Rows], Float[Tensor, "batch position width"]]
    sites: tuple[Site, ...] = ()
    """That it needs beside those of the coders."""


class CoderRows(NamedTuple):
    """What a coder makes of some windows."""

    kept: Bool[np.ndarray, "n context"]
    not_finite: Bool[np.ndarray, "n context"]
    latents: Latents
    """Of the kept positions, in their order."""

    def arrays(self) -> dict[str, np.ndarray]:
        """As they are recorded: `counts` of active entries at each place, then their `indices` and `values`."""
        latents, active = self.latents, (self.latents.values > 0).cpu()
        row, indices, values = (x.cpu()[active] for x in (latents.rows, latents.indices, latents.values))
        counts = np.full(self.kept.size, LEFT_OUT, np.int64)
        counts[self.not_finite.reshape(-1)] = NOT_FINITE
        counts[self.kept.reshape(-1)] = torch.bincount(row, minlength=latents.pattern.batch).numpy()
        return {"counts": counts, "indices": indices.numpy(), "values": values.float().numpy()}


class Recorder:
    """Appends windows to a recording; goes on where a killed one has stopped, if it was of the same things."""

    def __init__(self, folder: Path, asked: Head, commit_seconds: float = COMMIT_SECONDS) -> None:
        self.folder, self.commit_seconds = folder, commit_seconds
        before = read_head(folder)
        goes_on = before is not None and before.begins(asked) and _unchanged(folder, before)
        self.head = before if before is not None and goes_on else asked
        self._checksums = dict.fromkeys(self.head.sizes(), 0) | self.head.checksums
        if self.head is asked:
            if (folder / HEAD).exists():
                logger.warning("%s: what was recorded is damaged, or of something else: recording anew", folder)
            shutil.rmtree(folder, ignore_errors=True)
            for key in ("", *asked.coders):
                (folder / key).mkdir(parents=True)
            for name in asked.sizes():
                (folder / name).touch()
            write_text(folder / HEAD, asked.model_dump_json())
        self.windows, self._entries = self.head.windows, dict.fromkeys(asked.coders, 0) | self.head.entries
        self._files = {name: (folder / name).open("ab") for name in self.head.sizes()}
        for name, size in self.head.sizes().items():
            self._files[name].truncate(size)  # what was not committed
        self._numbers = {name: numbers for name, (numbers, _) in self.head.files().items()}
        self._committed = time.monotonic()

    def append(
        self,
        tokens: Int[np.ndarray, "n context"],
        documents: Int[np.ndarray, "n context"],
        coders: Mapping[str, CoderRows],
        columns: Mapping[str, Float[np.ndarray, "n context width"]] | None = None,
    ) -> None:
        """Add windows: what each coder makes of them, by its key, and the columns, by name."""
        written = {"tokens": tokens, "documents": documents, **(columns or {})}
        for key, rows in coders.items():
            written |= {f"{key}/{name}": numbers for name, numbers in rows.arrays().items()}
            self._entries[key] += len(written[f"{key}/values"])
        for name, numbers in written.items():
            content = numbers.astype(self._numbers[name]).tobytes()
            self._files[f"{name}.bin"].write(content)
            self._checksums[f"{name}.bin"] = zlib.crc32(content, self._checksums[f"{name}.bin"])
        self.windows += len(tokens)
        if time.monotonic() - self._committed > self.commit_seconds:
            self.commit()

    def commit(self) -> None:
        """From now on a killed pass goes on here."""
        for name, file in self._files.items():
            file.flush()
            sync(self.folder / name)
        checksums = {} if self.windows == self.head.total else dict(self._checksums)
        done = {"windows": self.windows, "entries": dict(self._entries), "checksums": checksums}
        head = self.head.model_copy(update=done)
        write_text(self.folder / HEAD, head.model_dump_json())
        self._committed = time.monotonic()

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()


class _Job(NamedTuple):
    """What is recorded of which windows."""

    lm: LanguageModel
    windows: Windows
    numbers: Int[np.ndarray, " windows"]
    coders: Sequence[HookedCoder]
    columns: Sequence[ExtraColumn]

    @property
    def batch(self) -> int:
        """Windows at once."""
        return read_batch(self.lm.device, self.windows.context)

    def head(self) -> Head:
        """Of the recording that is asked for."""
        of = {
            "model": [self.lm.info.name, self.lm.info.revision, str(self.lm.dtype)],
            "text": self.windows.tokens.hash,
            "split": self.windows.split,
            "windows": hashlib.sha256(json.dumps(self.numbers.tolist()).encode()).hexdigest(),
        }
        return _head(of, self.windows.context, len(self.numbers), self.coders, self.columns)

    def fill(self, recorder: Recorder, progress: Progress) -> None:
        """Read and record the windows that are not in it yet."""
        texts = batches(self.windows, self.numbers[recorder.windows :], self.batch)
        for rows in read(self.lm, texts, self.coders, [site for column in self.columns for site in column.sites]):
            made = {
                hooked.key: CoderRows(
                    rows.kept(hooked).cpu().numpy(), rows.not_finite(hooked).cpu().numpy(), rows.latents(hooked)
                )
                for hooked in self.coders
            }
            columns = {column.name: column.of(rows).cpu().numpy() for column in self.columns}
            recorder.append(rows.text.tokens, rows.text.documents, made, columns)
            progress(recorder.windows, len(self.numbers))
        recorder.commit()


def _unchanged(folder: Path, head: Head) -> bool:
    """Whether what is committed of a recording that is not whole is what was written."""
    return all(_crc(folder / name, head.sizes()[name]) == checksum for name, checksum in head.checksums.items())


def _crc(file: Path, size: int) -> int:
    """CRC-32 of the first `size` bytes."""
    checksum, left = 0, size
    with file.open("rb") as opened:
        while left and (part := opened.read(min(left, 1 << 22))):
            checksum, left = zlib.crc32(part, checksum), left - len(part)
    return checksum


def bytes_needed(coders: Sequence[HookedCoder], tokens: int, columns: Sequence[ExtraColumn] = ()) -> int:
    """What a recording of so many tokens takes on the disk, at most."""
    entries = {hooked.key: 3 * tokens * (hooked.coder.config.k or UNKNOWN_K) // 2 for hooked in coders}
    whole = _head({}, 1, tokens, coders, columns).model_copy(update={"windows": tokens, "entries": entries})
    return sum(whole.sizes().values())


def _head(
    of: dict[str, Any], context: int, windows: int, coders: Sequence[HookedCoder], columns: Sequence[ExtraColumn]
) -> Head:
    sizes = {hooked.key: hooked.coder.config.d_sae for hooked in coders}
    widths = {column.name: column.width for column in columns}
    return Head(of=of, context=context, total=windows, coders=sizes, columns=widths)


def record(
    lm: LanguageModel,
    windows: Windows,
    numbers: Int[np.ndarray, " windows"],
    coders: Sequence[HookedCoder],
    folder: Path,
    columns: Sequence[ExtraColumn] = (),
    world: World = World(),  # noqa: B008
    progress: Progress = silent,
    commit_seconds: float = COMMIT_SECONDS,
) -> None:
    """See to it that `folder` holds a recording of these windows by these coders, with these columns: nothing is read
    where it does already. In a `world` each process reads its share, and the first one joins them.

    `progress` counts the windows of this process. A killed pass loses what it read in the last `commit_seconds`. Raises
    MatryoshkaError where the disk has no room, and where more than a few rows are NaN or Inf.
    """
    job = _Job(lm, windows, numbers, coders, columns)
    whole, share = job.head(), job._replace(numbers=_shares(numbers, job.batch, world.size)[world.rank])
    folders = [folder.with_name(f".{folder.name}-{rank}-of-{world.size}") for rank in range(world.size)]
    own = folder if world.size == 1 else folders[world.rank]
    present = read_head(folder)
    if present is None or not present.holds(whole):
        _check_room(own, bytes_needed(coders, len(share.numbers) * windows.context, columns))
        try:
            with closing(Recorder(own, share.head(), commit_seconds)) as recorder:
                share.fill(recorder, progress)
            world.barrier()
            if world.size > 1 and world.rank == 0:
                _join(folder, folders, whole)
        except OSError as error:
            raise MatryoshkaError(f"{folder}: the latents cannot be written: {error.strerror or error}") from error
    if world.rank == 0:
        for leftover in folder.parent.glob(f".{folder.name}-*-of-*"):  # of killed passes in other numbers of processes
            shutil.rmtree(leftover)
        recording = Recording(folder)
        for hooked in coders:
            refuse_not_finite(recording.of(hooked).row_counts, hooked.wiring.sites, lm)


def _shares(numbers: Int[np.ndarray, " windows"], batch: int, of: int) -> list[Int[np.ndarray, " _"]]:
    """The windows in as many parts, of whole batches, in the same order."""
    count = -(-len(numbers) // batch)
    ends = [part * count // of * batch for part in range(1, of)]
    return np.split(numbers, np.minimum(ends, len(numbers)))


def _check_room(folder: Path, needed: int) -> None:
    """What is there already will be gone on with, or is replaced."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(folder.parent).free) < needed and not folder.exists():
        raise MatryoshkaError(
            f"{folder.parent}: has {free / 1e9:.1f} GB free, the latents of these tokens may take"
            f" {needed / 1e9:.1f} GB; give fewer --tokens"
        )


def _join(folder: Path, shares: Sequence[Path], whole: Head) -> None:
    """Make one recording of the shares, in this order, and delete them."""
    heads = [head for share in shares if (head := read_head(share)) is not None]
    shutil.rmtree(folder, ignore_errors=True)
    shares[0].rename(folder)
    for name in whole.sizes():
        with (folder / name).open("ab") as target:
            for share in shares[1:]:
                with (share / name).open("rb") as source:
                    shutil.copyfileobj(source, target, 1 << 22)
        sync(folder / name)
    entries = {key: sum(head.entries[key] for head in heads) for key in whole.coders}
    head = whole.model_copy(update={"windows": whole.total, "entries": entries})
    write_text(folder / HEAD, head.model_dump_json())
    for share in shares[1:]:
        shutil.rmtree(share)
