"""Labelled text: halves, concepts, and files of the user's own."""

import json
from pathlib import Path

import numpy as np
import pytest

from matryoshka.data.tokens import is_held_out
from matryoshka.errors import MatryoshkaError
from matryoshka.evaluation.shared.labelled import LabelledExample, LabelledText, is_test, load

# --- halves and concepts


def test_a_group_is_in_one_half_whatever_its_examples() -> None:
    tests = [is_test(f"word {i}") for i in range(10_000)]
    assert np.mean(tests) == pytest.approx(0.3, abs=0.015)
    held_out = [text for text in map(str, range(20_000)) if is_held_out(text, 0.05)]
    assert np.mean([is_test(text) for text in held_out]) == pytest.approx(0.3, abs=0.05)


def test_a_path_is_of_all_its_concepts() -> None:
    paths = [("animal", "dog"), ("tool",), ("animal", "cat"), ("animal", "dog")]
    found = LabelledText("s", tuple(LabelledExample("t", None, path, "g") for path in paths)).concepts()
    assert {name: np.flatnonzero(labels).tolist() for name, labels in found.items()} == {
        "animal": [0, 2, 3],
        "animal/dog": [0, 3],
        "tool": [1],
        "animal/cat": [2],
    }


# --- the user's own


def write(file: Path, *rows: object) -> Path:
    file.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return file


def test_a_users_labels_are_read(tmp_path: Path) -> None:
    file = write(
        tmp_path / "pets.jsonl",
        {"text": "A Dog ran.", "span": [2, 5], "path": ["animal", "dog"]},
        "",
        {"text": "All of it", "label": "thing"},
        {"text": "Café 🙂", "span": [5, 6], "label": "thing", "group": "faces"},
    )
    assert load(file) == LabelledText(
        "pets",
        (
            LabelledExample("A Dog ran.", (2, 5), ("animal", "dog"), "dog"),
            LabelledExample("All of it", None, ("thing",), "all of it"),
            LabelledExample("Café 🙂", (5, 6), ("thing",), "faces"),
        ),
    )


GOOD = {"text": "A dog ran.", "span": [2, 5], "label": "dog"}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("{not json", "not JSON"),
        ("[1]", "expected an object .* found list"),
        ({**GOOD, "spam": [1, 2]}, r"unknown field 'spam' \(did you mean 'span'"),
        ({"label": "dog"}, "field 'text' must be text, found null"),
        ({**GOOD, "text": 3}, "field 'text' must be text, found 3"),
        ({**GOOD, "text": "  "}, "field 'text' must be text"),
        ({**GOOD, "span": [2, 11]}, r"span \[2, 11\] must be .* the text has 10"),
        ({**GOOD, "span": [5, 2]}, "span"),
        ({**GOOD, "span": [-1, 2]}, "span"),
        ({**GOOD, "span": [1, 2]}, "not all spaces"),
        ({**GOOD, "span": [2]}, "span"),
        ({**GOOD, "span": [2.0, 5.0]}, "span"),
        ({**GOOD, "span": "dog"}, "span"),
        ({"text": "A dog ran."}, 'expected either "path"'),
        ({**GOOD, "path": ["dog"]}, 'expected either "path"'),
        ({**GOOD, "label": ["dog"]}, "a path is a list of one or more names"),
        ({"text": "A dog", "path": []}, "a path is a list of one or more names"),
        ({"text": "A dog", "path": "dog"}, "a path is a list of one or more names"),
        ({"text": "A dog", "path": ["dog", 2]}, "a path is a list of one or more names"),
        ({**GOOD, "label": "a/b"}, "holds a \"/\""),
        ({**GOOD, "group": 7}, "field 'group' must be text, found 7"),
    ],
)  # fmt: skip
def test_every_mistake_is_refused_with_its_line(tmp_path: Path, row: object, said: str) -> None:
    file = write(tmp_path / "words.jsonl", GOOD, "", row)
    with pytest.raises(MatryoshkaError, match=rf"words\.jsonl:3: .*{said}"):
        load(file)


def test_files_that_are_no_labels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MatryoshkaError, match=r"none\.jsonl: labelled text cannot be read: No such file"):
        load(tmp_path / "none.jsonl")
    (tmp_path / "latin.jsonl").write_bytes(b'{"text": "caf\xe9"}')
    with pytest.raises(MatryoshkaError, match="not UTF-8 text"):
        load(tmp_path / "latin.jsonl")
    with pytest.raises(MatryoshkaError, match="at least two concepts, there are none"):
        load(write(tmp_path / "empty.jsonl", ""))
    with pytest.raises(MatryoshkaError, match="at least two concepts, all are of 'dog'"):
        load(write(tmp_path / "one.jsonl", GOOD, GOOD))
