"""Where files lie, how they are read, and how they are replaced: whole or not at all.

What is being written bears a temporary name with its writer in it (`temporary`), so that the next command can tell what
a killed one has left from what another one is writing, and sweeps it (`sweep`).
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
import time
import uuid
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from platform import node
from typing import Any

from matryoshka.errors import MatryoshkaError

ABANDONED_SECONDS = 24 * 3600
"""A temporary file of another machine's process that nobody has touched for so long has lost its writer."""
_UMASK = os.umask(0o022)
os.umask(_UMASK)  # it can only be read by being set
_HOST = f"{zlib.crc32(node().encode()):08x}"
_TEMPORARY = re.compile(r"\.(new|old)-(?P<name>.+)-(?P<host>[0-9a-f]{8})-(?P<pid>\d+)-[0-9a-f]{8}")


def cache_dir() -> Path:
    """Tokens and converted models: `$MATRYOSHKA_CACHE`, otherwise ~/.cache/matryoshka."""
    return Path(os.environ.get("MATRYOSHKA_CACHE") or Path.home() / ".cache" / "matryoshka")


def sync(path: Path) -> None:
    """Force a file, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def checksum(file: Path) -> str:
    """sha256 in hex of a file's bytes."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def read_json(file: Path) -> Any:
    """The content of a JSON file. Raises MatryoshkaError, by file and place, where it cannot be read."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise MatryoshkaError(f"{file}: cannot be read ({error.strerror})") from None
    value = parse_json(content, file)
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise MatryoshkaError(f"{file}: holds half a character (a lone surrogate), which is no text") from None
    return value


def parse_json(text: str | bytes, where: object) -> Any:
    """The value that `text` spells, which lies at `where`. Raises MatryoshkaError if it is not JSON."""
    try:
        return json.loads(text)
    except RecursionError:
        raise MatryoshkaError(f"{where}: not JSON that can be read: its values are nested too deeply") from None
    except ValueError as error:  # malformed, or bytes that are no UTF-8
        raise MatryoshkaError(f"{where}: not JSON: {error}") from None


def refuse_unwritable(folder: Path) -> None:
    """Raise MatryoshkaError if a folder cannot be made at `folder`, or written into where it is there already."""
    try:
        there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
        probe = temporary(there / "probe", "new")
        probe.mkdir()
        probe.rmdir()
        if there != folder.absolute():  # its own name, which may be too long
            first = there / folder.absolute().relative_to(there).parts[0]
            first.mkdir()
            first.rmdir()
    except (OSError, ValueError) as error:  # a name with a NUL is a ValueError
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise MatryoshkaError(f"{folder}: cannot be made or written into ({reason})") from None


def temporary(path: Path, kind: str) -> Path:
    """A name beside `path` for what is to take its place (`new`), or what made way for it (`old`), of this process."""
    return path.with_name(f".{kind}-{path.name}-{_HOST}-{os.getpid()}-{uuid.uuid4().hex[:8]}")


def sweep(folder: Path) -> None:
    """Remove what killed processes left in `folder` under temporary names, and put back what had made way for a new
    one that never came."""
    for leftover in folder.glob(".*-*"):
        matched = _TEMPORARY.fullmatch(leftover.name)
        if matched is None or not _abandoned(leftover, matched["host"], int(matched["pid"])):
            continue
        if matched[1] == "old" and not (wanted := folder / matched["name"]).exists():
            leftover.rename(wanted)
        elif leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def _abandoned(leftover: Path, host: str, pid: int) -> bool:
    """Whether its writer is dead; of another machine's, whether it has been still for a day."""
    if host == _HOST:
        return not alive(pid)
    try:
        inside = leftover.iterdir() if leftover.is_dir() else ()
        return time.time() - max(entry.stat().st_mtime for entry in [leftover, *inside]) > ABANDONED_SECONDS
    except OSError:  # its writer is just renaming or removing it
        return False


def alive(pid: int) -> bool:
    """Whether there is such a process on this machine."""
    try:
        os.kill(pid, 0)
    except OSError as error:  # another one than this is that it is somebody else's
        return not isinstance(error, ProcessLookupError)
    return True


@contextmanager
def locked(file: Path, refusal: str) -> Iterator[None]:
    """Hold `file` as a lock, which holds the process's number and goes with it.

    Raises MatryoshkaError, `refusal` and the process that has it, if one does.
    """
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 20).decode() or "another one"
            os.close(descriptor)
            raise MatryoshkaError(f"{refusal} (process {holder})") from None
        if file.exists() and os.path.samestat(os.fstat(descriptor), file.stat()):
            break
        os.close(descriptor)  # its holder has just removed it
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
        yield
    finally:
        file.unlink(missing_ok=True)
        os.close(descriptor)


@contextmanager
def replaced_folder(folder: Path, stays: Callable[[Path], bool] = lambda there: False) -> Iterator[Path]:
    """A new empty folder to fill, which takes `folder`'s place once the block ends without an error; unless one lies
    there by then that `stays`, where the new one is dropped.

    Its files are fsynced before the rename. A reader sees the old folder or the new one, never a half; after a kill
    in the instant between two renames the old one lies beside, and the next `sweep` puts it back.
    """
    folder = folder.resolve()  # a link stays one
    folder.parent.mkdir(parents=True, exist_ok=True)
    sweep(folder.parent)
    new = temporary(folder, "new")
    new.mkdir()
    try:
        yield new
        for file in new.rglob("*"):
            if file.is_file():
                file.chmod(0o666 & ~_UMASK)  # whoever wrote it: some libraries let nobody else read
            sync(file)
        sync(new)
        try:
            new.rename(folder)
        except OSError:
            if not folder.exists():
                raise
            if not stays(folder):
                old = temporary(folder, "old")
                folder.rename(old)
                new.rename(folder)
                shutil.rmtree(old)
        sync(folder.parent)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def write_text(file: Path, text: str) -> None:
    """Replace `file` in one rename, fsynced."""
    write_bytes(file, text.encode())


def write_bytes(file: Path, content: bytes) -> None:
    """Replace `file` in one rename, fsynced."""
    new = temporary(file, "new")
    try:
        new.write_bytes(content)
        sync(new)
        new.replace(file)
    finally:
        new.unlink(missing_ok=True)
