"""Text → tokens on disk, once; windows of them by index, for ever.

1. a folder's name is a hash of all that decides its tokens (text, tokenizer, separator, and `TextConfig`
   but for the context): where it lies already, it is reused, once its files have proved to be as they were written
2. each document goes to the `train` or the `held_out` split by a hash of its text, is tokenised once, and is
   appended to its split's stream, after a separator if there is one
3. the folder is filled under a temporary name, fsynced and renamed: whole or not at all
4. a window is cut when it is read: BOS, then the next context - 1 tokens of the memory-mapped stream

HASH/  meta.json  train.bin  train.documents.npy  held_out.bin  held_out.documents.npy
"""

import hashlib
import json
import logging
from array import array
from collections.abc import Iterable, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Bool, Int
from pydantic import BaseModel, ConfigDict, ValidationError
from transformers import PreTrainedTokenizerBase

from matryoshka.data.documents import check_source, documents, few_plain_texts, source_fingerprint
from matryoshka.data.encoding import encoded, tokenizer_fingerprint
from matryoshka.data.sections import TextConfig
from matryoshka.errors import MatryoshkaError, did_you_mean
from matryoshka.files import cache_dir, checksum, replaced_folder, write_text
from matryoshka.progress import Progress, progress_bar

FORMAT = 2
PROVED = "proved.json"
"""Size and time of change of each file when its checksum was compared last: until these change it is not done again."""
OF_TEXT, DECISIVE = ("field", "held_out"), ("field", "held_out", "limit")
"""What of a text's configuration tells it from another, and what decides its tokens."""
Split = Literal["train", "held_out"]
SPLITS: tuple[Split, ...] = get_args(Split)
_log = logging.getLogger(__name__)


class _Decisive(BaseModel):
    """Of a text's configuration what decides its tokens; the rest says where it came from."""

    model_config = ConfigDict(frozen=True, extra="allow")

    field: str
    held_out: float
    limit: int | None


