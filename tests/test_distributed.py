"""How many processes there are."""

import re
from pathlib import Path

import pytest

import matryoshka
from matryoshka.distributed import World


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


def test_nothing_else_reads_torchruns_environment() -> None:
    source = Path(matryoshka.__file__).parent
    readers = {file.name for file in source.rglob("*.py") if re.search("WORLD_SIZE|LOCAL_RANK", file.read_text())}
    assert readers == {"distributed.py"}
