"""What a source of coders is: a folder or file here, a release that is known by name, or a repository on the hub.

What looks like a path, or is there, is never sought on the hub. What the registry knows of a release is known of its
repository too, whichever it is asked for by.
"""

from pathlib import Path
from typing import NamedTuple

from matryoshka.errors import MatryoshkaError
from matryoshka.files import checksum
from matryoshka.interop import hub, registry
from matryoshka.interop.foreign import Facts, facts_of

DESCRIBE, HOLD = (".json", ".yaml"), (".safetensors", ".npz", ".pt")
"""Endings of the files that a coder may be made of: of what describes one, and of what holds its weights."""


class Located(NamedTuple):
    """Files of coders on this machine, and what is known of them beside what they say."""

    path: Path
    """A folder, or one file."""
    source: str
    """Where they come from, as it can be asked for again."""
    name: str
    """Of a run that is made of them."""
    revision: str | None = None
    """The commit of a repository."""
    format: str | None = None
    facts: Facts = Facts()

    def checksums(self) -> dict[str, str]:
        """sha256 of every file in the folder that a coder may be made of, by name; of one file, that and what describes
        it."""
        alone = self.path.is_file()
        folder = self.path.parent if alone else self.path
        files = [self.path, *folder.iterdir()] if alone else [*folder.iterdir(), *folder.glob("checkpoints/*")]
        endings = DESCRIBE if alone else (*DESCRIBE, *HOLD)
        kept = sorted({file for file in files if file == self.path or (file.suffix in endings and file.is_file())})
        return {file.relative_to(folder).as_posix(): checksum(file) for file in kept}


def locate(source: str, file: str | None = None) -> Located:
    """Files of coders by where they are, fetched where they are not here. Raises MatryoshkaError, in one line, where
    nothing can be had under that name."""
    path = Path(source).expanduser()
    if source.startswith((".", "/", "~")) or path.exists() or not source:
        return _here(path, source, file)
    name, _, revision = source.partition("@")
    if (listed := registry.find(name)) is not None:
        if file is not None:
            raise MatryoshkaError(f"{source}: the release says where its coders lie; leave --file out")
        place = hub.HubPlace(listed.repository, listed.folder, revision or None, listed.file)
        return _fetched(place, listed, "-".join(name.split("/")))
    if "/" not in name:
        hint = registry.nearest(name) or "; expected a folder, user/repo of the hub, or one of: matryoshka releases"
        raise MatryoshkaError(f"{source!r}: neither a folder here nor a release that is known by name{hint}")
    place = hub.parse(source, file)
    listed = registry.known(place.repository, place.own_folder)
    return _fetched(place, listed, "-".join([place.repository.split("/")[1], *place.own_folder.split("/")]).strip("-"))


def _here(path: Path, source: str, file: str | None) -> Located:
    if not path.exists():
        raise MatryoshkaError(f"{source}: no such folder or file")
    if file is not None and not (path / file).is_file():
        raise MatryoshkaError(f"{path / file}: no such file")
    path = (path / file if file else path).resolve()
    return Located(path, str(path), path.parent.name if path.is_file() else path.name)


def _fetched(place: hub.HubPlace, listed: registry.Listed | None, name: str) -> Located:
    try:
        path, commit = hub.fetch(place)
    except MatryoshkaError as error:
        raise MatryoshkaError(f"{error}{registry.nearest(str(place))}") from None
    source = str(place._replace(revision=commit))
    if listed is None:
        return Located(path, source, name, commit)
    return Located(path, source, name, commit, listed.format, facts_of(listed.model, listed.read, listed.write))
