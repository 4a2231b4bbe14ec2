"""The releases of others that are loaded most, by the names that they are known by: registry.yaml.

    gpt2-small-res-jb                                 a release: a repository of many coders
    gpt2-small-res-jb/blocks.8.hook_resid_pre         one of them

A release says where its coders lie and what their files do not: model, sites, format. Imports no torch.
"""

import re
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import field_validator

from matryoshka.config import Section, read_yaml
from matryoshka.errors import MatryoshkaError, did_you_mean
from matryoshka.interop.hub import refuse_no_repository, refuse_unsafe

FILE = Path(__file__).parent / "registry.yaml"
FIELD = re.compile(r"\{([a-z0-9_]+)\}")


class Release(Section):
    """Names in braces stand for what differs from coder to coder: `layer` is a number, all others any word."""

    repository: str
    model: str
    """As `--model` takes it."""
    what: str
    """In a line."""
    format: str | None = None
    """By what lies there, where nothing is said."""
    coders: str | None = None
    """How its coders are called; none: the repository is one set."""
    folder: str | None = None
    """Where they lie; as they are called where nothing is said."""
    file: str | None = None
    """The file that each is, where they lie in one folder: the repository itself."""
    read: str | None = None
    """The site, where the files do not say it."""
    write: str | None = None
    """See there; none beside a `read`: the same."""
    example: str | None = None
    """One of `coders`."""
    refused: str | None = None
    """Why none of them can be read."""

    @field_validator("coders", "folder", "file")
    @classmethod
    def _safe(cls, path: str | None) -> str | None:
        try:
            return None if path is None else refuse_unsafe(path, "registry.yaml")
        except MatryoshkaError as error:
            raise ValueError(str(error)) from None

    @field_validator("repository")
    @classmethod
    def _of_the_hub(cls, repository: str) -> str:
        try:
            refuse_no_repository(repository)
        except MatryoshkaError as error:
            raise ValueError(str(error)) from None
        return repository


class Listed(NamedTuple):
    """A coder of a release."""

    release: str
    id: str
    """"" of a release that is one set."""
    repository: str
    folder: str
    file: str | None
    format: str | None
    model: str
    read: str | None
    write: str | None


@cache
def _all() -> dict[str, Release]:
    return {name: Release.build(fields) for name, fields in read_yaml(FILE).items()}


def releases(pattern: str = "") -> dict[str, Release]:
    """Those whose name, repository, model or description holds `pattern`, by name. Raises MatryoshkaError if none
    does."""
    wanted = pattern.lower()
    matching = {
        name: release
        for name, release in _all().items()
        if any(wanted in text.lower() for text in (name, release.repository, release.model, release.what))
    }
    if not matching:
        raise MatryoshkaError(f"no release here is of {pattern!r}{did_you_mean(pattern, _all())}")
    return matching


def find(source: str) -> Listed | None:
    """The coder that `release/id` names, or the set that `release` names; None where the first word is no release.
    Raises MatryoshkaError where the release has no such coder, or none that can be read."""
    name, _, id = source.partition("/")
    if (release := _all().get(name)) is None:
        return None
    if release.refused:
        raise MatryoshkaError(f"{name}: {release.refused}")
    if release.coders is None:
        if id:
            raise MatryoshkaError(f"{source}: the release is one set: import {name} alone, and choose with --part {id}")
        return _listed(name, release, "", {})
    fields = _fields(release.coders, id)
    if fields is None:
        what = f"has no coder {id!r}" if id else "has several coders"
        raise MatryoshkaError(
            f"{name}: {what}; they are called {name}/{release.coders}, such as {name}/{release.example}"
        )
    return _listed(name, release, id, fields)


def known(repository: str, folder: str) -> Listed | None:
    """What is known here of a folder of a repository."""
    for name, release in _all().items():
        if release.repository == repository and not release.refused and not release.file:
            pattern = release.folder or release.coders or ""
            if (fields := _fields(pattern, folder)) is not None:
                return _listed(name, release, (release.coders or "").format(**fields), fields)
    return None


def nearest(source: str) -> str:
    """The release that may have been meant, for the end of a message."""
    return did_you_mean(source.partition("/")[0], _all(), otherwise="", cutoff=0.75)


def _fields(pattern: str, text: str) -> dict[str, Any] | None:
    """What stands in `text` where `pattern` has names in braces; None where the text is another."""
    parts = FIELD.split(pattern)
    kinds = ("[0-9]{1,4}" if name == "layer" else "[A-Za-z0-9_.+-]+" for name in parts[1::2])
    named = (f"(?P<{name}>{kind})" for name, kind in zip(parts[1::2], kinds, strict=True))
    between = map(re.escape, parts[::2])
    expression = "".join(part + next(named, "") for part in between)
    matched = re.fullmatch(expression, text)
    if matched is None or ".." in text.split("/"):
        return None
    return matched.groupdict()


def _listed(name: str, release: Release, id: str, fields: dict[str, Any]) -> Listed:
    folder = "" if release.file else (release.folder or release.coders or "").format(**fields)
    file, read, write = (
        None if pattern is None else pattern.format(**fields) for pattern in (release.file, release.read, release.write)
    )
    return Listed(name, id, release.repository, folder, file, release.format, release.model, read, write)
