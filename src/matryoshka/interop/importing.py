"""From foreign files to coders and runs: the format is recognised by what lies there, and a run is whole or not there.

    import_coder    one coder, in memory
    import_run      a run: of one coder, or of several, one member each; one after another in memory

Both take a folder or file here, a repository on the hub, or a release that is known by name (`sources`).
"""

import json
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

from matryoshka.coder import pretrained
from matryoshka.coder.coder import SparseCoder
from matryoshka.errors import MatryoshkaError, did_you_mean
from matryoshka.files import replaced_folder
from matryoshka.interop import FORMATS, registry
from matryoshka.interop.foreign import Facts, Foreign, facts_of
from matryoshka.interop.sources import Located, locate
from matryoshka.run import CODER, Run
from matryoshka.version import __version__

LABEL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.,=+-]{0,199}")
"""What a member of a run may be called: it is a folder's name."""
LOOKED_INTO = 100
"""Folders within one that holds no coder."""


@runtime_checkable
class Format(Protocol):
    """The face of a format's file: see the room's docstring."""

    def recognises(self, folder: Path) -> bool: ...
    def read(self, folder: Path) -> Iterator[Foreign]: ...


def known_format(format: str | None) -> str | None:
    """The format, if it is one that is read; otherwise raise MatryoshkaError."""
    if format is not None and format not in FORMATS:
        raise MatryoshkaError(f"unknown format {format!r}{did_you_mean(format, FORMATS)}")
    return format


def recognised(path: Path) -> str:
    """The format of what lies at `path`. Raises MatryoshkaError where it is none that is read."""
    folder = path.parent if path.is_file() else path
    for name in FORMATS:
        if _reader(name).recognises(folder):
            return name
    if (folder / CODER).is_file() and (folder / "weights.safetensors").is_file():
        raise MatryoshkaError(f"{folder}: holds a coder of matryoshka, which every command takes as a run as it is")
    below = (inner for depth in ("*/", "*/*/") for inner in sorted(folder.glob(depth)))
    for inner in islice(below, LOOKED_INTO):
        if any(_reader(name).recognises(inner) for name in FORMATS):
            raise MatryoshkaError(f"{folder}: holds no coder itself; import a folder in it, such as {inner}")
    raise MatryoshkaError(f"{folder}: holds no coder in a format known here ({', '.join(FORMATS)})")


def foreign_coders(path: Path, format: str | None = None) -> Iterator[Foreign]:
    """The coders in a foreign folder, or of one of its files, one after another. Raises MatryoshkaError where its
    format is not known, or what lies there is damaged or no function of ours."""
    if not path.exists():
        raise MatryoshkaError(f"{path}: no such folder")
    return _reader(known_format(format) or recognised(path)).read(path.parent if path.is_file() else path)


def _reader(format: str) -> Format:
    return cast(Format, import_module(f"matryoshka.interop.{FORMATS[format]}"))


def import_coder(
    source: str | Path,
    format: str | None = None,
    part: str | None = None,
    model: str | None = None,
    read: str | None = None,
    write: str | None = None,
    file: str | None = None,
) -> SparseCoder:
    """The coder of a source (see `import_run`), in eval mode, in raw units; needs no language model, and of a folder
    no hub.

    Its `card` says what its files say of where it belongs, with `model`, `read` and `write` in place of that; None
    where too little is known. `part` names one of several coders. Raises MatryoshkaError where there is none, or
    several, or what lies there is no function of ours.
    """
    asked = facts_of(model, read, write)
    known_format(format)
    located = locate(str(source), file)
    foreign = _only(located.source, located_coders(located, format), part)
    return placed(foreign, asked)


def located_coders(located: Located, format: str | None = None) -> Iterator[Foreign]:
    """The coders of a source, one after another, with what is known of it in place of what they say; of a file of
    several that lie in one folder, the one that is called as it is."""
    coders = foreign_coders(located.path, format or located.format)
    if located.path.is_file():
        coders = (foreign for foreign in coders if foreign.label in (located.path.stem, "coder"))
    return (foreign._replace(facts=foreign.facts.overlaid(located.facts)) for foreign in coders)


def placed(foreign: Foreign, asked: Facts) -> SparseCoder:
    """The coder with its card, where enough is known for one."""
    foreign.coder.card = foreign.facts.overlaid(asked).card(foreign.origin)
    return foreign.coder


