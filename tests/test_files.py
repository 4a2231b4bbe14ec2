"""Files are replaced whole or not at all; what killed processes leave is swept, what others write is left alone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from matryoshka.errors import MatryoshkaError
from matryoshka.files import locked, parse_json, read_json, refuse_unwritable, replaced_folder, sweep, temporary

LEAVES = """
import os, sys
from pathlib import Path
from matryoshka.files import temporary
for kind in ("new", "old"):
    temporary(Path(sys.argv[1]), kind).mkdir()
"""
HOLDS = """
import sys, time
from pathlib import Path
from matryoshka.files import locked
with locked(Path(sys.argv[1]), "taken"):
    print("held", flush=True)
    time.sleep(600)
"""


def test_what_a_dead_process_left_is_swept_and_what_made_way_is_put_back(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", LEAVES, str(tmp_path / "lost")], check=True)
    (tmp_path / "there").mkdir()
    subprocess.run([sys.executable, "-c", LEAVES, str(tmp_path / "there")], check=True)
    mine = temporary(tmp_path / "mine", "new")
    mine.mkdir()
    assert len(list(tmp_path.iterdir())) == 6
    sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [mine.name, "lost", "there"]


def test_a_link_to_a_folder_stays_one_when_that_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with replaced_folder(tmp_path / "link") as new:
        (new / "file").write_text("new")
        (new / "file").chmod(0o600)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "file").read_text() == "new"
    (tmp_path / "ordinary").write_text("")
    assert (tmp_path / "real" / "file").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


def test_a_lock_names_its_holder_and_ends_with_it(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLDS, str(file)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(MatryoshkaError, match=rf"^taken \(process {holder.pid}\)$"), locked(file, "taken"):
            pass
    finally:
        holder.kill()
        holder.wait()
    with locked(file, "taken"):
        assert file.read_text() == str(os.getpid())
    assert not file.exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": ', "not JSON"),
        (b"\xff\xfe\xfa", "not JSON"),
    ],
)
def test_json_that_is_none_is_one_line_with_its_place(text: bytes, said: str) -> None:
    with pytest.raises(MatryoshkaError, match=f"^x.jsonl:3: .*{said}"):
        parse_json(text, "x.jsonl:3")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(MatryoshkaError, match=r"none.json: cannot be read \(No such file"):
        read_json(tmp_path / "none.json")


def test_where_nothing_can_be_made_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for where in (tmp_path / "file" / "run", Path("/proc/run"), tmp_path / ("x" * 300), tmp_path / "a\0b"):
        with pytest.raises(MatryoshkaError, match="cannot be made"):
            refuse_unwritable(where)
    refuse_unwritable(tmp_path / "new" / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
