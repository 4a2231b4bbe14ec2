"""Texts of one's own, read by the model and the coder of a run."""

import shutil
from pathlib import Path

import pytest
import torch

from matryoshka import api
from matryoshka.coder.coder import SparseCoder
from matryoshka.errors import MatryoshkaError
from matryoshka.features.reading import reader
from matryoshka.lm.model import LanguageModel
from matryoshka.run import Run
from matryoshka.training import setup
from matryoshka.training.config import ModelSection


@pytest.fixture
def run(featured: Run, tmp_path: Path) -> Run:
    shutil.copytree(featured.path, tmp_path / "run")
    return Run(tmp_path / "run")


def test_a_coder_that_has_changed_reads_no_texts(run: Run) -> None:
    about = api.store(run).about
    read = reader(run, about, setup.open_lm)
    assert read("The people of the United States").firings
    coder = SparseCoder.load(run.path)
    coder.W_dec.data.mul_(2)
    coder.save(run.coder)
    with pytest.raises(MatryoshkaError, match="is not the one whose features were collected"):
        reader(run, about, setup.open_lm)("The people")


def test_texts_are_read_by_the_model_as_it_is_configured(run: Run) -> None:
    run.config_file.write_text(run.config_file.read_text().replace("  dtype: auto\n", "  dtype: bfloat16\n"))
    models = []

    def open_lm(model: ModelSection) -> LanguageModel:
        models.append(setup.open_lm(model))
        return models[0]

    assert reader(run, api.store(run).about, open_lm)("The people of the United States").firings
    assert [lm.dtype for lm in models] == [torch.bfloat16]
