"""The features of one coder in one SQLite file: statistics, examples, relations, labels and notes.

`schema` has the tables, `writer` fills a new store; SQL is in these three files only. Once a store lies in its place,
only annotations and explanations change. One of version 1, which knew no explanations, reads as one that has none, and
becomes one of version 2 at its first change.
"""

import json
import operator
import os
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any, SupportsIndex, cast

import numpy as np

from matryoshka.errors import MatryoshkaError, did_you_mean
from matryoshka.features import feature as parts
from matryoshka.features import schema
from matryoshka.features.feature import FLAGS, Feature, Neighbour, Partner, Statistics, well_formed
from matryoshka.features.schema import STATISTICS, About
from matryoshka.lm.vocabulary import alone, pieces, whole

if TYPE_CHECKING:
    import pandas
    import pyarrow

LABEL_LENGTH, NOTE_LENGTH = 200, 20_000
MOST_TOKENS = 1 << 24
"""Of a vocabulary."""
EXPLANATION_LENGTH = 1000
"""What is longer is cut."""
DAMAGE = (sqlite3.DatabaseError, zlib.error, ArithmeticError, LookupError, TypeError, ValueError)
"""What reading a file raises whose bytes have changed."""
CIRCUMSTANCES = {
    sqlite3.SQLITE_PERM, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_MISUSE,
}  # fmt: skip
"""Errors that say nothing against the file itself."""


@dataclass(frozen=True)
class Brief:
    """A few words on a feature: `name` is its label, or else its explanation, or else its summary."""

    ring: int
    count: int
    max: float | None
    name: str


