"""A new store of features: written under a temporary name, and renamed when it is whole."""

import sqlite3
import uuid
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from matryoshka.features import details
from matryoshka.features.schema import APPLICATION, SCHEMA, STATISTICS, VERSION, About, searchable, set_annotation
from matryoshka.features.store import FeatureStore
from matryoshka.files import sync


@dataclass(frozen=True)
class Row:
    """A feature as `Writer` takes it."""

    index: int
    statistics: dict[str, float | int | None]
    flags: int
    summary: str
    tokens: str
    arrays: dict[str, np.ndarray]
    """See features/details.py."""


class Writer:
    """Fills a new store; `path` shows it only once `finish` has been called."""

    def __init__(self, path: Path, vocabulary: Sequence[bytes]) -> None:
        self.path, self._new = path, path.with_name(f".new-{path.name}-{uuid.uuid4().hex[:8]}")
        self._db = sqlite3.connect(self._new)
        self._db.execute("PRAGMA synchronous = OFF")  # it is fsynced once, before the rename
        self._db.execute("PRAGMA journal_mode = OFF")
        self._db.executescript(f"PRAGMA application_id = {APPLICATION}; PRAGMA user_version = {VERSION}; {SCHEMA}")
        self._db.executemany("INSERT INTO vocabulary VALUES (?, ?)", enumerate(vocabulary))

    def features(self, rows: Iterable[Row]) -> None:
        """Add features."""
        columns = "?, " * (len(STATISTICS) + 3) + "?"
        for row in rows:
            numbers = [row.statistics[name] for name in STATISTICS]
            self._db.execute(
                f"INSERT INTO features VALUES ({columns})", (row.index, *numbers, row.flags, row.summary, row.tokens)
            )
            self._db.execute("INSERT INTO details VALUES (?, ?)", (row.index, details.pack(row.arrays)))
            text = searchable(row.tokens, row.summary)
            self._db.execute("INSERT INTO search (rowid, text) VALUES (?, ?)", (row.index, text))

    def windows(self, tokens: Iterable[tuple[int, np.ndarray]]) -> None:
        """Add the tokens of windows, by their numbers."""
        rows = ((number, zlib.compress(window.astype("<u4").tobytes(), 3)) for number, window in tokens)
        self._db.executemany("INSERT INTO windows VALUES (?, ?)", rows)

    def parents(self, relations: Iterable[tuple[int, int, float]]) -> None:
        """Add (child, parent, coverage)."""
        self._db.executemany("INSERT INTO parents VALUES (?, ?, ?)", relations)

    def finish(self, about: About, annotations: Mapping[int, tuple[str, str]]) -> FeatureStore:
        """Say what it holds, take over labels and notes, and put it in its place."""
        self._db.execute("INSERT INTO about VALUES (?)", (about.model_dump_json(),))
        for index, (label, note) in annotations.items():
            set_annotation(self._db, index, label, note)
        self._db.commit()
        self._db.close()
        sync(self._new)
        # what a killed writer of the old store left would be played back into the new one
        self.path.with_name(f"{self.path.name}-journal").unlink(missing_ok=True)
        self._new.replace(self.path)
        sync(self.path.parent)
        return FeatureStore(self.path)

    def abandon(self) -> None:
        """Delete what was written, if it is not finished."""
        self._db.close()
        self._new.unlink(missing_ok=True)
