"""Texts of one's own, read by the model and the coder of a run."""

import shutil
from pathlib import Path

import pytest
import torch

from matryoshka import api
from matryoshka.coder.card import Card
from matryoshka.coder.coder import SparseCoder
from matryoshka.errors import MatryoshkaError
from matryoshka.features.reading import reader
from matryoshka.lm.model import LanguageModel
from matryoshka.run import Run
from matryoshka.study.opening import Models


@pytest.fixture
def run(featured: Run, tmp_path: Path) -> Run:
    shutil.copytree(featured.path, tmp_path / "run")
    return Run(tmp_path / "run")


def test_a_coder_that_has_changed_reads_no_texts(run: Run) -> None:
    about = api.store(run).about
    read = reader(run, about, Models("cpu"))
    assert read("The people of the United States").firings
    coder = SparseCoder.load(run.path)
    coder.W_dec.data.mul_(2)
    coder.save(run.coder)
    with pytest.raises(MatryoshkaError, match="is not the one whose features were collected"):
        reader(run, about, Models("cpu"))("The people")


def test_texts_are_read_by_the_model_as_the_card_says(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    coder = SparseCoder.load(run.path)
    assert coder.card is not None
    coder.card = coder.card.model_copy(update={"model": coder.card.model.model_copy(update={"dtype": "bfloat16"})})
    coder.save(run.coder)
    models, used = Models("cpu"), []

    def of(card: Card) -> LanguageModel:
        used.append(Models.of(models, card))
        return used[-1]

    monkeypatch.setattr(models, "of", of)
    assert reader(run, api.store(run).about, models)("The people of the United States").firings
    assert [lm.dtype for lm in used] == [torch.bfloat16]
