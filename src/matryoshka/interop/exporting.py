"""From runs to folders that other programs read, written whole or not at all."""

import os
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

from matryoshka.errors import MatryoshkaError, did_you_mean
from matryoshka.files import refuse_unwritable, replaced_folder
from matryoshka.interop import FORMATS, WRITTEN
from matryoshka.interop.ours import Ours
from matryoshka.run import Run, opened

BESIDE = ("README.md", ".gitattributes")
"""What may lie beside a format's files in a folder that is replaced."""


class WrittenFormat(Protocol):
    """The face of a format that is written: see the room's docstring."""

    FILES: Sequence[str]

    def arrange(self, coders: Sequence[Ours]) -> dict[str, Ours]: ...
    def write(self, arranged: Mapping[str, Ours], folder: Path) -> None: ...


def export(
    runs: Run | str | Path | Sequence[Run | str | Path],
    folder: str | Path,
    format: str,
    prefix: int | None = None,
    overwrite: bool = False,
) -> Path:
    """The coders of one run or several in the files of another program, in a new `folder`, which is returned.

    `format` is one of WRITTEN; `prefix` one of the coders' widths: their first latents alone. With `overwrite` an
    earlier export of this format is replaced. Raises MatryoshkaError, before anything lies in `folder`, for what the
    format cannot hold, for a prefix that there is not, and for a folder that holds anything else.
    """
    if format not in WRITTEN:
        only_read = f" (it is only read; written are: {', '.join(WRITTEN)})" if format in FORMATS else None
        raise MatryoshkaError(f"unknown format {format!r} to export to{only_read or did_you_mean(format, WRITTEN)}")
    target = cast(WrittenFormat, import_module(f"matryoshka.interop.{WRITTEN[format]}"))
    folder = Path(folder)
    _refuse_existing(folder, target.FILES, format, overwrite)
    members = dict.fromkeys(member for run in opened(runs) for member in run.trained())
    if not members:
        raise MatryoshkaError("no run to export was given")
    arranged = target.arrange([Ours.of(member, prefix) for member in members])
    with replaced_folder(folder) as new:
        target.write(arranged, new)
    return folder


def _refuse_existing(folder: Path, patterns: Sequence[str], format: str, overwrite: bool) -> None:
    if os.path.isfile(folder):  # which says no to a name that is too long
        raise MatryoshkaError(f"{folder}: is a file; an export is a folder, give another folder")
    refuse_unwritable(folder)
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not overwrite:
        raise MatryoshkaError(f"{folder}: exists already; give another folder, or --overwrite")
    for file in folder.rglob("*"):
        name = file.relative_to(folder).as_posix()
        if not file.is_dir() and not any(fnmatch(name, pattern) for pattern in (*patterns, *BESIDE)):
            raise MatryoshkaError(
                f"{folder}: holds {name}, which is no file of {format}, so --overwrite leaves it alone; give another"
                " folder"
            )
