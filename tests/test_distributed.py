"""How many processes there are, and what one that trains says to that."""

import re
from pathlib import Path

import pytest

import matryoshka
from matryoshka import api
from matryoshka.distributed import World
from matryoshka.errors import MatryoshkaError
from matryoshka.run import Run
from matryoshka.training.recipe import Config


@pytest.fixture
def torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of the second of two processes, alone on its machine."""
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)


def test_without_torchrun_the_world_is_one_and_waits_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    with World.current() as world:
        world.barrier()
    assert world == World(rank=0, size=1, local_rank=0)


@pytest.mark.usefixtures("torchrun")
def test_torchruns_environment_is_read() -> None:
    assert World.current() == World(rank=1, size=2, local_rank=0)


@pytest.mark.usefixtures("torchrun")
def test_training_in_several_processes_is_refused_before_any_work(trained: Run, tmp_path: Path) -> None:
    config = Config.load(trained.config_file)
    line = "training in several processes is not there yet: start it without torchrun"
    with pytest.raises(MatryoshkaError, match=line):
        api.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(MatryoshkaError, match=line):
        api.resume(trained)


def test_nothing_else_reads_torchruns_environment() -> None:
    source = Path(matryoshka.__file__).parent
    readers = {file.name for file in source.rglob("*.py") if re.search("WORLD_SIZE|LOCAL_RANK", file.read_text())}
    assert readers == {"distributed.py"}
