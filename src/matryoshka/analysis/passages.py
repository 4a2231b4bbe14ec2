"""The text around places of a recording, as it is shown."""

from collections.abc import Iterable, Sequence
from typing import Any

from matryoshka.lm.vocabulary import pieces
from matryoshka.study.recording import RecordedCoder

AROUND = 12
"""Tokens on either side, within the window."""


def passages(recorded: RecordedCoder, places: Iterable[int], token_bytes: Sequence[bytes]) -> dict[str, dict[str, Any]]:
    """By place, as JSON has its keys: the pieces of text of the `tokens` around it, and which of them it is `at`."""
    found, windows = {}, dict[int, list[str]]()
    for place in sorted({*places}):
        window, position = divmod(place, recorded.context)
        if window not in windows:
            start = window * recorded.context
            windows[window] = pieces(recorded.tokens[start : start + recorded.context].tolist(), token_bytes)
        first = max(0, position - AROUND)
        found[str(place)] = {"tokens": windows[window][first : position + AROUND + 1], "at": position - first}
    return found
