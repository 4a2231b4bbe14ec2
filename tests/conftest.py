"""Shapes are checked in every test: jaxtyping's annotations are enforced by beartype, and all others too."""

import fcntl
import os
import shutil
import signal
import tempfile
from collections.abc import Callable
from inspect import isclass, isfunction
from pathlib import Path
from typing import Any, get_args

import hypothesis
import jaxtyping
import pytest

# the same examples every time; how long one takes says more about the machine than about the code
hypothesis.settings.register_profile("shared machines", deadline=None, derandomize=True)
hypothesis.settings.load_profile("shared machines")

# who starts the tests in the background has Ctrl-C ignored, and so would all that they start
signal.signal(signal.SIGINT, signal.default_int_handler)
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
    "matryoshka.data.cache",
    "matryoshka.data.rowfilter",
    "matryoshka.study",
    "matryoshka.scores",
    "matryoshka.evaluation",
    "matryoshka.analysis",
    "matryoshka.interventions",
    "matryoshka.features",
    "matryoshka.interop",
]
jaxtyped = jaxtyping.jaxtyped


def has_shape(hint: Any) -> bool:
    """Whether an annotation holds an array's; of one that is written as a string nobody knows."""
    if (isclass(hint) and issubclass(hint, jaxtyping.AbstractArray)) or isinstance(hint, str):
        return True
    return any(map(has_shape, hint if isinstance(hint, list) else get_args(hint)))


def checked(typechecker: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """In place of `jaxtyped`, which the hook decorates with: where there is no shape to remember, the type checker is
    enough, and a call of it costs a tenth."""

    def decorate(checking: Any) -> Any:
        plain = isfunction(checking) and not any(map(has_shape, checking.__annotations__.values()))
        return typechecker(checking) if plain else jaxtyped(checking, typechecker=typechecker)

    return decorate


jaxtyping.jaxtyped = checked
jaxtyping.install_import_hook(ROOMS, "beartype.beartype")

from matryoshka import api  # noqa: E402
from matryoshka.data.sections import TextConfig  # noqa: E402
from matryoshka.data.tokens import Tokens, tokenise  # noqa: E402
from matryoshka.lm.model import LanguageModel, load  # noqa: E402
from matryoshka.run import Run  # noqa: E402
from matryoshka.training.recipe import Config  # noqa: E402

SMALL = {
    "text": {"context": 64},
    "activations": {"chunk": 8192},
    "coder": {"read": "1.mlp_in", "write": "1.mlp_out", "d_sae": 256, "k": 6, "widths": [32, 96, 256]},
    "training": {"tokens": 20_480, "batch": 512, "lr": 3e-3, "dead_after_tokens": 5000},
    "evaluation": {"tokens": 1024},
}
"""A transcoder of the bundled model that trains in seconds."""
FEATURE_TOKENS = 9000
Once = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def lm() -> LanguageModel:
    """The bundled language model."""
    return load("bundled", device="cpu")


@pytest.fixture(scope="session")
def tokens(lm: LanguageModel) -> Tokens:
    """The bundled text's tokens, in windows of 64."""
    return tokenise(TextConfig(context=64), lm.tokenizer, lm.bos, lm.separator)


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """`once(name, make)`: the path that `make` has filled, by the first of pytest-xdist's workers that asks for it; the
    others wait, and find it. Nobody changes what lies there: tests work in copies."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def found(name: str, make: Callable[[Path], object]) -> Path:
        folder = shared / name
        folder.mkdir(exist_ok=True)
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (folder / "whole").exists():
                shutil.rmtree(folder / "run", ignore_errors=True)  # of another worker, which has failed
                make(folder / "run")
                (folder / "whole").touch()
        return folder / "run"

    return found


@pytest.fixture(scope="session")
def trained(once: Once) -> Run:
    """A run of SMALL. Never changed."""
    return Run(once("trained", lambda path: api.train(Config.build(SMALL), path)))


@pytest.fixture(scope="session")
def featured(trained: Run, once: Once) -> Run:
    """The same with its features, of FEATURE_TOKENS tokens. Never changed either."""

    def make(path: Path) -> None:
        shutil.copytree(trained.path, path)
        api.features(path, FEATURE_TOKENS)

    return Run(once("featured", make))
