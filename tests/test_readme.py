"""README's Python works as it stands there."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

import matryoshka
from matryoshka import api
from matryoshka.run import Run

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_the_python_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, code = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert '"tokens": 100_000' in code
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    shorter = code.replace('"tokens": 100_000', '"tokens": 8_192')
    exec(shorter.replace('"coder":', '"evaluation": {"tokens": 1024}, "coder":'), names)
    rows = len(names["x"])
    assert names["y_hat"].shape == (5, rows, 192)
    assert len(names["latents"].offsets) == rows + 1
    assert (tmp_path / "runs" / "first" / "coder" / "config.json").is_file()


def test_the_lines_on_features_run(featured: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    code, _ = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    shutil.copytree(featured.path, tmp_path / "runs" / "quickstart")
    monkeypatch.chdir(tmp_path)
    busy = str(api.store(featured).ranking("count")[0])
    names: dict[str, Any] = {"matryoshka": matryoshka}
    exec(code.replace("123", busy), names)
    assert names["store"].search("as a nation") == [int(busy)]


def test_every_command_it_names_exists() -> None:
    from matryoshka.cli import VERBS

    named = set(re.findall(r"(?:^|`|bin/)matryoshka ([a-z-]+)", README, flags=re.MULTILINE))
    assert named <= set(VERBS)
    assert {"train", "resume", "eval", "models", "quickstart"} <= named


def test_every_file_it_links_to_exists() -> None:
    links = re.findall(r"\]\(([^)]+)\)", README)
    assert links
    assert all((Path(__file__).parents[1] / link).exists() for link in links)
