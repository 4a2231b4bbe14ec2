"""The page as a folder that opens without a server.

    FOLDER/  index.html  (the page's files)  data/runs.js
             data/0/  overview.js  results.js  map.js  tree.js  shard-N.js  windows-N.js  pairs-N.js  report.html

A browser fetches nothing from file://, but runs scripts: each data file calls matryoshka.receive(key, base64 of
zlib-compressed JSON). The tokens of a window stand once, in a windows file, not in each example that lies in it: with
them the page of 4,608 features would have 130 MB instead of 30.
"""

import base64
import json
import shutil
import zlib
from pathlib import Path
from typing import Any

from matryoshka.errors import MatryoshkaError
from matryoshka.features.store import FeatureStore
from matryoshka.files import replaced_folder
from matryoshka.progress import Progress, silent
from matryoshka.report import data
from matryoshka.report.data import WEB
from matryoshka.report.page_analyses import map_view, pair_examples, shards, tree_view
from matryoshka.report.page_results import REPORT, results
from matryoshka.run import Run

WINDOWS = 2048
"""In one file. A feature's examples lie in most of the files."""
LIVE, STATIC = (f'<meta name="matryoshka" content="{kind}">' for kind in ("live", "static"))


def write_page(
    run: Run, store: FeatureStore, name: str, folder: Path, overwrite: bool = False, progress: Progress = silent
) -> None:
    """Write the page of a run and its store into `folder`, whole or not at all. Raises MatryoshkaError if something
    lies there; with `overwrite` an earlier page is replaced, nothing else."""
    folder = folder.resolve()
    _refuse_existing(folder, overwrite)
    with replaced_folder(folder) as new:
        shutil.copytree(WEB, new, dirs_exist_ok=True)
        page = new / "index.html"
        page.write_text(page.read_text(encoding="utf-8").replace(LIVE, STATIC), encoding="utf-8")
        (new / "data" / "0").mkdir(parents=True)
        _write(new, "runs", {"live": False, "runs": [{"key": "0", "name": name, "features": len(store)}]})
        windows: dict[int, list[str]] = {}
        for start in range(0, len(store), data.SHARD):
            progress(start, len(store))
            end = min(start + data.SHARD, len(store))
            cards = [data.card(store, i) for i in range(start, end)]
            examples = (example for card in cards for group in card["groups"] for example in group["examples"])
            windows |= {example["window"]: example.pop("tokens") for example in examples}
            _write(new, f"0/shard-{start // data.SHARD}", cards)
        numbers = sorted(windows)
        files = [numbers[start : start + WINDOWS] for start in range(0, len(numbers), WINDOWS)]
        for i, file in enumerate(files):
            _write(new, f"0/windows-{i}", {str(number): windows[number] for number in file})
        _write_found(new, run, store)
        _write(new, "0/overview", data.overview(store, "0", name) | {"window_files": [file[0] for file in files]})


def _write_found(folder: Path, run: Run, store: FeatureStore) -> None:
    """What evaluations and analyses have found, and the report."""
    _write(folder, "0/results", results(run, store))
    _write(folder, "0/map", map_view(run, store))
    _write(folder, "0/tree", tree := tree_view(run, store))
    pairs = 0 if "why" in tree else len(tree["edges"]["parent"]) + len(tree["suspects"]["parent"])
    for number in range(shards(pairs)):
        _write(folder, f"0/pairs-{number}", pair_examples(run, store, number))
    if (run.path / REPORT).is_file():
        shutil.copyfile(run.path / REPORT, folder / "data" / "0" / REPORT.name)


def _refuse_existing(folder: Path, overwrite: bool) -> None:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not overwrite:
        raise MatryoshkaError(f"{folder}: exists already; give another folder, or --overwrite")
    if not (folder / "data" / "runs.js").is_file():
        raise MatryoshkaError(f"{folder}: not a page, so --overwrite leaves it alone; give another folder")
    ours = {"data", *(file.name for file in WEB.iterdir())}
    if foreign := sorted(file.name for file in folder.iterdir() if file.name not in ours):
        raise MatryoshkaError(
            f"{folder}: holds {foreign[0]}, which is not of the page, so --overwrite leaves it alone; move that away"
        )


def _write(folder: Path, key: str, value: Any) -> None:
    packed = base64.b64encode(zlib.compress(data.to_json(value).encode("utf-8", errors="replace"), 6)).decode()
    (folder / "data" / f"{key}.js").write_text(f"matryoshka.receive({json.dumps(key)}, {json.dumps(packed)});\n")
