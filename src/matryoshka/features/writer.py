"""A new store of features: written under a temporary name, and renamed when it is whole."""

import sqlite3
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from matryoshka.features import schema
from matryoshka.features.schema import STATISTICS, About
from matryoshka.features.store import FeatureStore
from matryoshka.files import sync, temporary


@dataclass(frozen=True)
class Row:
    """A feature as `Writer` takes it."""

    index: int
    statistics: dict[str, float | int | None]
    flags: int
    summary: str
    tokens: str
    arrays: dict[str, np.ndarray]
    """By the names of schema.LAYOUT."""


class Writer:
    """Fills a new store; `path` shows it only once `finish` has been called."""

    def __init__(self, path: Path, vocabulary: Sequence[bytes]) -> None:
        self.path, self._new = path, temporary(path, "new")
        self._db = sqlite3.connect(self._new)
        self._db.execute("PRAGMA synchronous = OFF")  # it is fsynced once, before the rename
        self._db.execute("PRAGMA journal_mode = OFF")
        self._db.executescript(schema.SCHEMA)
        self._db.executemany("INSERT INTO vocabulary VALUES (?, ?)", enumerate(vocabulary))

    def features(self, rows: Iterable[Row]) -> None:
        """Add features."""
        columns = "?, " * (len(STATISTICS) + 3) + "?"
        for row in rows:
            numbers = (row.statistics[name] for name in STATISTICS)
            values = (row.index, *numbers, row.flags, row.summary, row.tokens)
            self._db.execute(f"INSERT INTO features VALUES ({columns})", values)
            self._db.execute("INSERT INTO details VALUES (?, ?)", (row.index, schema.pack(row.arrays)))
            text = schema.searchable(row.tokens, row.summary)
            self._db.execute("INSERT INTO search (rowid, text) VALUES (?, ?)", (row.index, text))

    def windows(self, tokens: Iterable[tuple[int, np.ndarray]]) -> None:
        """Add the tokens of windows, by their numbers."""
        rows = ((number, zlib.compress(window.astype("<u4").tobytes(), 3)) for number, window in tokens)
        self._db.executemany("INSERT INTO windows VALUES (?, ?)", rows)

    def parents(self, relations: Iterable[tuple[int, int, float]]) -> None:
        """Add (child, parent, coverage)."""
        self._db.executemany("INSERT INTO parents VALUES (?, ?, ?)", relations)

    def finish(self, about: About, annotations: schema.Words, explanations: schema.Words | None = None) -> FeatureStore:
        """Say what it holds, take over labels, notes and explanations, and put it in its place."""
        self._db.execute("INSERT INTO about VALUES (?)", (about.model_dump_json(),))
        for index, words in annotations.items():
            schema.set_words(self._db, "annotations", index, *words)
        for index, words in (explanations or {}).items():
            schema.set_words(self._db, "explanations", index, *words)
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
