"""The one exception whose text is written for the person at the keyboard, and the nearest right spelling."""

import difflib
from collections.abc import Iterable


class MatryoshkaError(Exception):
    """A mistake in what was asked for, or a damaged or foreign file.

    Its text is one line: what, where, what was expected. The command line prints just that line and exits with 2.
    """


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """`" (did you mean 'x'?)"` for the nearest of `known`, otherwise the list of them."""
    names = list(known)
    near = difflib.get_close_matches(given, names, n=1, cutoff=0.5)
    return f" (did you mean {near[0]!r}?)" if near else f" (one of: {', '.join(names)})"
