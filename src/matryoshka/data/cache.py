"""Activations on disk: the chunks of a live model written once, then read as if they came from it.

A folder with `index.json` (what it holds, a checksum for each shard) and `chunk_N.safetensors`, one tensor for each
site and `positions`. The first epoch of a cached stream equals the live one bit for bit; later epochs permute the
chunks.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from matryoshka.data.rowfilter import RowCounts, RowFilter
from matryoshka.data.stream import Chunk, LiveChunks, permutation
from matryoshka.errors import MatryoshkaError
from matryoshka.files import checksum, read_json, replaced_folder
from matryoshka.lm.sites import Site

HEAD = {"format": "matryoshka-activations", "version": 2}
"""What index.json begins with."""


class _Shard(BaseModel):
    """One chunk's file, and what became of the tokens that were read for it."""

    model_config = ConfigDict(extra="forbid")

    file: str = Field(pattern=r"^chunk_\d+\.safetensors$")
    sha256: str
    read: NonNegativeInt
    left_out: NonNegativeInt
    not_finite: NonNegativeInt


class _Index(BaseModel):
    """index.json, but for its head and what identifies the activations."""

    seed: NonNegativeInt
    sites: list[str]
    bos: int | None
    largest_norms: dict[str, float]
    shards: list[_Shard]


def write(
    live: LiveChunks, folder: Path, seed: int, count: int, identity: dict[str, Any], progress: Callable[[int], None]
) -> None:
    """Write the first `count` chunks of epoch 0 and an index that begins with `identity`.

    `progress` is called with the number of chunks written. Raises MatryoshkaError, before writing anything, if the disk
    is too small.
    """
    itemsize = live.lm.dtype.itemsize
    rows = live.per_chunk * live.windows.context
    need = count * rows * (sum(live.lm.info.check(site) for site in live.sites) * itemsize + 8)
    folder.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder.parent).free
    if need > free:
        raise MatryoshkaError(f"{folder}: the cache needs {need / 1e9:.1f} GB, {free / 1e9:.1f} GB are free")
    with replaced_folder(folder) as new:
        shards = []
        for index in range(count):
            chunk = live.chunk(seed, 0, index)
            file = new / f"chunk_{index}.safetensors"
            tensors = {str(site): x[chunk.rows] for site, x in chunk.activations.items()}
            save_file({**tensors, "positions": chunk.positions[chunk.rows]}, file)
            shards.append({"file": file.name, "sha256": checksum(file), **chunk.counts._asdict()})
            progress(index + 1)
        index = {
            **HEAD,
            **identity,
            "seed": seed,
            "sites": [str(site) for site in live.sites],
            "bos": live.keep.bos,
            "largest_norms": {str(site): norm for site, norm in live.keep.largest.items()},
            "shards": shards,
        }
        (new / "index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


class CachedChunks:
    """The chunks of a folder written by `write`, on `device`. Each shard's checksum is proved when it is first read."""

    def __init__(self, folder: Path, identity: dict[str, Any], sites: list[Site], device: torch.device) -> None:
        self.folder, self.device, self.sites = folder, device, sites
        index = read_json(folder / "index.json")
        for name, value in {**HEAD, **identity}.items():
            if (cached := index.get(name) if isinstance(index, dict) else None) != value:
                raise MatryoshkaError(f"{folder}: cached with {name} = {cached!r}, this run has {value!r}")
        try:
            self.index = _Index.model_validate(index)
            largest = {Site.parse(site): norm for site, norm in self.index.largest_norms.items()}
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise MatryoshkaError(f"{folder}: a damaged index of activations: {where}: {first['msg']}") from None
        if missing := [str(site) for site in sites if str(site) not in self.index.sites or site not in largest]:
            raise MatryoshkaError(f"{folder}: holds {', '.join(self.index.sites)}; lacks {', '.join(missing)}")
        self.keep = RowFilter(self.index.bos, largest)  # as it was measured when the cache was written
        self._proved: set[int] = set()

    def __len__(self) -> int:
        return len(self.index.shards)

    @property
    def tokens(self) -> int:
        """That were read for it."""
        return sum(shard.read for shard in self.index.shards)

    def chunk(self, seed: int, epoch: int, index: int) -> Chunk:
        """The shard at place `index` of the epoch."""
        same = epoch == 0 and seed == self.index.seed
        number = index if same else int(permutation(len(self), seed, epoch)[index])
        shard = self.index.shards[number]
        file = self.folder / shard.file
        try:
            if number not in self._proved and checksum(file) != shard.sha256:
                raise MatryoshkaError(f"{file}: damaged, its checksum differs; delete {self.folder} to write it anew")
            with safe_open(file, "pt") as opened:  # of its sites only those that are read
                activations = {site: opened.get_tensor(str(site)).to(self.device) for site in self.sites}
                positions = opened.get_tensor("positions").to(self.device)
        except (OSError, SafetensorError) as error:
            raise MatryoshkaError(f"{file}: missing or damaged ({error})") from None
        self._proved.add(number)
        counts = RowCounts(shard.read, shard.left_out, shard.not_finite)
        return Chunk(activations, positions, torch.arange(len(positions)), counts)
