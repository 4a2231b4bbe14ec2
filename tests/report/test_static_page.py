"""The exported page: whole or not at all, the live page's own data, and nothing in it that is more than text."""

import base64
import json
import os
import re
import signal
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest
from planted_analyses import plant
from small_store import make_store

from matryoshka.errors import MatryoshkaError
from matryoshka.features.store import FeatureStore
from matryoshka.report import data
from matryoshka.report.page_analyses import map_view, pair_examples, tree_view
from matryoshka.report.page_results import results
from matryoshka.report.static_page import WEB, write_page
from matryoshka.run import Run

RECEIVE = re.compile(r'matryoshka\.receive\("([0-9a-z/-]+)", "([0-9A-Za-z+/=]+)"\);\n')
"""All that a data file may be: nothing of a token, a label or a name stands in it as it is."""


def received(folder: Path, key: str) -> Any:
    """What a data file hands to the page."""
    matched = RECEIVE.fullmatch((folder / "data" / f"{key}.js").read_bytes().decode("ascii"))
    assert matched
    assert matched[1] == key
    return json.loads(zlib.decompress(base64.b64decode(matched[2], validate=True)))


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    store = make_store(tmp_path / "features.sqlite")
    store.annotate(3, "</script><img src=x onerror=alert(1)>", "\u202e\u2028\0 note 🙂🏽")
    return store


@pytest.fixture
def folder(store: FeatureStore, tmp_path: Path) -> Path:
    folder = tmp_path / "page"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("matryoshka.report.static_page.WINDOWS", 5)
        write_page(Run(store.path.parent), store, "a </script> run", folder)
    return folder


def test_it_has_the_data_of_the_live_page(store: FeatureStore, folder: Path) -> None:
    run = {"key": "0", "name": "a </script> run", "features": 70}
    assert received(folder, "runs") == {"live": False, "runs": [run]}
    overview = received(folder, "0/overview")
    firsts = overview.pop("window_files")
    assert overview == json.loads(data.to_json(data.overview(store, "0", "a </script> run")))
    assert overview["columns"]["label"][3] == "</script><img src=x onerror=alert(1)>"
    for i in range(len(store)):
        shard = received(folder, f"0/shard-{i // overview['shard']}")
        card = shard[i % overview["shard"]]
        for example in (example for group in card["groups"] for example in group["examples"]):
            number = max(j for j, first in enumerate(firsts) if first <= example["window"])
            example["tokens"] = received(folder, f"0/windows-{number}")[str(example["window"])]
        assert card == json.loads(data.to_json(data.card(store, i))), i
    named = {"runs.js", "0/overview.js", "0/results.js", "0/map.js", "0/tree.js", "0/shard-0.js", "0/shard-1.js"}
    named |= {f"0/windows-{i}.js" for i in range(3)}
    assert set(files(folder / "data")) == named
    assert (len(received(folder, "0/shard-0")), len(received(folder, "0/shard-1"))) == (64, 6)