class FeatureStore:
    """An open store. Reading is safe from several threads; `annotate` and `explain` are what changes it."""

    def __init__(self, path: str | Path) -> None:
        """Open the store at `path`. Raises MatryoshkaError if there is none, or a damaged one, or a newer."""
        self.path = Path(path)
        if not self.path.is_file():
            raise MatryoshkaError(f"{path}: no features here; collect them with: matryoshka features RUN")
        self._lock = RLock()
        uri = f"{self.path.resolve().as_uri()}?mode=rw"
        with self._refuse_damage():
            self._db = sqlite3.connect(uri, uri=True, check_same_thread=False, timeout=10)
            try:
                self._read_header()
            except BaseException:
                self._db.close()
                raise

    def _read_header(self) -> None:
        application, version = self._one("PRAGMA application_id")[0], self._one("PRAGMA user_version")[0]
        if application != schema.APPLICATION:
            raise MatryoshkaError(f"{self.path}: not a store of features (a database of something else)")
        if not schema.OLDEST <= version <= schema.VERSION:
            raise MatryoshkaError(
                f"{self.path}: features of version {version}, this matryoshka reads versions {schema.OLDEST} to"
                f" {schema.VERSION}; collect them anew with: matryoshka features RUN --overwrite"
            )
        if version == schema.OLDEST:  # until the first change, nothing is explained
            self._db.execute(f"CREATE TEMP TABLE {schema.EXPLANATIONS}")
        self.about = About.model_validate_json(self._one("SELECT json FROM about")[0])
        self._length = self._one("SELECT count(*) FROM features")[0]
        file = os.stat(self.path)
        if file.st_size < self._one("PRAGMA page_count")[0] * self._one("PRAGMA page_size")[0]:
            raise ValueError("its end is missing")
        self._inode = file.st_ino

    def __len__(self) -> int:
        return self._length

    def __repr__(self) -> str:
        return f"FeatureStore({str(self.path)!r}: {len(self):,} features on {self.about.tokens:,} tokens)"

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def __getitem__(self, index: SupportsIndex) -> Feature:
        """The feature `index` with all its evidence. Raises MatryoshkaError if there is none of this number."""
        index = self._check(index)
        with self._refuse_damage():
            return self._feature(index)

    def __iter__(self) -> Iterator[Feature]:
        return (self[i] for i in range(len(self)))

    def columns(self) -> dict[str, list]:
        """One list a column, one entry a feature: `index`, STATISTICS, `flags` (bits, in the order of FLAGS),
        `summary`, `tokens`, `label`, `note`, `explanation`."""
        names = ["index", *STATISTICS, "flags", "summary", "tokens", "label", "note", "explanation"]
        columns: dict[str, list] = {name: [] for name in names}
        query = (
            f"SELECT features.id, {', '.join(STATISTICS)}, flags, summary, tokens, ifnull(label, ''), ifnull(note, ''),"
            f" ifnull(text, '') FROM {schema.WITH_WORDS} ORDER BY features.id"
        )
        with self._lock, self._refuse_damage():
            cursor = self._db.execute(query)
            while rows := cursor.fetchmany(500):  # all at once, the collector of garbage would go through them often
                for column, values in zip(columns.values(), zip(*rows, strict=True), strict=True):
                    column.extend(values)
        return columns

    def table(self) -> "pandas.DataFrame":
        """The columns as a pandas table, a row a feature; each flag is a column of its own."""
        return required("pandas").DataFrame(self._flat()).set_index("index")

    def arrow(self) -> "pyarrow.Table":
        """The same as an Arrow table, for Parquet and other tools."""
        return required("pyarrow").table(self._flat())

    def _flat(self) -> dict[str, Any]:
        columns = self.columns()
        bits = np.array(columns.pop("flags"))
        return columns | {name: (bits >> i & 1).astype(bool) for i, name in enumerate(FLAGS)}

    def ranking(self, by: str, descending: bool = True) -> list[int]:
        """The features in the order of one of STATISTICS; those that have none of it last."""
        if by not in STATISTICS:
            raise MatryoshkaError(f"features cannot be sorted by {by!r}{did_you_mean(by, STATISTICS)}")
        direction = "DESC" if descending else "ASC"
        return [i for (i,) in self._all(f"SELECT id FROM features ORDER BY {by} IS NULL, {by} {direction}, id")]

    def search(self, text: str) -> list[int]:
        """The features in whose top tokens, summary, label, note or explanation `text` occurs, whatever its case."""
        sought, holds = schema.searchable(text), "instr(text, ?)"
        if len(sought) >= 3:  # what is shorter the index does not know
            sought, holds = '"' + sought.replace('"', '""') + '"', "text MATCH ?"
        return [i for (i,) in self._all(f"SELECT rowid FROM search WHERE {holds} ORDER BY rowid", sought)]

    def annotate(self, index: SupportsIndex, label: str | None = None, note: str | None = None) -> tuple[str, str]:
        """Set a feature's label, its note, or both; "" removes one. What it has now.

        Another process may write at the same time. Raises MatryoshkaError for a text that is too long, for a file that
        cannot be written, and for one that has been collected anew since it was opened.
        """
        index = self._check(index)
        for name, given, most in (("label", label, LABEL_LENGTH), ("note", note, NOTE_LENGTH)):
            if given is not None and len(given) > most:
                raise MatryoshkaError(f"feature {index}: a {name} of {len(given):,} characters; at most {most:,}")
        with self._changing():
            [(old_label, old_note)] = self._all("SELECT label, note FROM annotations WHERE id = ?", index) or [("", "")]
            label = old_label if label is None else well_formed(label).strip()
            note = old_note if note is None else well_formed(note)
            schema.set_words(self._db, "annotations", index, label, note)
        return label, note

    def explain(self, explanations: Mapping[int, tuple[str, str]]) -> None:
        """Set the explanations of features, each with its author ("rule", a chat model's name); "" removes one.

        All of them or none. Labels and notes stay as they are. Raises MatryoshkaError as `annotate` does.
        """
        checked = {self._check(index): words for index, words in explanations.items()}
        with self._changing():
            for index, (text, author) in checked.items():
                text = well_formed(text).strip()[:EXPLANATION_LENGTH]
                schema.set_words(self._db, "explanations", index, text, well_formed(author) if text else "")

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """A transaction that no other process writes in between."""
        with self._lock, self._refuse_damage(), self._db:
            self._db.execute("BEGIN IMMEDIATE")
            if not self.path.exists() or os.stat(self.path).st_ino != self._inode:
                raise MatryoshkaError(f"{self.path}: has been replaced since it was opened; open it again to change it")
            if self._one("PRAGMA user_version")[0] == schema.OLDEST:
                self._db.execute(f"CREATE TABLE main.{schema.EXPLANATIONS}")
                self._db.execute(f"PRAGMA user_version = {schema.VERSION}")
            self._db.execute("DROP TABLE IF EXISTS temp.explanations")
            yield

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Nobody writes into the file meanwhile; who waits to finds another one in its place, if it is replaced."""
        with self._lock, self._refuse_damage(), self._db:
            self._db.execute("BEGIN IMMEDIATE")
            yield

    def explanations(self) -> dict[int, tuple[str, str]]:
        """(text, author) of the features that have one."""
        return {i: (text, author) for i, text, author in self._all("SELECT id, text, author FROM explanations")}

    def annotations(self) -> dict[int, tuple[str, str]]:
        """(label, note) of the features that have any."""
        return {i: (label, note) for i, label, note in self._all("SELECT id, label, note FROM annotations")}

    def windows(self, numbers: Iterable[int]) -> dict[int, list[int]]:
        """The tokens of windows that examples lie in, by their numbers."""
        query = "SELECT id, tokens FROM windows WHERE id IN (SELECT value FROM json_each(?))"
        with self._refuse_damage():
            rows = self._all(query, json.dumps(list(map(int, numbers))))
            return {i: np.frombuffer(zlib.decompress(blob), "<u4").tolist() for i, blob in rows}

    @property
    def vocabulary(self) -> list[bytes]:
        """The bytes of each token."""
        with self._refuse_damage():
            return self._vocabulary[0]

    def pieces(self, tokens: Sequence[int]) -> list[str]:
        """The text of each token of a sequence. Raises MatryoshkaError for one that the vocabulary has not."""
        vocabulary, whole = self._vocabulary
        if tokens and not 0 <= min(tokens) <= max(tokens) < len(vocabulary):
            raise MatryoshkaError(
                f"{self.path}: tokens {min(tokens)} to {max(tokens):,} of 0 to {len(vocabulary) - 1:,}"
            )
        texts = [whole[i] for i in tokens]
        return pieces(tokens, vocabulary) if None in texts else cast(list[str], texts)

    @cached_property
    def _vocabulary(self) -> tuple[list[bytes], list[str | None]]:
        """The bytes of each token, and its text if they are whole characters."""
        vocabulary: list[bytes] = []
        with self._refuse_damage():
            for i, text in self._all("SELECT id, bytes FROM vocabulary ORDER BY id"):
                if not isinstance(text, bytes) or not len(vocabulary) <= i < MOST_TOKENS:
                    raise ValueError(f"token {i} of the vocabulary is none")
                vocabulary += [b""] * (i - len(vocabulary)) + [text]
        return vocabulary, [whole(token) for token in vocabulary]

    def brief(self, indices: Iterable[SupportsIndex]) -> dict[int, Brief]:
        """A few words on each feature. Raises MatryoshkaError if there is none of one of these numbers."""
        wanted = [self._check(i) for i in indices]
        query = (
            f"SELECT features.id, ring, count, max, coalesce(nullif(label, ''), text, summary) FROM {schema.WITH_WORDS}"
            " WHERE features.id IN (SELECT value FROM json_each(?))"
        )
        return {i: Brief(*rest) for i, *rest in self._all(query, json.dumps(wanted))}

    def _check(self, index: SupportsIndex) -> int:
        index = operator.index(index)  # NumPy's integers, which SQLite does not know
        if not 0 <= index < len(self):
            raise MatryoshkaError(f"{self.path}: no feature {index}; there are 0 to {len(self) - 1:,}")
        return index

    def _feature(self, index: int) -> Feature:
        ring, count, density, mean, square, largest, entropy, first, _, flags, summary, *words = self._one(
            f"SELECT {', '.join(STATISTICS)}, flags, summary, ifnull(label, ''), ifnull(note, ''), ifnull(text, ''),"
            f" ifnull(author, '') FROM {schema.WITH_WORDS} WHERE features.id = ?",
            index,
        )
        label, note, explanation, author = words
        arrays = schema.unpack(self._one("SELECT arrays FROM details WHERE id = ?", index)[0])
        parents = self._all("SELECT parent, coverage FROM parents WHERE child = ?", index)
        children = self._all("SELECT child, coverage FROM parents WHERE parent = ?", index)
        coactive, cosine = (parts.rows(arrays, f"{of}_other", f"{of}_value") for of in ("coactive", "cosine"))
        brief = self.brief({other for pairs in (parents, children, coactive, cosine) for other, _ in pairs})

        def partner(other: int, given_this: float, given_other: float) -> Partner:
            known = brief[other]
            lift = given_this * self.about.tokens / known.count
            return Partner(other, known.ring, known.name, given_this, min(1.0, given_other), lift)

        return Feature(
            index=index,
            ring=ring,
            label=label,
            note=note,
            explanation=explanation,
            explained_by=author,
            summary=summary,
            flags=[name for i, name in enumerate(FLAGS) if flags >> i & 1],
            statistics=Statistics(density, count, mean, square, largest, entropy, first),
            histogram=parts.histogram(arrays),
            top_tokens=parts.top_tokens(arrays, self._token),
            groups=parts.groups(arrays, self._windows),
            logits=parts.logits(arrays, self._token),
            cosine=[Neighbour(other, brief[other].ring, brief[other].name, value) for other, value in cosine],
            coactive=[partner(other, p, p * count / brief[other].count) for other, p in coactive],
            parents=_by_lift(partner(o, p, p * count / brief[o].count) for o, p in parents),
            children=_by_lift(partner(o, min(1.0, p * brief[o].count / count), p) for o, p in children),
        )

    def _token(self, number: int) -> str:
        return alone(self._vocabulary[0][number])

    def _windows(self, numbers: Iterable[int]) -> dict[int, list[str]]:
        return {i: self.pieces(tokens) for i, tokens in self.windows(numbers).items()}

    def _one(self, query: str, *values: object) -> tuple:
        return self._all(query, *values)[0]

    def _all(self, query: str, *values: object) -> list[tuple]:
        with self._lock, self._refuse_damage():
            return self._db.execute(query, values).fetchall()

    @contextmanager
    def _refuse_damage(self) -> Iterator[None]:
        try:
            yield
        except DAMAGE as error:
            said = str(error).splitlines()[0] if str(error) else type(error).__name__
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # without what its extended codes add
            if code in CIRCUMSTANCES or isinstance(error, sqlite3.ProgrammingError):  # such as of a closed store
                message = f"cannot be used: {said}"
            elif code == sqlite3.SQLITE_NOTADB:
                message = f"not a store of features, or a damaged one ({said})"
            else:
                message = f"damaged ({said}); collect the features anew with: matryoshka features RUN --overwrite"
            raise MatryoshkaError(f"{self.path}: {message}") from error


def _by_lift(partners: Iterable[Partner]) -> list[Partner]:
    return sorted(partners, key=lambda partner: -partner.lift)


def required(name: str) -> Any:
    """The module that tables are made with. Raises MatryoshkaError without it."""
    try:
        return __import__(name)
    except ImportError:
        raise MatryoshkaError(f"tables need {name}: pip install 'matryoshka-sae[notebook]'") from None