class Meta(BaseModel):
    """meta.json: what the folder holds, and what it was made of."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[2]
    dtype: Literal["uint16", "uint32"]
    tokens: dict[Split, int]
    documents: dict[Split, int]
    bytes: dict[str, int]
    sha256: dict[str, str]
    config: _Decisive
    tokenizer: str
    source: str
    separator: int | None


class Windows:
    """The windows of one split: `windows[3]`, `windows[:8]`, `windows[[5, 2]]` → int64 array [n, context]."""

    def __init__(self, tokens: "Tokens", split: Split) -> None:
        self.tokens, self.split, self.context, self.bos = tokens, split, tokens.context, tokens.bos
        self._stride = self.context - (self.bos is not None)
        self._end = n = tokens.meta.tokens[split]
        if n < self._stride:
            more = "lower text.held_out" if split == "train" else "raise text.held_out"
            raise MatryoshkaError(
                f"the {split} split has {n:,} tokens, but a window of text.context = {self.context} needs"
                f" {self._stride:,}: lower text.context, {more}, or bring more text"
            )
        dtype = np.dtype(tokens.meta.dtype).newbyteorder("<")
        stream = np.memmap(tokens.folder / f"{split}.bin", dtype, mode="r")
        whole = n // self._stride
        self._rows = stream[: whole * self._stride].reshape(whole, self._stride)
        self._starts = np.load(tokens.folder / f"{split}.documents.npy", mmap_mode="r")

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int | slice | list[int] | np.ndarray) -> Int[np.ndarray, "n context"]:
        rows = np.atleast_2d(self._rows[index])
        windows = np.empty((len(rows), self.context), dtype=np.int64)
        windows[:, self.context - self._stride :] = rows
        if self.bos is not None:
            windows[:, 0] = self.bos
        return windows

    @property
    def document_sizes(self) -> Int[np.ndarray, " documents"]:
        """Tokens of each document of the split, its separator included."""
        return np.diff(self._starts, append=self._end)

    def covering(self, documents: Bool[np.ndarray, " documents"]) -> Int[np.ndarray, " n"]:
        """Numbers of the windows that hold tokens of these of its documents, ascending."""
        chosen = np.flatnonzero(documents)
        starts = np.asarray(self._starts[chosen])
        change = np.zeros(self._end // self._stride + 2, np.int64)
        np.add.at(change, starts // self._stride, 1)
        np.add.at(change, (starts + self.document_sizes[chosen] - 1) // self._stride + 1, -1)
        return np.flatnonzero(np.cumsum(change)[: len(self)])

    def documents(self, index: int | slice | list[int] | np.ndarray) -> Int[np.ndarray, "n context"]:
        """Number within the split of the document that each token lies in; BOS counts to the token after it."""
        return np.searchsorted(self._starts, self._places(index), side="right") - 1

    def depths(self, index: int | slice | list[int] | np.ndarray) -> Int[np.ndarray, "n context"]:
        """How many tokens of its document lie before each token; BOS counts to the token after it."""
        return self._places(index) - np.asarray(self._starts)[self.documents(index)]

    def _places(self, index: int | slice | list[int] | np.ndarray) -> Int[np.ndarray, "n context"]:
        """Of each token within the split."""
        numbers = np.atleast_1d(np.arange(len(self))[index])
        return numbers[:, None] * self._stride + np.maximum(0, np.arange(self.context) - (self.bos is not None))


class Tokens:
    """A folder that `tokenise` wrote, cut into windows of `context` tokens; `bos`, if any, begins each.

    `hash` is of these tokens, `text_hash` of the text, however far it was read. Raises MatryoshkaError for a folder
    that is damaged or none of ours.
    """

    def __init__(self, folder: Path, context: int, bos: int | None) -> None:
        meta = _read_meta(folder)
        if context < 2:
            raise MatryoshkaError(f"text.context = {context}: a window needs at least 2 tokens")
        self.folder, self.hash, self.meta, self.context, self.bos = folder, folder.name, meta, context, bos
        self.text_hash = _hash(meta.model_dump(include={"source", "tokenizer", "separator", "config"}), OF_TEXT)

    def windows(self, split: Split) -> Windows:
        """The whole windows of `train` or `held_out`; a last part shorter than a window is left out.

        Raises MatryoshkaError if the split has fewer tokens than one window needs.
        """
        if split not in SPLITS:
            raise MatryoshkaError(f"tokens have no split {split!r}{did_you_mean(split, SPLITS)}")
        return Windows(self, split)


def is_held_out(text: str, fraction: float) -> bool:
    """Whether a document belongs to the held-out split: decided by a hash of its text alone.

    So it does not depend on order, file names or a seed, two copies of a document always fall on the same
    side, and a larger `fraction` (in [0, 1]) holds out a superset.
    """
    digest = hashlib.sha256(text.encode("utf-8", errors="surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


def tokenise(config: TextConfig, tokenizer: PreTrainedTokenizerBase, bos: int | None, separator: int | None) -> Tokens:
    """The tokens of a text, made unless they lie in the cache already.

    `tokenizer`: a fast one; special tokens spelt out in a document are read as ordinary text. `bos`: token id set
    before each window when it is read. `separator`: token id written before each document. Raises MatryoshkaError for
    whatever `documents` refuses, or a tokenizer without a fast backend.
    """
    files = check_source(config)
    made_of = {
        "source": source_fingerprint(config),
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "separator": separator,
        "config": config.model_dump(mode="json", exclude={"context"}),
    }
    folder = cache_dir() / "tokens" / _hash(made_of, DECISIVE)
    if folder.exists():
        try:
            return Tokens(folder, config.context, bos)
        except MatryoshkaError as damage:
            _log.warning("%s: tokenising again", damage)
    if few_plain_texts(files):
        _log.warning("%s: few plain texts, so each is read as documents of whole paragraphs", config.source)
    # another process may have been first: the same name means the same tokens, and a reader may be opening them
    with replaced_folder(folder, stays=_is_whole) as new, progress_bar("tokenising") as tell:
        _write(new, config, tokenizer, made_of, tell)
    return Tokens(folder, config.context, bos)


def _hash(made_of: Mapping[str, Any], fields: Iterable[str]) -> str:
    """Of what a text's tokens are made of; of its configuration, of these fields alone."""
    decisive = {**made_of, "config": {field: made_of["config"][field] for field in fields}}
    return hashlib.sha256(json.dumps({"format": FORMAT, **decisive}, sort_keys=True).encode()).hexdigest()[:16]


