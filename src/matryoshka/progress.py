"""How far a long job is: what it calls, and what a person sees: a bar on a terminal, elsewhere a line now and then."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich import progress as rich_progress
from rich.console import Console
from rich.markup import escape

LINE_SECONDS = 20.0
"""Between the lines of a job that has no terminal."""
WORKED_SECONDS = 1.0
"""A step that takes less has found its work done, and says nothing of how long others take."""
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


class Steps:
    """A line as each step of a long job begins: which of how many, and about how long they will all take yet."""

    def __init__(self, weights: Sequence[float], console: Console | None = None) -> None:
        """`weights`: how long the steps take, in proportion."""
        self._weights, self._console = weights, console or Console(stderr=True)
        self._begun, self._seconds, self._worked = 0, 0.0, 0.0

    @contextmanager
    def step(self, what: str) -> Iterator[None]:
        """The next step, while it is worked at."""
        number, weights = self._begun, self._weights
        left = f" · {_left(self._seconds / self._worked * sum(weights[number:]))}" if self._worked else ""
        line = f"step {number + 1} of {len(weights)} · {what}{left}"
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)
        self._begun, begun = number + 1, time.monotonic()
        yield
        if (seconds := time.monotonic() - begun) >= WORKED_SECONDS:
            self._seconds, self._worked = self._seconds + seconds, self._worked + weights[number]


def _left(seconds: float) -> str:
    """In the unit in which people would say it."""
    if seconds < 60:
        return "less than a minute left"
    return f"about {seconds / 60:.0f} min left" if seconds < 5400 else f"about {seconds / 3600:.1f} h left"
