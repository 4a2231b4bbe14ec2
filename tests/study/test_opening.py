"""From a coder's folder to the language model and the text that it is studied with, as its card says."""

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from matryoshka.coder import io
from matryoshka.data.documents import BUNDLED
from matryoshka.data.rowfilter import RowFilter
from matryoshka.data.sections import TextConfig
from matryoshka.errors import MatryoshkaError
from matryoshka.lm.model import LanguageModel, load
from matryoshka.run import Run
from matryoshka.study.hooked import hook_all
from matryoshka.study.opening import Models, read_card, studied


class Folder:
    """A coder's two files, whose card can be edited."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def edit(self, **card: Any) -> Path:
        """With these fields of its card; those of `trained` in part."""
        file = self.path / io.CONFIG
        content = json.loads(file.read_text())
        if isinstance(part := card.get("trained"), dict):
            card["trained"] = content["card"]["trained"] | part
        content["card"] |= card
        file.write_text(json.dumps(content))
        return self.path

    def edit_text(self, **text: Any) -> Path:
        """With these fields of the text that it was trained on."""
        known = read_card(self.path).trained
        assert known is not None
        return self.edit(trained={"text": known.text | text})


@pytest.fixture
def coder(trained: Run, tmp_path: Path) -> Folder:
    return Folder(Path(shutil.copytree(trained.coder, tmp_path / "one")))


@pytest.fixture
def another(trained: Run, tmp_path: Path) -> Folder:
    return Folder(Path(shutil.copytree(trained.coder, tmp_path / "another")))


def refused(folder: Path, text: str | None = None) -> str:
    """The one line in which it is."""
    with pytest.raises(MatryoshkaError) as error:
        studied(folder, text)
    assert "\n" not in str(error.value)
    return str(error.value)


def one_text(folder: Path) -> Path:
    """Documents in a column of another name."""
    file = folder / "documents.jsonl"
    with gzip.open(BUNDLED, "rt", encoding="utf-8") as bundled:
        texts = [json.loads(line)["text"] for _, line in zip(range(400), bundled, strict=False)]
    file.write_text("".join(json.dumps({"body": text}) + "\n" for text in texts))
    return file


# --- the text


def test_a_coder_is_studied_on_the_text_that_its_card_knows(coder: Folder) -> None:
    its = studied(coder.path)
    assert its.text == TextConfig(context=64)
    assert (its.folder, its.card, its.trained_on) == (coder.path, read_card(coder.path), True)


def test_a_coder_without_a_card_is_refused_by_its_folder(coder: Folder) -> None:
    file = coder.path / io.CONFIG
    file.write_text(json.dumps(json.loads(file.read_text()) | {"card": None}))
    for text in (None, "bundled"):
        said = refused(coder.path, text)
        assert said == f"{coder.path}: its config.json has no card, so nobody knows which model it is of"


def test_a_coder_that_knows_no_text_needs_one(coder: Folder) -> None:
    coder.edit(trained=None)
    assert refused(coder.path) == f"{coder.path}: its card knows no text to study it on; give one with --text"
    its = studied(coder.path, "bundled")
    assert its.text == TextConfig(context=64), "windows are as long as the card says"
    assert not its.trained_on


def test_of_another_text_the_source_alone_is_another(coder: Folder, tmp_path: Path) -> None:
    file = one_text(tmp_path)
    known = {"source": "a/dataset", "subset": "en", "split": "validation", "limit": 9000}
    coder.edit_text(**known, field="body", context=32, held_out=0.25)
    assert studied(coder.path).text.subset == "en"
    its = studied(coder.path, str(file))
    assert its.text == TextConfig(source=str(file), field="body", context=32, held_out=0.25)
    assert not its.trained_on


def test_a_text_that_has_changed_since_is_refused_with_both_hashes(
    coder: Folder, tmp_path: Path, lm: LanguageModel
) -> None:
    file = one_text(tmp_path)
    coder.edit_text(source=str(file), field="body")
    tokens = studied(coder.path, str(file)).open_tokens(lm.vocabulary)
    coder.edit(trained={"text_hash": tokens.text_hash})
    assert studied(coder.path).open_tokens(lm.vocabulary).hash == tokens.hash
    file.write_text(file.read_text() + json.dumps({"body": "one more"}) + "\n")
    with pytest.raises(MatryoshkaError) as error:
        studied(coder.path).open_tokens(lm.vocabulary)
    now, then = studied(coder.path, str(file)).open_tokens(lm.vocabulary).text_hash, tokens.text_hash
    assert now != then
    assert str(error.value) == (
        f"{coder.path}: was trained on another text: {file} gives {now} now, and gave {then} then; give a text with"
        " --text"
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ({"sauce": "bundled"}, "sauce: unknown field (did you mean 'source'?)"),
        ({"held_out": 3}, "held_out: input should be less than 1, got 3"),
        ({"context": "many"}, "context: input should be a valid integer, unable to parse string as an integer"),
        ({"source": None}, "source: input should be a valid string, got None"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_text_that_is_none_is_refused_by_folder_and_field(coder: Folder, text: dict[str, Any], said: str) -> None:
    """Cards are edited by hand, and written by other programs."""
    assert refused(coder.edit_text(**text)).startswith(f"{coder.path}: its card's text: {said}")


# --- which coders are studied together


def test_coders_of_one_model_and_text_have_one_key(coder: Folder, another: Folder) -> None:
    key = studied(coder.path).key
    assert studied(another.edit(origin="somebody else", rows=None)).key == key
    assert studied(another.path, "bundled").key == key, "whether it is given or known"
    assert studied(another.edit(trained=None), "bundled").key == key


@pytest.mark.parametrize(
    "change",
    [
        {"context": 32},
        {"prepend_bos": False},
        {"model": {"name": "bundled", "dtype": "bfloat16"}},
        {"model": {"name": "another/model", "dtype": "float32"}},
    ],
    ids=["context", "BOS", "dtype", "model"],
)
def test_coders_that_read_otherwise_have_another_key(coder: Folder, another: Folder, change: dict[str, Any]) -> None:
    assert studied(another.edit(**change)).key != studied(coder.path).key


def test_coders_of_other_parts_of_a_text_have_another_key(coder: Folder, another: Folder) -> None:
    for change in ({"held_out": 0.1}, {"context": 32}, {"limit": 10_000}):
        assert studied(another.edit_text(**change)).key != studied(coder.path).key


# --- the language model


def test_each_language_model_is_loaded_once(coder: Folder, another: Folder) -> None:
    models, card = Models("cpu"), read_card(coder.path)
    assert models.of(card) is models.of(read_card(another.edit(context=32, rows=None, trained=None)))
    other = models.of(read_card(another.edit(model={"name": "bundled", "dtype": "bfloat16"})))
    assert other is not models.of(card)
    assert (models.of(card).dtype, other.dtype) == (torch.float32, torch.bfloat16)
    without = models.of(read_card(another.edit(model=card.model.model_dump(), prepend_bos=False)))
    assert without is not models.of(card)
    assert (models.of(card).bos is None, without.bos) == (False, None)


@pytest.mark.parametrize("prepend_bos", [True, False])
def test_bos_reaches_model_windows_and_filter(coder: Folder, lm: LanguageModel, prepend_bos: bool) -> None:
    expected = lm.tokenizer.bos_token_id if prepend_bos else None
    its = studied(coder.edit(prepend_bos=prepend_bos))
    with_bos = its.open_lm("cpu")
    assert with_bos.bos == its.open_vocabulary().bos == expected
    tokens = its.open_tokens(its.open_vocabulary())
    windows = tokens.windows("held_out")
    assert tokens.bos == windows.bos == expected
    assert bool((windows[:50][:, 0] == lm.tokenizer.bos_token_id).all()) == prepend_bos
    for rows in (its.card.rows, None):
        [hooked] = hook_all([coder.edit(rows=None if rows is None else rows.model_dump())], with_bos, windows)
        assert hooked.keep.bos == expected


def test_where_nobody_says_bos_is_as_the_model_is_used(lm: LanguageModel) -> None:
    usual = load("bundled", device="cpu", prepend_bos=None)
    assert usual.bos == lm.bos == lm.tokenizer.bos_token_id
    assert usual.separator == load("bundled", device="cpu", prepend_bos=False).separator, "the tokens are the same"
    assert RowFilter(usual.bos, {}).bos == usual.bos


def test_another_text_says_how_it_is_read(coder: Folder, tmp_path: Path, lm: LanguageModel) -> None:
    file = tmp_path / "other.jsonl"
    file.write_text("".join(json.dumps({"body": f"document {i} of it " * 30}) + "\n" for i in range(300)))
    with pytest.raises(MatryoshkaError, match=r"no field 'text'.*set text\.field"):
        studied(coder.path, str(file)).open_tokens(lm.vocabulary)
    tokens = studied(coder.path, {"source": str(file), "field": "body"}).open_tokens(lm.vocabulary)
    assert sum(tokens.meta.documents.values()) == 300
    with pytest.raises(MatryoshkaError, match=r"--text\.field says of a text how it is read: give --text too"):
        studied(coder.path, {"field": "body"})
