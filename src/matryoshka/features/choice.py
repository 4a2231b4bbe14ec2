"""Which features a chat model is asked about."""

from collections.abc import Sequence
from typing import NamedTuple


class Choice(NamedTuple):
    """Those of `features`, or `per_ring` living ones of each ring."""

    features: Sequence[int] | None = None
    per_ring: int = 10
    seed: int = 0
