from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny_models import CONFIGS, VOCABULARY, save_tiny

from matryoshka.lm.model import LanguageModel, load


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """On models so small, threads only wait for each other: for minutes where the machine is busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: save_tiny(config(), root / name) for name, config in CONFIGS.items()}


@pytest.fixture(scope="session", params=CONFIGS)
def tiny(request: pytest.FixtureRequest, folders: dict[str, Path]) -> LanguageModel:
    """Each family in turn, through `load`."""
    return load(str(folders[request.param]), device="cpu")


@pytest.fixture(scope="session")
def ids() -> torch.Tensor:
    """[2, 9] tokens."""
    return torch.randint(2, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(1))
