"""Coders of repositories and of other programs, by name.

This room knows of neither. Who does registers the function that reads them (`matryoshka.interop.importing`, as soon as
it is imported, which `matryoshka.SparseCoder` sees to), and `SparseCoder.from_pretrained` asks that one.
"""

from collections.abc import Callable
from typing import Any

from matryoshka.errors import MatryoshkaError

_registered: list[Callable[[str, str, str | None], Any]] = []
"""What reads the coder of a repository or release, by its id and revision; at most one."""


def register(read_coder: Callable[[str, str, str | None], Any]) -> None:
    """Let `read` ask this function, and no other."""
    _registered[:] = [read_coder]


def read(repository: str, id: str, revision: str | None) -> Any:
    """The SparseCoder that the registered function reads. Raises MatryoshkaError where none is registered."""
    if not _registered:
        raise MatryoshkaError(
            "nobody here reads coders of repositories yet: take the class from the package, matryoshka.SparseCoder"
        )
    [read_coder] = _registered
    return read_coder(repository, id, revision)
