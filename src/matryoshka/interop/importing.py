"""From foreign files to coders and runs: the format is recognised by what lies there, and nothing is written before all
of it has been read."""

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

from matryoshka.coder.coder import SparseCoder
from matryoshka.errors import MatryoshkaError, did_you_mean
from matryoshka.interop import FORMATS
from matryoshka.interop.foreign import Facts, Foreign
from matryoshka.lm.sites import Site


class Format(Protocol):
    """The face of a format's file: see the room's docstring."""

    def recognises(self, folder: Path) -> bool: ...
    def read(self, folder: Path) -> Iterator[Foreign]: ...


def foreign_coders(folder: Path, format: str | None = None) -> Iterator[Foreign]:
    """The coders in a foreign folder, one after another. Raises MatryoshkaError where its format is not known, or
    what lies there is damaged or no function of ours."""
    folder = folder if folder.is_dir() else folder.parent if folder.is_file() else folder
    if not folder.is_dir():
        raise MatryoshkaError(f"{folder}: no such folder")
    if format is not None and format not in FORMATS:
        raise MatryoshkaError(f"unknown format {format!r}{did_you_mean(format, FORMATS)}")
    for name in FORMATS if format is None else (format,):
        reader = cast(Format, import_module(f"matryoshka.interop.{FORMATS[name]}"))
        if format is not None or reader.recognises(folder):
            return reader.read(folder)
    raise MatryoshkaError(f"{folder}: holds no coder in a format known here ({', '.join(FORMATS)})")


def import_coder(
    folder: str | Path,
    format: str | None = None,
    part: str | None = None,
    model: str | None = None,
    read: str | None = None,
    write: str | None = None,
) -> SparseCoder:
    """The coder in a foreign folder, in eval mode, in raw units; needs no language model and no hub.

    Its `card` says what its files say of where it belongs, with `model`, `read` and `write` in place of that; None
    where too little is known. `part` names one of several coders. Raises MatryoshkaError where there is none, or
    several, or what lies there is no function of ours.
    """
    asked, labels = facts_asked(model, read, write), []
    for foreign in foreign_coders(Path(folder), format):
        labels.append(foreign.label)
        if part in (None, foreign.label):
            if part is None and len(labels) > 1:
                break
            chosen = foreign
            if part is not None:
                return placed(chosen, asked)
    if part is not None:
        raise MatryoshkaError(f"{folder}: no coder {part!r}{did_you_mean(part, labels)}")
    if len(labels) > 1:
        raise MatryoshkaError(f"{folder}: holds several coders, the first of them {labels[0]!r}: give one as part=")
    return placed(chosen, asked)


def facts_asked(model: str | None, read: str | None, write: str | None) -> Facts:
    """What the user says of where a coder belongs."""
    sites = (None if site is None else Site.parse(site) for site in (read, write))
    return Facts(model, *sites)


def placed(foreign: Foreign, asked: Facts) -> SparseCoder:
    """The coder with its card, where enough is known for one."""
    coder = foreign.coder
    coder.card = foreign.facts.overlaid(asked).card(foreign.origin)
    return coder
