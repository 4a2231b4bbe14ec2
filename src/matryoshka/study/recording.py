"""The sparse latents of one or several coders on the same tokens, on disk, in the order of the tokens.

A *place* is window · context + position, counted over the recording's windows. Each coder has its own rows, those
places that count by its filter; all share tokens, documents and columns (arrays of half-precision numbers a place).
study/recorder.py makes them.

    FOLDER/  recording.json  tokens.bin  documents.bin  COLUMN.bin …  CODER/  counts.bin  indices.bin  values.bin
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float16, Int
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from matryoshka.data.rowfilter import RowCounts
from matryoshka.errors import MatryoshkaError
from matryoshka.files import write_text
from matryoshka.study.hooked import HookedCoder

LEFT_OUT, NOT_FINITE = -1, -2
"""In `counts`: a position that is no row (BOS, a window's first token, a sink), and one with a NaN or Inf."""
HEAD = "recording.json"


class Head(BaseModel):
    """recording.json: what a recording is of, and how far it is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    of: dict[str, Any]
    """Model, text and windows."""
    context: int
    total: int
    """Windows, when it is whole."""
    coders: dict[str, int]
    """d_sae of each, by `HookedCoder.key`."""
    columns: dict[str, int]
    """Width of each, by name."""
    windows: int = 0
    """That are committed."""
    entries: dict[str, int] = {}
    """Of each coder in these windows."""
    checksums: dict[str, int] = {}
    """CRC-32 of what is committed of each file, while it is not whole."""
    numbers: dict[str, float] = {}
    """That were measured on the same text along with it."""

    def begins(self, asked: "Head") -> bool:
        """Whether what is asked for is what this is, or will be."""
        return self.model_copy(update={"windows": 0, "entries": {}, "checksums": {}}) == asked

    def holds(self, asked: "Head") -> bool:
        """Whether it is whole, and all that is asked for is in it."""
        same = (self.of, self.context, self.total, self.windows) == (asked.of, asked.context, asked.total, self.total)
        return same and self.coders.items() >= asked.coders.items() and self.columns.items() >= asked.columns.items()

    def files(self) -> dict[str, tuple[np.dtype, int]]:
        """Each file, without its ending: its numbers, and how many of them are committed."""
        places = self.windows * self.context
        files = {"tokens": ("<u4", places), "documents": ("<i4", places)}
        files |= {name: ("<f2", places * width) for name, width in self.columns.items()}
        for key, d_sae in self.coders.items():
            index, entries = "<u2" if d_sae <= 1 << 16 else "<u4", self.entries.get(key, 0)
            files |= {f"{key}/counts": ("<i4", places), f"{key}/indices": (index, entries)}
            files[f"{key}/values"] = "<f4", entries
        return {name: (np.dtype(numbers), n) for name, (numbers, n) in files.items()}

    def sizes(self) -> dict[str, int]:
        """The bytes of each file that are committed."""
        return {f"{name}.bin": numbers.itemsize * n for name, (numbers, n) in self.files().items()}


class Recording:
    """A whole recording, memory-mapped."""

    def __init__(self, folder: Path) -> None:
        """Raises MatryoshkaError where none lies there, or it is damaged or half."""
        head = read_head(folder)
        if head is None or head.windows != head.total:
            raise MatryoshkaError(f"{folder}: no whole recording; it is made by: matryoshka features RUN")
        self.folder, self.head, self.context = folder, head, head.context
        self.tokens, self.documents = self.mapped("tokens"), self.mapped("documents")

    def of(self, hooked: HookedCoder) -> "RecordedCoder":
        """What it holds of a coder. Raises MatryoshkaError where that is nothing."""
        if hooked.key not in self.head.coders:
            raise MatryoshkaError(f"{self.folder}: holds nothing of a coder {hooked.wiring}; record it again")
        return RecordedCoder(self, hooked.key)

    def number(self, name: str, measure: Callable[[], float]) -> float:
        """A number of the same model and text: measured when it is asked for first, and kept."""
        if name not in self.head.numbers:
            self.head = self.head.model_copy(update={"numbers": self.head.numbers | {name: measure()}})
            write_text(self.folder / HEAD, self.head.model_dump_json())
        return self.head.numbers[name]

    def column(self, name: str) -> Float16[np.ndarray, "places width"]:
        """The numbers of an ExtraColumn."""
        return self.mapped(name).reshape(-1, self.head.columns[name])

    def mapped(self, name: str) -> np.ndarray:
        """The numbers of one of the head's files."""
        numbers, n = self.head.files()[name]
        # "c": torch takes no read-only arrays without a warning
        return np.asarray(np.memmap(self.folder / f"{name}.bin", numbers, mode="c")) if n else np.empty(0, numbers)


class RecordedCoder:
    """One coder's latents in a recording."""

    def __init__(self, recording: Recording, key: str) -> None:
        self.context, self.tokens, self.documents = recording.context, recording.tokens, recording.documents
        self.d_sae = recording.head.coders[key]
        self.counts, self.indices, self.values = (
            recording.mapped(f"{key}/{name}") for name in ("counts", "indices", "values")
        )
        self.kept = self.counts >= 0
        self.offsets = np.concatenate([[0], np.cumsum(np.maximum(self.counts, 0), dtype=np.int64)])
        """The entries of place p are `offsets[p]:offsets[p + 1]`."""
        self.rows = int(self.kept.sum())
        """Positions that count."""
        self._signed = torch.from_numpy(self.indices.view(f"<i{self.indices.itemsize}"))  # as torch selects from

    @property
    def row_counts(self) -> RowCounts:
        """How many positions were read, and what became of them."""
        not_finite = int((self.counts == NOT_FINITE).sum())
        return RowCounts(len(self.counts), len(self.counts) - self.rows - not_finite, not_finite)

    def features_of(self, entries: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
        """The features of these entries, int32."""
        features = self._signed.index_select(0, entries).int()
        return features & 0xFFFF if self._signed.dtype == torch.int16 else features


def read_head(folder: Path) -> Head | None:
    """What the recording in `folder` is of; None where none lies there, or one that is damaged. Files may be longer
    than what is committed while it is written, and only then."""
    try:
        head = Head.model_validate_json((folder / HEAD).read_bytes())
        for name, size in head.sizes().items():
            on_disk = (folder / name).stat().st_size
            if on_disk < size or (head.windows == head.total and on_disk > size):
                return None
    except (OSError, ValidationError):
        return None
    return head
