"""Where text comes from: files, folders of them, the bundled corpus or a hub data set → documents.

1. `check_source` decides what `source` means, before anything is read: `bundled`, a path, or a hub name
2. `source_fingerprint` names its content, so that tokens made of it can be found again
3. `documents` streams it; nothing is held but the document (or row group) at hand
"""

import gzip
import hashlib
import importlib
import json
import logging
import re
import zlib
from collections.abc import Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, BinaryIO

from matryoshka.data.sections import TextConfig
from matryoshka.errors import MatryoshkaError, did_you_mean
from matryoshka.files import cache_dir, write_text

BUNDLED = Path(__file__).parent / "bundled" / "text.jsonl.gz"
ENDINGS = (".txt", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_log = logging.getLogger(__name__)


def check_source(config: TextConfig) -> None:
    """Refuse a source that cannot be read, without reading any of it or asking the network.

    Raises:
        MatryoshkaError: a missing path, an unknown ending, a folder without a readable file, a name that
            the hub cannot have, or `subset` / `split` set for files, which have neither.
    """
    if not is_local(config.source):
        if not _HUB_NAME.fullmatch(config.source):
            raise MatryoshkaError(f"text.source = {config.source!r}: no file or folder, and no name of a hub data set")
        return
    source_files(config.source)
    if config.subset is not None or config.split != "train":
        raise MatryoshkaError(
            "text.subset and text.split choose a part of a hub data set, but"
            f" text.source = {config.source!r} is local: leave them out, or name the files of that part"
        )


def documents(config: TextConfig) -> Iterator[str]:
    """Stream the documents: files sorted by name, lines and rows as they lie. Empty documents are skipped.

    Raises:
        MatryoshkaError: whatever `check_source` refuses; while reading, a damaged file or a row without the
            field, by file and line.
    """
    check_source(config)
    if is_local(config.source):
        texts = (text for file in source_files(config.source) for text in _read(file, config.field))
    else:
        texts = _read_hub(config)
    return (text for text in texts if text and not text.isspace())


def source_files(source: str) -> list[Path]:
    """The files of a local source, sorted by their name in the folder; hidden ones are ignored."""
    path = BUNDLED if source == "bundled" else Path(source).expanduser()
    if path.is_file():
        if not path.name.lower().endswith(ENDINGS):
            raise MatryoshkaError(f"{path}: text is read from files ending in {', '.join(ENDINGS)}")
        return [path]
    if not path.is_dir():
        raise MatryoshkaError(f"text.source = {source!r}: there is no such file or folder{_nearest_sibling(path)}")
    names = (file.relative_to(path) for file in path.rglob("*") if file.name.lower().endswith(ENDINGS))
    seen = sorted(name.as_posix() for name in names if not any(part.startswith(".") for part in name.parts))
    files = [path / name for name in seen if (path / name).is_file()]
    if not files:
        raise MatryoshkaError(f"{path}: the folder holds no file ending in {', '.join(ENDINGS)}")
    return files


def source_fingerprint(config: TextConfig) -> str:
    """sha256 in hex of each file's content and relative name; on the hub of name, subset, split, revision."""
    digest = hashlib.sha256()
    if not is_local(config.source):
        digest.update(json.dumps([config.source, config.subset, config.split, hub_revision(config.source)]).encode())
        return digest.hexdigest()
    root = Path(config.source).expanduser()
    for file in source_files(config.source):
        name = file.relative_to(root).as_posix() if root.is_dir() and config.source != "bundled" else file.name
        with file.open("rb") as opened:
            content = hashlib.file_digest(opened, "sha256").hexdigest()
        digest.update(f"{content} {name}\n".encode("utf-8", errors="surrogateescape"))
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
    hint = did_you_mean(missing.name, names)
    return hint if hint.startswith(" (did") else f" (in {missing.parent.resolve()})"


def _read(file: Path, field: str) -> Iterator[str]:
    """The documents of one file, chosen by its ending."""
    name = file.name.lower()
    try:
        if name.endswith(".txt"):
            with file.open(encoding="utf-8-sig", newline="") as opened:  # newline="": the text as it is
                yield opened.read()
        elif name.endswith(".parquet"):
            yield from _parquet(file, field)
        else:
            yield from _json_lines(file, field)
    except UnicodeDecodeError as error:
        raise MatryoshkaError(f"{file}: not UTF-8 text (byte {error.start})") from error
    except (OSError, EOFError, zlib.error) as error:  # gzip's damage is one of these three
        raise MatryoshkaError(f"{file}: cannot be read to its end: {_first_line(error)}") from error


def _json_lines(file: Path, field: str) -> Iterator[str]:
    with closing(_lines(file)) as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            where = f"{file}:{number}"
            try:
                row = json.loads(line)
            except ValueError as error:  # malformed JSON and bytes that are no UTF-8
                raise MatryoshkaError(f"{where}: not a line of JSON: {_first_line(error)}") from error
            if not isinstance(row, dict):
                raise MatryoshkaError(f"{where}: expected an object with a field {field!r}, found {type(row).__name__}")
            yield _text(row, field, where)


def _text(row: dict[str, Any], field: str, where: str) -> str:
    """The field's text; null is empty. Lone surrogates, which tokenizers refuse, become `?`."""
    if field not in row:
        raise MatryoshkaError(f"{where}: no field {field!r}{did_you_mean(field, row)}: set text.field")
    text = row[field]
    if text is None:
        return ""
    if not isinstance(text, str):
        raise MatryoshkaError(f"{where}: field {field!r} holds {type(text).__name__}, expected text")
    return text.encode("utf-8", errors="replace").decode("utf-8")


def _lines(file: Path) -> BinaryIO | gzip.GzipFile | Generator[bytes, None, None]:
    name = file.name.lower()
    if name.endswith(".zst"):
        return _zstd_lines(file)
    return gzip.open(file, "rb") if name.endswith(".gz") else file.open("rb")


def _zstd_lines(file: Path) -> Generator[bytes, None, None]:
    """Lines of one or more zstd frames. zstandard's own reader ends a truncated file without a word."""
    zstandard = _library("zstandard", file)
    frame, rest = None, b""
    reader = zstandard.ZstdDecompressor(max_window_size=2**31)
    try:
        with file.open("rb") as opened:
            while data := opened.read(2**16):
                while data:
                    frame = frame or reader.decompressobj()
                    *lines, rest = (rest + frame.decompress(data)).split(b"\n")
                    yield from lines
                    data = frame.unused_data
                    frame = None if frame.eof else frame
    except zstandard.ZstdError as error:
        raise MatryoshkaError(f"{file}: damaged zstd data: {_first_line(error)}") from error
    if frame is not None:
        raise EOFError("the zstd stream ends in the middle of a frame")
    yield rest


def _parquet(file: Path, field: str) -> Iterator[str]:
    pyarrow = _library("pyarrow", file)
    try:
        with importlib.import_module("pyarrow.parquet").ParquetFile(file) as table:
            names = table.schema_arrow.names
            if field not in names:
                raise MatryoshkaError(f"{file}: no column {field!r}{did_you_mean(field, names)}: set text.field")
            row = 0
            for batch in table.iter_batches(batch_size=256, columns=[field]):
                for text in batch.column(0).to_pylist():
                    row += 1
                    yield _text({field: text}, field, f"{file}, row {row}")
    except pyarrow.ArrowException as error:
        raise MatryoshkaError(f"{file}: damaged Parquet data: {_first_line(error)}") from error


def _read_hub(config: TextConfig) -> Iterator[str]:
    """Rows of a hub data set, streamed at the revision that its fingerprint was taken of."""
    datasets = _library("datasets", config.source)
    where = f"{config.source} ({config.split})"
    try:
        rows = datasets.load_dataset(
            config.source,
            config.subset,
            split=config.split,
            revision=hub_revision(config.source),
            streaming=True,
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
    near = did_you_mean(name, ["bundled"])
    hint = near if near.startswith(" (did") else ""
    return MatryoshkaError(
        f"text.source = {name!r}{hint}: no file or folder here, not readable on the hub: {_first_line(error)}"
    )


def _library(module: str, wanted_by: object) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise _missing(module, wanted_by) from error


def _missing(module: str, wanted_by: object) -> MatryoshkaError:
    return MatryoshkaError(f"{wanted_by}: reading it needs {module}: pip install 'matryoshka-sae[hub]'")


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
