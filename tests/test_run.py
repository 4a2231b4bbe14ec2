"""A run's folder, and what runs are called."""

from pathlib import Path

from matryoshka.run import Run, names


def test_runs_are_named_so_that_they_can_be_told_apart() -> None:
    shortened = names([Run(Path("/a/b/run")), Run(Path("/a/c/run")), Run(Path("/a/other"))])
    assert shortened == ["b/run", "c/run", "a/other"]
    assert names([Run(Path("/a/run"))]) == ["run"]
    assert len(names([Run(Path("/a/run")), Run(Path("/a/run"))])) == 2
