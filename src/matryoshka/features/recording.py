"""The sparse latents of a coder on many windows, on disk, in the order of the tokens.

One streaming pass writes it: the language model and the coder see each window once, and what is kept is the active
entries alone. Memory does not grow with the tokens; the disk holds some 6 bytes an entry and 12 a token until the
features are made of it. Progress is committed twice a minute: a killed pass goes on from there. The recordings
of several processes, each of a share of the windows, are joined by appending one to the other.

    FOLDER/  identity.json  progress.json  tokens.bin  documents.bin  counts.bin  indices.bin  values.bin
"""

import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from matryoshka.coder.latents import Latents
from matryoshka.data.activations import RowFilter
from matryoshka.data.tokens import Windows
from matryoshka.errors import MatryoshkaError
from matryoshka.evaluation.placed import READ_BATCH, Placed
from matryoshka.files import sync, write_text
from matryoshka.lm.model import LanguageModel
from matryoshka.progress import Progress, silent

LEFT_OUT = -1
"""In `counts`: a position that is no row (BOS, a window's first token, a sink)."""
COMMIT_SECONDS = 30.0
INDEX_TYPES = {True: np.dtype("<u2"), False: np.dtype("<u4")}
"""By whether the dictionary has at most 65,536 latents."""


class Recording:
    """A finished recording, memory-mapped. A *place* is window · context + position, counted over its windows."""

    def __init__(self, folder: Path, context: int, d_sae: int) -> None:
        self.folder, self.context, self.d_sae = folder, context, d_sae
        self.tokens, self.documents, self.counts, self.indices, self.values = (
            _mapped(folder / f"{name}.bin", dtype) for name, dtype in file_types(d_sae).items()
        )
        self.kept = self.counts != LEFT_OUT
        self.offsets = np.concatenate([[0], np.cumsum(np.maximum(self.counts, 0), dtype=np.int64)])
        """The entries of place p are `offsets[p]:offsets[p + 1]`."""
        self.rows = int(self.kept.sum())
        """Positions that count."""
        self._signed = torch.from_numpy(self.indices.view(f"<i{self.indices.itemsize}"))  # as torch selects from

    def features_of(self, entries: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
        """The features of these entries, int32."""
        found = self._signed.index_select(0, entries).int()
        return found & 0xFFFF if self._signed.dtype == torch.int16 else found


def _mapped(file: Path, dtype: np.dtype) -> np.ndarray:
    # "c": torch takes no read-only arrays without a warning
    return np.asarray(np.memmap(file, dtype, mode="c")) if file.stat().st_size else np.empty(0, dtype)


def file_types(d_sae: int) -> dict[str, np.dtype]:
    """The files of a recording and their numbers; the first three hold one for each place, the others for each
    entry."""
    return {
        "tokens": np.dtype("<u4"),
        "documents": np.dtype("<i4"),
        "counts": np.dtype("<i4"),
        "indices": INDEX_TYPES[d_sae <= 1 << 16],
        "values": np.dtype("<f4"),
    }


def bytes_needed(tokens: int, l0: float, d_sae: int) -> int:
    """What a recording of so many tokens takes on the disk."""
    sizes = [dtype.itemsize for dtype in file_types(d_sae).values()]
    return int(tokens * (sum(sizes[:3]) + l0 * sum(sizes[3:])))


class Writer:
    """Appends windows to a recording; goes on where a killed one has stopped, if it was of the same things."""

    def __init__(self, folder: Path, identity: Mapping[str, Any], context: int, d_sae: int) -> None:
        self.folder, self.context, self._types = folder, context, file_types(d_sae)
        self.windows = self.entries = 0
        said = json.dumps(identity, sort_keys=True)
        if (folder / "identity.json").is_file() and (folder / "identity.json").read_text(encoding="utf-8") == said:
            done = json.loads((folder / "progress.json").read_text(encoding="utf-8"))
            self.windows, self.entries = done["windows"], done["entries"]
        else:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            write_text(folder / "progress.json", json.dumps({"windows": 0, "entries": 0}))
            write_text(folder / "identity.json", said)
        self._files = {name: (folder / f"{name}.bin").open("ab") for name in self._types}
        for name, file in self._files.items():
            file.truncate(self._numbers(name) * self._types[name].itemsize)
        self._committed = time.monotonic()

    def _numbers(self, name: str) -> int:
        return self.entries if name in ("indices", "values") else self.windows * self.context

    def append(
        self,
        tokens: Int[np.ndarray, "n context"],
        documents: Int[np.ndarray, "n context"],
        kept: Bool[np.ndarray, "n context"],
        latents: Latents,
    ) -> None:
        """Add windows; `latents` are those of the kept positions, in their order."""
        active = (latents.values > 0).cpu()
        rows, indices, values = (x.cpu()[active] for x in (latents.rows, latents.indices, latents.values))
        counts = np.full(tokens.size, LEFT_OUT, np.int64)
        counts[kept.reshape(-1)] = torch.bincount(rows, minlength=latents.pattern.batch).numpy()
        found = (tokens, documents, counts, indices.numpy(), values.float().numpy())
        for (name, dtype), numbers in zip(self._types.items(), found, strict=True):
            self._files[name].write(numbers.astype(dtype).tobytes())
        self.windows += len(tokens)
        self.entries += len(values)
        if time.monotonic() - self._committed > COMMIT_SECONDS:
            self.commit()

    def commit(self) -> None:
        """From now on a killed pass goes on here."""
        for name, file in self._files.items():
            file.flush()
            sync(self.folder / f"{name}.bin")
        write_text(self.folder / "progress.json", json.dumps({"windows": self.windows, "entries": self.entries}))
        self._committed = time.monotonic()

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()


@torch.no_grad()
def record(
    lm: LanguageModel,
    windows: Windows,
    placed: Placed,
    numbers: Int[np.ndarray, " windows"],
    folder: Path,
    identity: Mapping[str, Any],
    progress: Progress = silent,
) -> None:
    """Run the windows `numbers` through the language model up to the read and written sites, and write the latents of
    the positions that training and evaluation count (`RowFilter`) into `folder`."""
    coder, sites = placed.coder.eval(), [placed.read, placed.write]
    keep = RowFilter.measure(lm, windows, sites)
    writer = Writer(folder, {**identity, "windows": numbers.tolist()}, windows.context, coder.config.d_sae)
    try:
        for start in range(writer.windows, len(numbers), READ_BATCH):
            progress(start, len(numbers))
            chosen = numbers[start : start + READ_BATCH]
            batch = windows[chosen]
            tokens = torch.from_numpy(batch).to(lm.device)
            read = lm.read(tokens, sites)
            kept = keep(tokens, read)
            latents = coder.encode(read[placed.read][kept])
            writer.append(batch, windows.documents(chosen), kept.cpu().numpy(), latents)
        writer.commit()
        progress(len(numbers), len(numbers))
    except OSError as error:
        raise MatryoshkaError(f"{folder}: the latents cannot be written: {error.strerror or error}") from error
    finally:
        writer.close()


def join(folder: Path, others: list[Path]) -> None:
    """Append the recordings `others` to the one in `folder`, in this order, and delete them."""
    for name in file_types(1):
        with (folder / f"{name}.bin").open("ab") as target:
            for other in others:
                with (other / f"{name}.bin").open("rb") as source:
                    shutil.copyfileobj(source, target, 1 << 22)
    for other in others:
        shutil.rmtree(other)
