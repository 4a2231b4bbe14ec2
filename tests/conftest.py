"""Shapes are checked in every test: jaxtyping's annotations are enforced by beartype."""

import os
import tempfile
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

# before torch is imported, and for the processes that tests start: as many results must agree bit for bit, and
# pytest-xdist's workers share the cores
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
# tokens are made once for all tests and all pytest-xdist workers, never in the user's own cache
os.environ["MATRYOSHKA_CACHE"] = str(Path(tempfile.gettempdir()) / f"matryoshka-tests-{os.getuid()}")
ROOMS = [
    "matryoshka.coder",
    "matryoshka.lm",
    "matryoshka.data.activations",
    "matryoshka.data.cache",
    "matryoshka.evaluation",
]
install_import_hook(ROOMS, "beartype.beartype")

from matryoshka.data.tokens import TextConfig, Tokens, tokenise  # noqa: E402
from matryoshka.lm.model import LanguageModel, load  # noqa: E402


@pytest.fixture(scope="session")
def lm() -> LanguageModel:
    """The bundled language model."""
    return load("bundled", device="cpu")


@pytest.fixture(scope="session")
def tokens(lm: LanguageModel) -> Tokens:
    """The bundled text's tokens, in windows of 64."""
    return tokenise(TextConfig(context=64), lm.tokenizer, lm.bos, lm.separator, progress=False)
