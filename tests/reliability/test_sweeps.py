"""The sweeps, short: `make chaos` and `make fuzz` go on for longer."""

import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.skipif(sys.platform != "linux", reason="kills forks of a process that has torch")
def test_killed_at_a_file_event_every_verb_goes_on_to_the_same_end() -> None:
    words = [sys.executable, HERE / "chaos.py", "--every", "13", "--most", "3"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("each went on to the same end") == 5
    assert " 0 kills" not in done.stdout


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict]:
    from fuzz import readers

    with pytest.MonkeyPatch.context() as patch:
        # its tokens are damaged too
        patch.setenv("MATRYOSHKA_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield readers(tmp_path_factory.mktemp("read"))


def test_whatever_is_damaged_is_read_or_refused_in_one_line(known: dict) -> None:
    from fuzz import fuzz

    assert len(known) >= 25
    for name, reader in known.items():
        assert fuzz(reader, 0.5, random.Random(2026)) > 0, name