def test_it_has_what_was_found_of_the_run(store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, folder = Run(tmp_path), tmp_path / "found"
    plant(run, store)
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "report.html").write_text("<p>found</p>")
    monkeypatch.setattr("matryoshka.report.page_analyses.PAIRS", 20)
    write_page(run, store, "run", folder)
    for part, view in (("results", results), ("map", map_view), ("tree", tree_view)):
        assert received(folder, f"0/{part}") == json.loads(data.to_json(view(run, store)))
    pairs = sum(len(received(folder, "0/tree")[kind]["child"]) for kind in ("edges", "suspects"))
    assert len(list((folder / "data" / "0").glob("pairs-*.js"))) == -(-pairs // 20) > 1
    assert received(folder, "0/pairs-1") == json.loads(data.to_json(pair_examples(run, store, 1)))
    assert (folder / "data" / "0" / "report.html").read_text() == "<p>found</p>"


def test_it_is_the_page_itself_told_to_be_static(folder: Path) -> None:
    page, original = files(folder), files(WEB)
    live, static = (f'<meta name="matryoshka" content="{kind}">'.encode() for kind in ("live", "static"))
    assert original["index.html"].count(live) == 1
    assert page["index.html"] == original["index.html"].replace(live, static)
    assert {name: content for name, content in page.items() if not name.startswith("data/")} == {
        **original,
        "index.html": page["index.html"],
    }


def test_the_export_of_nothing_but_letters(folder: Path) -> None:
    for name, content in files(folder / "data").items():
        assert RECEIVE.fullmatch(content.decode("ascii")), name


def test_progress_counts_features(store: FeatureStore, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    run = Run(store.path.parent)
    write_page(run, store, "run", tmp_path / "page", progress=lambda done, total: seen.append((done, total)))
    assert seen == [(0, 70), (64, 70)]


# --- whole or not at all


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("earlier", [False, True])
def test_interrupted_it_leaves_nothing(
    store: FeatureStore, folder: Path, tmp_path: Path, error: type[BaseException], earlier: bool
) -> None:
    def interrupt(done: int, total: int) -> None:
        if done:
            raise error

    target = folder if earlier else tmp_path / "new" / "page"
    before, names = files(folder), set(os.listdir(tmp_path))
    with pytest.raises(error):
        write_page(Run(store.path.parent), store, "run", target, overwrite=True, progress=interrupt)
    assert files(folder) == before
    assert set(os.listdir(tmp_path)) - {"new"} == names
    assert not target.parent.exists() or os.listdir(target.parent) == [] or earlier


def test_ctrl_c_leaves_nothing(store: FeatureStore, tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from matryoshka.report.static_page import write_page\n"
        "from matryoshka.features.store import FeatureStore; from matryoshka.run import Run\n"
        "def wait(done, total):\n"
        "    if done: print('half', flush=True); time.sleep(60)\n"
        "store = FeatureStore(sys.argv[1])\n"
        "write_page(Run(store.path.parent), store, 'run', Path(sys.argv[2]), progress=wait)"
    )
    command = [sys.executable, "-c", program, store.path, tmp_path / "page"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout
    assert process.stdout.readline() == b"half\n"
    assert any(name.startswith(".new-page") for name in os.listdir(tmp_path)), "it was at work"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert os.listdir(tmp_path) == ["features.sqlite"]


def test_a_damaged_store_gives_no_page(store: FeatureStore, tmp_path: Path) -> None:
    middle = store.path.stat().st_size // 2
    with store.path.open("r+b") as file:
        file.seek(middle - middle % 4096)
        file.write(os.urandom(40_000))
    with pytest.raises(MatryoshkaError, match=re.escape(str(store.path))):
        write_page(Run(store.path.parent), store, "run", tmp_path / "page")
    assert os.listdir(tmp_path) == ["features.sqlite"]


# --- what lies there


def test_an_empty_folder_is_taken(store: FeatureStore, tmp_path: Path) -> None:
    (tmp_path / "page").mkdir()
    write_page(Run(store.path.parent), store, "run", tmp_path / "page")
    assert received(tmp_path / "page", "runs")["runs"][0]["name"] == "run"


def test_what_lies_there_is_left_alone(store: FeatureStore, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "index.html").write_text("mine")
    (tmp_path / "file").write_text("mine")
    before = files(tmp_path)
    for target, overwrite, said in (
        (folder, False, "exists already; give another folder, or --overwrite"),
        (tmp_path / "mine", False, "exists already"),
        (tmp_path / "mine", True, "not a page, so --overwrite leaves it alone"),
        (tmp_path / "file", False, "exists already"),
        (tmp_path / "file", True, "not a page, so --overwrite leaves it alone"),
    ):
        with pytest.raises(MatryoshkaError, match=re.escape(f"{target}: {said}")):
            write_page(Run(store.path.parent), store, "other", target, overwrite=overwrite)
        assert files(tmp_path) == before


def test_overwrite_replaces_a_page(store: FeatureStore, folder: Path, tmp_path: Path) -> None:
    (folder / "data" / "0" / "shard-9.js").write_text("of a longer store")
    store.annotate(4, "newer")
    write_page(Run(store.path.parent), store, "second", folder, overwrite=True)
    assert received(folder, "runs")["runs"][0]["name"] == "second"
    assert received(folder, "0/overview")["columns"]["label"][4] == "newer"
    assert not (folder / "data" / "0" / "shard-9.js").exists()
    assert set(os.listdir(tmp_path)) == {"features.sqlite", "page"}


@pytest.mark.parametrize("name", [".git", "notes.md"])
def test_overwrite_keeps_what_was_put_beside_a_page(store: FeatureStore, folder: Path, name: str) -> None:
    (folder / name).mkdir()
    (folder / name / "work").write_text("of weeks")
    before = files(folder)
    with pytest.raises(MatryoshkaError, match=f"holds {re.escape(name)}, which is not of the page"):
        write_page(Run(store.path.parent), store, "second", folder, overwrite=True)
    assert files(folder) == before


def test_a_link_and_a_relative_folder(
    store: FeatureStore, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(folder)
    write_page(Run(store.path.parent), store, "second", tmp_path / "link", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert received(folder, "runs")["runs"][0]["name"] == "second"
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    write_page(Run(store.path.parent), store, "run", Path("."))
    assert received(tmp_path / "here", "runs")["live"] is False
    assert set(os.listdir(tmp_path)) == {"features.sqlite", "page", "link", "here"}
