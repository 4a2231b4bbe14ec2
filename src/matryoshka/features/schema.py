"""The tables of a store of features, and how the words on a feature are kept and found.

about         one row: what was collected, of which coder, on which text (`About`)
features      a row a feature: what one sorts, filters and searches by
details       a row a feature: arrays (histogram, examples, neighbours …), compressed: see details.py
windows       the tokens of the windows that examples lie in
vocabulary    the bytes of each token
parents       (child, parent, coverage)
annotations   the user's labels and notes
explanations  a program's words on a feature, and whose they are; no reader's label is ever touched by them
search        full-text index (trigrams) over tokens, summaries, labels, notes and explanations
"""

import sqlite3
from datetime import date

from pydantic import BaseModel, ConfigDict

from matryoshka.features.feature import well_formed

APPLICATION = 0x4D747279  # "Mtry" in the file's header
VERSION, OLDEST = 2, 1
EXPLANATIONS = "explanations (id INTEGER PRIMARY KEY, text TEXT NOT NULL, author TEXT NOT NULL)"
SCHEMA = f"""
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


def set_annotation(db: sqlite3.Connection, index: int, label: str, note: str) -> None:
    """Make these a feature's label and note, and let them be found."""
    db.execute("DELETE FROM annotations WHERE id = ?", (index,))
    if label or note:
        db.execute("INSERT INTO annotations VALUES (?, ?, ?)", (index, label, note))
    _index(db, index)


def set_explanation(db: sqlite3.Connection, index: int, text: str, author: str) -> None:
    """Make this a feature's explanation, and let it be found."""
    db.execute("DELETE FROM explanations WHERE id = ?", (index,))
    if text:
        db.execute("INSERT INTO explanations VALUES (?, ?, ?)", (index, text, author))
    _index(db, index)


def _index(db: sqlite3.Connection, index: int) -> None:
    """Let a feature be found by all words on it."""
    queries = (
        "SELECT tokens, summary FROM features WHERE id = ?",
        "SELECT label, note FROM annotations WHERE id = ?",
        "SELECT text FROM explanations WHERE id = ?",
    )
    words = [word for query in queries for row in db.execute(query, (index,)) for word in row]
    db.execute("UPDATE search SET text = ? WHERE rowid = ?", (searchable(*words), index))


def searchable(*texts: str) -> str:
    """Texts as the index has them, and as what is looked for must be: folded, so that case does not matter."""
    return well_formed("\n".join(texts)).replace("\0", "␀").casefold()