def _only(source: str, coders: Iterator[Foreign], part: str | None) -> Foreign:
    """The one coder, or the one that `part` names."""
    if part is not None:
        return next(_part(source, coders, part))
    if (foreign := next(coders, None)) is None:
        raise MatryoshkaError(f"{source}: holds no coder")
    if (other := next(coders, None)) is not None:
        raise MatryoshkaError(
            f"{source}: holds several coders, {foreign.label!r} and {other.label!r} among them: give one as part="
        )
    return foreign


def _part(source: str, coders: Iterator[Foreign], part: str) -> Iterator[Foreign]:
    """The coder of that label alone. Raises MatryoshkaError where there is none."""
    labels = []
    for foreign in coders:
        if foreign.label == part:
            yield foreign
            return
        labels.append(foreign.label)
    raise MatryoshkaError(f"{source}: no coder {part!r}{did_you_mean(part, labels)}")


def import_run(
    source: str | Path,
    file: str | None = None,
    format: str | None = None,
    part: str | None = None,
    model: str | None = None,
    read: str | None = None,
    write: str | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
) -> Run:
    """Make a run of the coders of others: a member each where there are several.

    `source`: a folder or file here; `user/repo[/sub/folder][@revision]` on the hub; or a release that is known by name
    (`releases`). `file`: one of its files. `format`: in place of what it is recognised by; `part`: one of several
    coders; `model`, `read`, `write`: where they belong, in place of what the files say. `out` is the run's folder
    (default: runs/imported/<base model>/<name>). Raises MatryoshkaError, leaving nothing behind, where that cannot be.
    """
    asked = facts_of(model, read, write)
    known_format(format)
    if out is not None:
        Run.refuse_existing(Path(out), overwrite)  # before anything is fetched
    located = locate(str(source), file)
    format = format or located.format or recognised(located.path)
    coders = located_coders(located, format)
    if part is not None:
        coders = _part(located.source, coders, part)
    origin = {"source": located.source, "revision": located.revision, "format": format, "files": located.checksums()}
    return new_run(coders, located.name, origin, asked, out, overwrite)


def new_run(
    coders: Iterator[Foreign],
    name: str,
    origin: Mapping[str, Any],
    asked: Facts = Facts(),  # noqa: B008
    out: str | Path | None = None,
    overwrite: bool = False,
) -> Run:
    """A run of these coders, which are read one after another; whole or not at all. `origin`, JSON values that name at
    least their `source`, is kept in its provenance.json; `asked` is what the user says of where they belong.

    Raises MatryoshkaError where that is not known, where something lies in the way, and for whatever reading raises.
    """
    if (foreign := next(coders, None)) is None:
        raise MatryoshkaError(f"{origin['source']}: holds no coder")
    facts = foreign.facts.overlaid(asked)
    facts.refuse_unknown(origin["source"])
    base = Path(str(facts.model)).name.lower().removesuffix(".gguf")
    path = Path(out) if out is not None else Path("runs") / "imported" / base / name
    Run.refuse_existing(path, overwrite)
    provenance = {
        "imported": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"matryoshka-sae": __version__},
        **origin,
    }
    with replaced_folder(path) as new:
        labels: list[str] = []
        while foreign is not None:
            _refuse_label(foreign.label, labels, asked, origin["source"])
            foreign.facts.overlaid(asked).refuse_unknown(f"{origin['source']}: {foreign.label}")
            placed(foreign, asked).save(new / foreign.label / "coder")
            labels.append(foreign.label)
            foreign = None  # one in memory at a time
            foreign = next(coders, None)
        if len(labels) == 1:
            (new / labels[0]).rename(new / ".only")
            (new / ".only" / "coder").rename(new / "coder")
            (new / ".only").rmdir()
        Run(new).provenance.write_text(json.dumps(provenance, indent=2) + "\n", encoding="utf-8")
    return Run(path)


def _refuse_label(label: str, before: list[str], asked: Facts, source: str) -> None:
    """Raise MatryoshkaError for a coder that can be no further member of its run."""
    if not LABEL.fullmatch(label) or label in before:
        what = "twice" if label in before else "which is no name of a folder"
        raise MatryoshkaError(f"{source}: holds a coder called {label!r}, {what}; choose one with --part")
    if before and (asked.read or asked.write):
        raise MatryoshkaError(
            f"{source}: holds several coders, and --read and --write name the sites of one: choose it with --part"
        )


def _pretrained(repository: str, id: str, revision: str | None) -> SparseCoder:
    """What `SparseCoder.from_pretrained` reads."""
    at = "" if revision is None else f"@{revision}"
    release = registry.releases().get(repository)
    if release is not None and release.coders is None:
        return import_coder(f"{repository}{at}", part=id)
    return import_coder(f"{repository}/{id}{at}")


pretrained.register(_pretrained)