class _Stream:
    """One split being written: tokens straight to the file, documents' starts in memory (8 bytes each)."""

    def __init__(self, folder: Path, split: Split, dtype: np.dtype) -> None:
        self.bin, self.starts_file = folder / f"{split}.bin", folder / f"{split}.documents.npy"
        self.dtype, self.tokens, self.starts = dtype, 0, array("q")
        self._file = self.bin.open("wb")

    def add(self, ids: Int[np.ndarray, " tokens"]) -> None:
        self.starts.append(self.tokens)
        self.tokens += len(ids)
        self._file.write(ids.astype(self.dtype).tobytes())

    def close(self) -> None:
        self._file.close()
        np.save(self.starts_file, np.array(self.starts, dtype=np.int64))


def _write(
    folder: Path, config: TextConfig, tokenizer: PreTrainedTokenizerBase, made_of: dict[str, Any], progress: Progress
) -> None:
    """Fill `folder` with the tokens of the text and their meta.json."""
    separator = made_of["separator"]
    before = np.array([] if separator is None else [separator], dtype=np.uint32)
    highest = max(len(tokenizer) - 1, *tokenizer.get_vocab().values(), *before.tolist())  # vocabularies may have holes
    dtype = np.dtype("<u2" if highest < 2**16 else "<u4")
    streams: dict[Split, _Stream] = {split: _Stream(folder, split, dtype) for split in SPLITS}
    train, held_out = streams["train"], streams["held_out"]
    least = 0 if config.limit is None else config.held_out_at(config.limit)
    try:
        with closing(encoded(documents(config), tokenizer)) as pairs:
            for text, ids in pairs:
                stream = held_out if is_held_out(text, config.held_out) else train
                room = None if config.limit is None or stream is held_out else config.limit - train.tokens
                if room != 0:
                    stream.add(np.concatenate([before, ids])[:room])
                progress(train.tokens, config.limit or 0)
                if train.tokens == config.limit and held_out.tokens >= least:
                    break
    finally:
        for stream in streams.values():
            stream.close()
    files = [file for stream in streams.values() for file in (stream.bin, stream.starts_file)]
    meta = Meta(
        format=FORMAT,
        dtype="uint16" if dtype.itemsize == 2 else "uint32",
        tokens={split: stream.tokens for split, stream in streams.items()},
        documents={split: len(stream.starts) for split, stream in streams.items()},
        bytes={file.name: file.stat().st_size for file in files},
        sha256={file.name: checksum(file) for file in files},
        **made_of,
    )
    (folder / "meta.json").write_text(meta.model_dump_json(indent=2), encoding="utf-8")
    (folder / PROVED).write_text(json.dumps(_stamps(folder, meta)), encoding="utf-8")


def _read_meta(folder: Path) -> Meta:
    """meta.json, after comparing every file's size with what it says."""
    file = folder / "meta.json"
    try:
        meta = Meta.model_validate_json(file.read_bytes())
    except OSError as error:
        raise MatryoshkaError(f"{folder}: not a whole folder of tokens: meta.json cannot be read") from error
    except ValidationError as error:
        what = error.errors()[0]["msg"]
        raise MatryoshkaError(f"{file}: damaged, or written by another version: {what}") from error
    for name, size in meta.bytes.items():
        path = folder / name
        actual = path.stat().st_size if path.is_file() else None
        if actual != size:
            there = "is missing" if actual is None else f"has {actual:,} bytes"
            raise MatryoshkaError(f"{path}: damaged tokens: the file {there}, expected {size:,} bytes")
    for split in SPLITS:
        if meta.tokens.get(split, -1) * np.dtype(meta.dtype).itemsize != meta.bytes.get(f"{split}.bin"):
            raise MatryoshkaError(f"{file}: damaged: its numbers of tokens and of bytes do not agree")
    _prove(folder, meta)
    return meta


def _prove(folder: Path, meta: Meta) -> None:
    """Compare the checksums of the files that have changed since that was done last."""
    stamps, proved = _stamps(folder, meta), {}
    with suppress(OSError, ValueError):
        proved = json.loads((folder / PROVED).read_text(encoding="utf-8"))
    if proved == stamps:
        return
    for name, expected in meta.sha256.items():
        if checksum(folder / name) != expected:
            raise MatryoshkaError(f"{folder / name}: damaged tokens: not what was written, its checksum differs")
    with suppress(OSError):  # a cache that this user may only read is proved each time
        write_text(folder / PROVED, json.dumps(stamps))


def _stamps(folder: Path, meta: Meta) -> dict[str, list[int]]:
    stats = {name: (folder / name).stat() for name in meta.bytes}
    return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}


def _is_whole(folder: Path) -> bool:
    try:
        _read_meta(folder)
    except MatryoshkaError:
        return False
    return True
