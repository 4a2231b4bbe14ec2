"""Labelled text: which concept is meant where.

    {"text": "They fed the dog at noon.", "span": [13, 16], "path": ["animal", "dog"]}      one line an example

A hash of an example's group alone decides whether it is a test row: no word or document is in both halves.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool

from matryoshka.errors import MatryoshkaError, did_you_mean
from matryoshka.files import parse_json
from matryoshka.lm.vocabulary import tokenisable

TEST_SHARE = 0.3
FIELDS = ("text", "span", "path", "label", "group")


class LabelledExample(NamedTuple):
    """One labelled text, or one labelled place in it."""

    text: str
    span: tuple[int, int] | None
    """Characters [start, end); None: the whole text."""
    path: tuple[str, ...]
    """From the general concept to the particular one: ("animal", "dog")."""
    group: str
    """What must not lie in both halves: the word or the document."""


@dataclass(frozen=True)
class LabelledText:
    """A set of examples; concepts of different sets are never set against each other."""

    name: str
    examples: tuple[LabelledExample, ...]

    @property
    def paths(self) -> list[str]:
        """What each example is in particular: "animal/dog"."""
        return ["/".join(example.path) for example in self.examples]

    def concepts(self) -> dict[str, Bool[np.ndarray, " n"]]:
        """The examples that each concept holds of, general concepts of a path included ("animal", "animal/dog")."""
        holds: dict[str, Bool[np.ndarray, " n"]] = {}
        for i, example in enumerate(self.examples):
            for depth in range(1, len(example.path) + 1):
                name = "/".join(example.path[:depth])
                holds.setdefault(name, np.zeros(len(self.examples), dtype=bool))[i] = True
        return holds


def is_test(group: str) -> bool:
    """Whether all examples of this group are test rows: TEST_SHARE of the groups are."""
    # not the hash that holds documents out of training, or all of those would fall on one side
    digest = hashlib.sha256(f"test {group}".encode("utf-8", errors="surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") < TEST_SHARE * 2**64


# --- the user's own


def load(file: Path) -> LabelledText:
    """The examples of a JSONL file, named after it: {"text", "span"?, "path" or "label", "group"?} a line.

    `label` is a path of one concept. Without `group` it is the span's text, or the whole text where there is no span.
    Raises MatryoshkaError with file and line for whatever is not of that form.
    """
    file = Path(file)
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise MatryoshkaError(f"{file}: not UTF-8 text (byte {error.start})") from error
    except OSError as error:
        raise MatryoshkaError(f"{file}: labelled text cannot be read: {error.strerror}") from error
    examples = tuple(_example(line, f"{file}:{i}") for i, line in enumerate(lines, 1) if line.strip())
    if len(concepts := {example.path[0] for example in examples}) < 2:
        what = f"all are of {concepts.pop()!r}" if concepts else "there are none"
        raise MatryoshkaError(f"{file}: labelled text needs examples of at least two concepts, {what}")
    return LabelledText(file.stem, examples)


def _example(line: str, where: str) -> LabelledExample:
    row = parse_json(line, where)
    if not isinstance(row, dict):
        raise MatryoshkaError(f'{where}: expected an object {{"text", "path", …}}, found {type(row).__name__}')
    for field in row:
        if field not in FIELDS:
            raise MatryoshkaError(f"{where}: unknown field {field!r}{did_you_mean(field, FIELDS)}")
    text = _text(row, "text", where)
    span = _span(row["span"], text, where) if row.get("span") is not None else None
    subject = text if span is None else text[slice(*span)]
    group = _text(row, "group", where) if row.get("group") is not None else subject.casefold()
    return LabelledExample(text, span, _path(row, where), group)


def _text(row: dict[str, Any], field: str, where: str) -> str:
    value = row.get(field)
    if not isinstance(value, str) or not value.strip():
        raise MatryoshkaError(f"{where}: field {field!r} must be text, found {json.dumps(value)}")
    return tokenisable(value)


def _span(value: object, text: str, where: str) -> tuple[int, int]:
    match value:
        case [int(start), int(end)] if 0 <= start < end <= len(text) and text[start:end].strip():
            return start, end
    raise MatryoshkaError(
        f"{where}: span {json.dumps(value)} must be [start, end), characters of the text that are not all spaces;"
        f" the text has {len(text)}"
    )


def _path(row: dict[str, Any], where: str) -> tuple[str, ...]:
    if (row.get("path") is None) == (row.get("label") is None):
        raise MatryoshkaError(f'{where}: expected either "path": ["animal", "dog"] or "label": "animal"')
    path = [row["label"]] if row.get("path") is None else row["path"]
    if not isinstance(path, list) or not path or not all(isinstance(part, str) and part.strip() for part in path):
        raise MatryoshkaError(f"{where}: a path is a list of one or more names, found {json.dumps(path)}")
    if wrong := [part for part in path if "/" in part]:
        raise MatryoshkaError(f'{where}: {wrong[0]!r} holds a "/", which stands between the concepts of a path')
    return tuple(path)
