"""What is written for the person at the keyboard: mistakes, the nearest right spelling, the end of memory."""

import difflib
import re
import sqlite3
from collections.abc import Iterable

LONGEST = 1000
"""Characters of a message."""


class MatryoshkaError(Exception):
    """A mistake in what was asked for, or a damaged or foreign file.

    Its text is one line: what, where, what was expected. The command line prints just that line and exits with 2.
    """

    def __init__(self, text: str) -> None:
        line = " ".join(text.splitlines())  # what it quotes may be anything, of any length
        super().__init__(line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} … {line[-LONGEST // 2 :]}")


class Interrupted(Exception):
    """Training was asked to stop and did, after saving. `code` is the exit code of the signal."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.code = 128 + number


def did_you_mean(given: str, known: Iterable[str], otherwise: str | None = None, cutoff: float = 0.5) -> str:
    """`" (did you mean 'x'?)"` for the nearest of `known`; where none is near `otherwise`, or the list of them."""
    names = list(known)
    if near := difflib.get_close_matches(given, names, n=1, cutoff=cutoff):
        return f" (did you mean {near[0]!r}?)"
    return f" (one of: {', '.join(names)})" if otherwise is None else otherwise


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its kind if it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def out_of_memory(error: Exception) -> str | None:
    """One line if memory ran out, otherwise None.

    Python and numpy have an error of their own for it, torch another one on a GPU and none on a CPU.
    """
    said, name = str(error), type(error).__name__
    if not (isinstance(error, MemoryError) or name == "OutOfMemoryError" or "can't allocate memory" in said):
        return None
    wanted = re.search(r"tried to allocate ([\d.]+ \w+)", said, re.IGNORECASE)
    return (
        f"out of memory{f' at a request for {wanted[1]}' if wanted else ''}: matryoshka train --dry-run says what a run"
        " takes; smaller numbers of training.batch, activations.chunk, activations.lm_batch or coder.d_sae take less"
    )


def failed_file(error: Exception) -> str | None:
    """One line if a file or the disk failed, otherwise None: no room, no rights, a damaged database or tensor file."""
    if isinstance(error, OSError):
        names = [str(name) for name in (error.filename, error.filename2) if name is not None]
        return f"{' → '.join(names)}: {error.strerror}" if names and error.strerror else first_line(error)
    if isinstance(error, sqlite3.Error) or type(error).__name__ == "SafetensorError":
        return f"a file failed: {first_line(error)}"
    return None
