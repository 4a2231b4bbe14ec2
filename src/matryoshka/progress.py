"""How far a long job is: what it calls, and the bar that a terminal shows of it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich import progress as rich_progress
from rich.console import Console

Progress = Callable[[int, int], None]
"""Told (done, total) as a long job goes on."""


def silent(done: int, total: int) -> None:
    """The Progress that shows nothing."""


@contextmanager
def progress_bar(what: str) -> Iterator[Progress]:
    """Shows on a terminal how far `what` is, as the yielded Progress is told; elsewhere nothing."""
    console = Console(stderr=True)
    with rich_progress.Progress(console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
