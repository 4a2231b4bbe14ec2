"""Where text comes from: files, folders of them, the bundled corpus or a hub data set → documents.

1. `check_source` decides what `source` means, before anything is read: `bundled`, a path, or a hub name
2. `source_fingerprint` names its content, so that tokens made of it can be found again
3. `documents` streams it; nothing is held but the document (or row group) at hand

A plain text has no rows. It is one document where there are many of them; where there are few, so that some of it can
be held out, each is cut into blocks of whole paragraphs, which are the documents.
"""

import gzip
import hashlib
import importlib
import io
import json
import logging
import os
import re
import zlib
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

from matryoshka.data.sections import TextConfig
from matryoshka.errors import MatryoshkaError, did_you_mean, first_line
from matryoshka.files import cache_dir, checksum, parse_json, write_text
from matryoshka.lm.vocabulary import tokenisable

BUNDLED = Path(__file__).parent / "bundled" / "text.jsonl.gz"
ENDINGS = (".txt", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
FEW_FILES = 20
"""With fewer plain texts than this each is cut into blocks."""
BLOCK, LONGEST_BLOCK = 4096, 2**20
"""Characters of a block of a plain text where there are few of them; and where there are many, to bound the memory."""
LONGEST_LINE = 2**26
"""Bytes of a line of JSON."""
_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_log = logging.getLogger(__name__)


def check_source(config: TextConfig) -> list[Path]:
    """The files of a source, none of a hub data set; without reading any of it or asking the network.

    Raises MatryoshkaError for one that cannot be read: a missing path, an unknown ending, a folder without a readable
    file, a name that the hub cannot have, or `subset` / `split` set for files, which have neither.
    """
    files = source_files(config.source)
    if not files and not _HUB_NAME.fullmatch(config.source):
        raise MatryoshkaError(f"text.source = {config.source!r}: no file or folder, and no name of a hub data set")
    if files and (config.subset is not None or config.split != "train"):
        raise MatryoshkaError(
            "text.subset and text.split choose a part of a hub data set, but"
            f" text.source = {config.source!r} is local: leave them out, or name the files of that part"
        )
    return files


def documents(config: TextConfig) -> Iterator[str]:
    """Stream the documents: files sorted by name, lines and rows as they lie. Empty documents are skipped.

    Raises MatryoshkaError for whatever `check_source` refuses; while reading, for a damaged file or a row without the
    field, by file and line.
    """
    files = check_source(config)
    block = BLOCK if few_plain_texts(files) else LONGEST_BLOCK
    texts = (text for file in files for text in _read(file, config.field, block)) if files else _read_hub(config)
    return (text for text in texts if text and not text.isspace())


def few_plain_texts(files: list[Path]) -> bool:
    """Whether there are plain texts among `files`, and too few to hold whole ones out."""
    return 0 < sum(file.name.lower().endswith(".txt") for file in files) < FEW_FILES


def source_files(source: str) -> list[Path]:
    """The files of a local source, sorted by their name in the folder; links are followed, hidden files ignored. A hub
    data set has none."""
    if not is_local(source):
        return []
    path = BUNDLED if source == "bundled" else Path(source).expanduser()
    if path.is_file():
        if not path.name.lower().endswith(ENDINGS):
            raise MatryoshkaError(f"{path}: text is read from files ending in {', '.join(ENDINGS)}")
        return [path]
    if not path.is_dir():
        raise MatryoshkaError(f"text.source = {source!r}: there is no such file or folder{_nearest_sibling(path)}")
    files = sorted(_below(path), key=lambda file: file.relative_to(path).as_posix())
    if not files:
        raise MatryoshkaError(f"{path}: the folder holds no file ending in {', '.join(ENDINGS)}")
    return files


def _below(folder: Path) -> Iterator[Path]:
    """The readable files in a folder and its folders, each real folder once."""
    seen = set()
    for where, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(where)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for file in (Path(where) / name for name in names if name.lower().endswith(ENDINGS) and name[0] != "."):
            if file.is_file():
                yield file
            else:
                _say_dangling(file)


@cache
def _say_dangling(file: Path) -> None:
    """Once, however often the folder is walked."""
    _log.warning("%s: left out, it is a link to nothing", file)


def source_fingerprint(config: TextConfig) -> str:
    """sha256 in hex of each file's content and relative name; on the hub of name, subset, split, revision."""
    digest = hashlib.sha256()
    if not is_local(config.source):
        digest.update(json.dumps([config.source, config.subset, config.split, hub_revision(config.source)]).encode())
        return digest.hexdigest()
    root = Path(config.source).expanduser()
    for file in source_files(config.source):
        name = file.relative_to(root).as_posix() if root.is_dir() and config.source != "bundled" else file.name
        digest.update(f"{checksum(file)} {name}\n".encode("utf-8", errors="surrogateescape"))
    return digest.hexdigest()


def hub_revision(name: str) -> str:
    """The commit that the hub data set `name` stands at; the last one seen if the hub cannot be reached.

    It is remembered in the cache, so that tokens already on this machine are found without a network.
    """
    remembered = cache_dir() / "revisions" / name.replace("/", "--")
    try:
        sha = importlib.import_module("huggingface_hub").HfApi().dataset_info(name, timeout=20).sha
    except Exception as error:  # requests', httpx's and the hub's own errors have no common base
        if type(error).__name__ not in ("RepositoryNotFoundError", "GatedRepoError") and remembered.is_file():
            _log.warning("the hub cannot be asked for %s: taking the revision seen last", name)
            return remembered.read_text(encoding="utf-8").strip()
        raise _hub_error(name, error) from error
    remembered.parent.mkdir(parents=True, exist_ok=True)
    write_text(remembered, str(sha))
    return str(sha)


def is_local(source: str) -> bool:
    """Whether `source` is bundled, looks like a path or is one: such a name is never tried on the hub."""
    looks_local = source == "bundled" or source.startswith(("/", ".", "~")) or source.lower().endswith(ENDINGS)
    return looks_local or Path(source).exists()


def _nearest_sibling(path: Path) -> str:
    """A hint at the nearest name in the deepest folder of `path` that exists."""
    missing = path
    while not missing.parent.exists():
        missing = missing.parent
    names = [entry.name for entry in missing.parent.iterdir()] if missing.parent.is_dir() else []
    return did_you_mean(missing.name, names, f" (in {missing.parent.resolve()})")


def _read(file: Path, field: str, block: int) -> Iterator[str]:
    """The documents of one file, chosen by its ending."""
    name = file.name.lower()
    try:
        if name.endswith(".txt"):
            yield from _blocks(file, block)
        elif name.endswith(".parquet"):
            yield from _parquet(file, field)
        else:
            yield from _json_lines(file, field)
    except UnicodeDecodeError as error:
        raise MatryoshkaError(f"{file}: not UTF-8 text (byte {error.start})") from error
    except (OSError, EOFError, zlib.error) as error:  # gzip's damage is one of these three
        raise MatryoshkaError(f"{file}: cannot be read to its end: {first_line(error)}") from error


def _blocks(file: Path, size: int) -> Iterator[str]:
    """A plain text in blocks of some `size` characters that end with a paragraph, or at least with a line, if they
    can."""
    lines, characters = [], 0
    with file.open(encoding="utf-8-sig", newline="") as opened:  # newline="": the text as it is
        while line := opened.readline(size):
            lines.append(line)
            characters += len(line)
            if characters >= size or (characters >= size // 2 and not line.strip()):
                yield "".join(lines)
                lines, characters = [], 0
    yield "".join(lines)


def _json_lines(file: Path, field: str) -> Iterator[str]:
    with _open(file) as opened:
        lines = iter(partial(opened.readline, LONGEST_LINE + 1), b"")
        for number, line in enumerate(lines, 1):
            where = f"{file}:{number}"
            if len(line) > LONGEST_LINE:
                raise MatryoshkaError(f"{where}: the line has more than {LONGEST_LINE:,} bytes: cut it into documents")
            if not line.strip():
                continue
            row = parse_json(line, where)
            if not isinstance(row, dict):
                raise MatryoshkaError(f"{where}: expected an object with a field {field!r}, found {type(row).__name__}")
            yield _text(row, field, where)


def _text(row: dict[str, Any], field: str, where: str) -> str:
    """The field's text; null is empty."""
    if field not in row:
        raise MatryoshkaError(f"{where}: no field {field!r}{did_you_mean(field, row)}: set text.field")
    text = row[field]
    if text is None:
        return ""
    if not isinstance(text, str):
        raise MatryoshkaError(f"{where}: field {field!r} holds {type(text).__name__}, expected text")
    return tokenisable(text)


def _open(file: Path) -> io.BufferedIOBase:
    name = file.name.lower()
    if name.endswith(".zst"):
        return io.BufferedReader(_Zstd(file))
    return gzip.open(file, "rb") if name.endswith(".gz") else file.open("rb")


class _Zstd(io.RawIOBase):
    """The content of one or more zstd frames. zstandard's own reader ends a truncated file without a word."""

    def __init__(self, file: Path) -> None:
        self._zstandard, self._file = _library("zstandard", file), file
        self._reader = self._zstandard.ZstdDecompressor(max_window_size=2**31)
        self._opened, self._frame = file.open("rb"), None
        self._compressed = self._content = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        while not self._content:
            self._compressed = self._compressed or self._opened.read(2**16)
            if not self._compressed:
                if self._frame is not None:
                    raise EOFError("the zstd stream ends in the middle of a frame")
                return 0
            self._frame = self._frame or self._reader.decompressobj()
            try:
                self._content = self._frame.decompress(self._compressed)
            except self._zstandard.ZstdError as error:
                raise MatryoshkaError(f"{self._file}: damaged zstd data: {first_line(error)}") from error
            self._compressed = self._frame.unused_data
            self._frame = None if self._frame.eof else self._frame
        part, self._content = self._content[: len(buffer)], self._content[len(buffer) :]
        buffer[: len(part)] = part
        return len(part)

    def close(self) -> None:
        self._opened.close()
        super().close()


def _parquet(file: Path, field: str) -> Iterator[str]:
    pyarrow = _library("pyarrow", file)
    try:
        with importlib.import_module("pyarrow.parquet").ParquetFile(file) as table:
            names = table.schema_arrow.names
            if field not in names:
                raise MatryoshkaError(f"{file}: no column {field!r}{did_you_mean(field, names)}: set text.field")
            batches = table.iter_batches(batch_size=256, columns=[field])
            for number, row in enumerate((row for batch in batches for row in batch.to_pylist()), 1):
                yield _text(row, field, f"{file}, row {number}")
    except pyarrow.ArrowException as error:
        raise MatryoshkaError(f"{file}: damaged Parquet data: {first_line(error)}") from error


def _read_hub(config: TextConfig) -> Iterator[str]:
    """Rows of a hub data set, streamed at the revision that its fingerprint was taken of."""
    datasets = _library("datasets", config.source)
    where = f"{config.source} ({config.split})"
    try:
        revision = hub_revision(config.source)
        rows = datasets.load_dataset(
            config.source, config.subset, split=config.split, revision=revision, streaming=True
        )
        for number, row in enumerate(rows, 1):
            yield _text(row, config.field, f"{where}, row {number}")
    except MatryoshkaError:
        raise
    except Exception as error:  # datasets, fsspec and the hub's client have no common base
        raise _hub_error(where, error) from error


def _hub_error(name: str, error: Exception) -> MatryoshkaError:
    if isinstance(error, ImportError):
        return _missing("huggingface_hub", name)
    hint = did_you_mean(name, ["bundled"], "")
    return MatryoshkaError(
        f"text.source = {name!r}{hint}: no file or folder here, not readable on the hub: {first_line(error)}"
    )


def _library(module: str, wanted_by: object) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise _missing(module, wanted_by) from error


def _missing(module: str, wanted_by: object) -> MatryoshkaError:
    return MatryoshkaError(f"{wanted_by}: reading it needs {module}: pip install 'matryoshka-sae[hub]'")
