"""A long job is never silent: a bar on a terminal, elsewhere a line now and then."""

import io

import pytest
from rich.console import Console

from matryoshka import progress


def test_without_a_terminal_lines_are_printed_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    console = Console(file=io.StringIO(), width=40)
    with progress.progress_bar("reading [v2]", console) as update:
        for done in range(1, 61):
            now[0] += 1
            update(done, 60 if done > 30 else 0)
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().splitlines() == [
        "reading [v2]: 20",
        "reading [v2]: 40 of 60",
        "reading [v2]: 60 of 60",
    ]


def test_a_terminal_shows_names_with_brackets_as_they_are() -> None:
    console = Console(file=io.StringIO(), width=80, force_terminal=True)
    with progress.progress_bar("reading [v2]", console) as update:
        update(1, 2)
    assert isinstance(console.file, io.StringIO)
    assert "reading [v2]" in console.file.getvalue()


def test_steps_say_which_of_how_many_and_about_how_long(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    console = Console(file=io.StringIO(), width=40)
    steps = progress.Steps([2, 1, 1, 10, 100], console)
    for name, seconds in {"read [v2]": 60, "there already": 0.2, "found": 30, "drawn": 300, "said": 9000}.items():
        with steps.step(name):
            now[0] += seconds
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().splitlines() == [
        "step 1 of 5 · read [v2]",
        "step 2 of 5 · there already · about 56 min left",
        "step 3 of 5 · found · about 56 min left",
        "step 4 of 5 · drawn · about 55 min left",
        "step 5 of 5 · said · about 50 min left",
    ]
