"""The tables of a store of features, and how the words on a feature are kept and found.

about         one row: what was collected, of which coder, on which text (`About`)
features      a row a feature: what one sorts, filters and searches by
details       a row a feature: arrays (histogram, examples, neighbours …), compressed: see LAYOUT
windows       the tokens of the windows that examples lie in
vocabulary    the bytes of each token
parents       (child, parent, coverage)
annotations   the user's labels and notes
explanations  a program's words on a feature, and whose they are; no reader's label is ever touched by them
search        full-text index (trigrams) over tokens, summaries, labels, notes and explanations
"""

import sqlite3
import zlib
from collections.abc import Mapping
from datetime import date
from itertools import accumulate
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from matryoshka.features.feature import well_formed

APPLICATION = 0x4D747279  # "Mtry" in the file's header
VERSION, OLDEST = 2, 1
EXPLANATIONS = "explanations (id INTEGER PRIMARY KEY, text TEXT NOT NULL, author TEXT NOT NULL)"
SCHEMA = f"""
PRAGMA application_id = {APPLICATION};
PRAGMA user_version = {VERSION};
CREATE TABLE about (json TEXT NOT NULL);
CREATE TABLE features (
    id INTEGER PRIMARY KEY, ring INTEGER, count INTEGER, density REAL, mean REAL, mean_square REAL, max REAL,
    entropy REAL, first REAL, cosine REAL, flags INTEGER, summary TEXT, tokens TEXT
);
CREATE TABLE details (id INTEGER PRIMARY KEY, arrays BLOB NOT NULL);
CREATE TABLE windows (id INTEGER PRIMARY KEY, tokens BLOB NOT NULL);
CREATE TABLE vocabulary (id INTEGER PRIMARY KEY, bytes BLOB NOT NULL);
CREATE TABLE parents (child INTEGER, parent INTEGER, coverage REAL, PRIMARY KEY (child, parent)) WITHOUT ROWID;
CREATE INDEX children ON parents (parent);
CREATE TABLE annotations (id INTEGER PRIMARY KEY, label TEXT NOT NULL, note TEXT NOT NULL);
CREATE TABLE {EXPLANATIONS};
CREATE VIRTUAL TABLE search USING fts5 (text, tokenize = 'trigram');
"""
STATISTICS = ("ring", "count", "density", "mean", "mean_square", "max", "entropy", "first", "cosine")
"""What features can be sorted by, besides their index."""
WITH_WORDS = "features LEFT JOIN annotations USING (id) LEFT JOIN explanations USING (id)"


LAYOUT = {
    "histogram": "<i4",  # counts of the bins …
    "range": "<f8",  # … between the least and the greatest activation
    "limits": "<f4",  # least and greatest of each quantile group, the strongest first; none if silent
    "top_tokens": "<i4",  # by summed activation
    "top_counts": "<i4",
    "top_shares": "<f4",
    "example_group": "u1",  # 0: the strongest
    "example_window": "<i4",
    "example_document": "<i4",
    "example_peak": "<i4",
    "example_offsets": "<i4",  # example i: positions[offsets[i]:offsets[i + 1]]
    "positions": "<u2",
    "values": "<f4",
    "cosine_other": "<i4",
    "cosine_value": "<f4",
    "coactive_other": "<i4",
    "coactive_value": "<f4",
    "logit_tokens": "<i4",  # the greatest effects, then as many of the least; none without a direct path
    "logit_effects": "<f4",
}
"""A feature's arrays, flat, and their numbers. Another layout is another version of the store."""
TYPES = {name: np.dtype(kind) for name, kind in LAYOUT.items()}


def pack(arrays: Mapping[str, np.ndarray]) -> bytes:
    """A blob: zlib of the length of each array of LAYOUT (int32), then the arrays, little-endian."""
    columns = [np.asarray(arrays[name], kind) for name, kind in TYPES.items()]
    lengths = np.array([array.size for array in columns], "<i4")
    return zlib.compress(b"".join([lengths.tobytes(), *(array.tobytes() for array in columns)]), 2)


def unpack(blob: bytes) -> dict[str, np.ndarray]:
    """The arrays of a blob. Raises zlib.error or ValueError for anything else."""
    content = zlib.decompress(blob)
    lengths = np.frombuffer(content, "<i4", len(TYPES)).tolist()
    sizes = [n * kind.itemsize for n, kind in zip(lengths, TYPES.values(), strict=True)]
    *starts, end = accumulate(sizes, initial=4 * len(TYPES))
    if end != len(content):
        raise ValueError("arrays of another layout")
    columns = zip(TYPES.items(), lengths, starts, strict=True)
    return {name: np.frombuffer(content, kind, n, start) for (name, kind), n, start in columns}


class About(BaseModel):
    """What a store holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    coder: str
    """sha256 of the coder's weights."""
    model: str
    read: str
    """Sites, joined by " + " where there are several; so are those written."""
    write: str
    activation: str
    k: int | None
    """None where nobody knows."""
    widths: tuple[int, ...]
    context: int
    text: str
    split: str
    windows: int
    documents: int
    tokens: int
    """That count: those left out are not among them."""
    tokens_left_out: int
    tokens_not_finite: int = 0
    """NaN or Inf, which are not among those left out."""
    left_out: str
    largest_norms: dict[str, float]
    """By site: positions above are sinks."""
    direct_path: bool
    """Whether a written site is (or is added to) the residual stream."""
    collected: date
    top: int
    groups: int
    members: int
    seed: int


Words = Mapping[int, tuple[str, str]]
"""Labels and notes, or explanations and their authors, by feature."""


def set_words(db: sqlite3.Connection, table: Literal["annotations", "explanations"], index: int, *words: str) -> None:
    """Make these a feature's words in the table, or remove them where all are empty, and let it be found by those of
    all tables."""
    db.execute(f"DELETE FROM {table} WHERE id = ?", (index,))
    if any(words):
        db.execute(f"INSERT INTO {table} VALUES (?, ?, ?)", (index, *words))
    queries = (
        "SELECT tokens, summary FROM features WHERE id = ?",
        "SELECT label, note FROM annotations WHERE id = ?",
        "SELECT text FROM explanations WHERE id = ?",
    )
    found_by = [word for query in queries for row in db.execute(query, (index,)) for word in row]
    db.execute("UPDATE search SET text = ? WHERE rowid = ?", (searchable(*found_by), index))


def searchable(*texts: str) -> str:
    """Texts as the index has them, and as what is looked for must be: folded, so that case does not matter."""
    return well_formed("\n".join(texts)).replace("\0", "␀").casefold()
