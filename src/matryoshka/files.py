"""Where files lie, and how they are replaced: whole or not at all."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """A new empty folder to fill, which takes `folder`'s place once the block ends without an error.

    Its files are fsynced before the rename. A reader sees the old folder or the new one, never a half; after a kill
    in the instant between two renames the old one lies beside, under a `.old-` name.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = folder.with_name(f".new-{folder.name}-{uuid.uuid4().hex[:8]}")
    new.mkdir()
    try:
        yield new
        for file in new.rglob("*"):
            sync(file)
        sync(new)
        if folder.exists():
            old = folder.with_name(f".old-{folder.name}-{uuid.uuid4().hex[:8]}")
            folder.rename(old)
            new.rename(folder)
            shutil.rmtree(old)
        else:
            new.rename(folder)
        sync(folder.parent)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def write_text(file: Path, text: str) -> None:
    """Replace `file` in one rename, fsynced."""
    write_bytes(file, text.encode())


def write_bytes(file: Path, content: bytes) -> None:
    """Replace `file` in one rename, fsynced."""
    new = file.with_name(f".new-{file.name}-{uuid.uuid4().hex[:8]}")
    try:
        new.write_bytes(content)
        sync(new)
        new.replace(file)
    finally:
        new.unlink(missing_ok=True)
