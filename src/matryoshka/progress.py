"""How far a long job is: what it calls, and what a person sees: a bar on a terminal, elsewhere a line now and then."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich import progress as rich_progress
from rich.console import Console
from rich.markup import escape

LINE_SECONDS = 20.0
"""Between the lines of a job that has no terminal."""
Progress = Callable[[int, int], None]
"""Told (done, total) as a long job goes on; the total is 0 where nobody knows it."""


def silent(done: int, total: int) -> None:
    """The Progress that shows nothing."""


@contextmanager
def progress_bar(what: str, console: Console | None = None) -> Iterator[Progress]:
    """Shows how far `what` is, as the yielded Progress is told."""
    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield _lines(what, console)
        return
    with rich_progress.Progress(console=console, transient=True) as bar:
        task = bar.add_task(escape(what), total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total or None)


def _lines(what: str, console: Console) -> Progress:
    last = time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= LINE_SECONDS:
            last = time.monotonic()
            of = f" of {total:,}" if total else ""
            console.print(f"{what}: {done:,}{of}", markup=False, highlight=False, soft_wrap=True)

    return tell
