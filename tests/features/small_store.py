"""A small store made by hand, whose tokens are what breaks pages and indices."""

from collections.abc import Iterator
from datetime import date
from pathlib import Path

import numpy as np

from matryoshka.features.feature import BINS, TokenShare, summarise
from matryoshka.features.schema import STATISTICS, About
from matryoshka.features.store import FeatureStore
from matryoshka.features.writer import Row, Writer
from matryoshka.lm.vocabulary import pieces

CONTEXT, WINDOWS, COUNTED = 16, 12, 1000
WIDTHS = (10, 30, 70)
SILENT = 5
EMOJI = [4, 5, 6]
TEXTS = [
    " people", "<script>alert(1)</script>", "</script><!--", "\n", 'quote"\'&\\', "مرحبا", "\u202eabc", "\u200b", "\0",
    "a\u2028b\u2029", "Straße", "ÉCLAIR", "100%_*", " AND NOT (NEAR", "🙂🏽", "e\u0301", "\ufeff", "x" * 300, "-",
]  # fmt: skip
VOCABULARY = [b"<bos>", b" and", b"", b"\xff", b"\xf0\x9f", b"\x99", b"\x82", *(text.encode() for text in TEXTS)]
"""Tokens 4 to 6 are one emoji; 2 is none at all, 3 no character."""


def windows() -> Iterator[tuple[int, np.ndarray]]:
    """Random tokens, and in each window an emoji of three at position 3."""
    rng = np.random.default_rng(1)
    for number in range(WINDOWS):
        tokens = rng.integers(7, len(VOCABULARY), CONTEXT)
        tokens[3:6] = EMOJI
        yield 10 * number, tokens


def row(index: int) -> Row:
    """A feature like those of `features/collection.py`; the same at every call."""
    rng, fires = np.random.default_rng(index), index != SILENT
    group = np.array([0, 0, 1, 2, 2] if fires else [], np.uint8)
    fired = [np.sort(rng.choice(CONTEXT, 3, replace=False)) for _ in group]
    top = np.array([7 + index % len(TEXTS), 7 + (index + 1) % len(TEXTS)] if fires else [], np.int32)
    shares = np.array([0.5, 0.25], np.float32)[: len(top)]
    named = [
        TokenShare(pieces([i], VOCABULARY)[0], share, 3) for i, share in zip(top.tolist(), shares.tolist(), strict=True)
    ]
    others = np.array([(index + 1) % WIDTHS[-1], (index + 7) % WIDTHS[-1]])
    others = others[others != SILENT].astype(np.int32) if fires else np.empty(0, np.int32)
    values = np.sort(rng.random(15))[::-1].astype(np.float32)[: 3 * len(group)]
    return Row(
        index=index,
        statistics={
            "ring": int(np.searchsorted(WIDTHS, index, side="right")),
            "count": 2 + index % 7 if fires else 0,
            "density": (2 + index % 7) / COUNTED if fires else 0.0,
            **{name: float(rng.integers(9)) if fires else None for name in STATISTICS[3:8]},
            "cosine": float(rng.random()),
        },
        flags=0b10100 if index % 2 else 0,
        summary=summarise(named),
        tokens="".join(each.token for each in named),
        arrays={
            "histogram": (np.arange(BINS) + 1 if fires else np.zeros(BINS)).astype(np.int32),
            "range": np.array([0.5, 8.0]),
            "limits": np.array([[2, 3], [1, 2]] if fires else np.empty((0, 2)), np.float32),
            "top_tokens": top,
            "top_counts": np.full(len(top), 3, np.int32),
            "top_shares": shares,
            "example_group": group,
            "example_window": (10 * rng.integers(0, WINDOWS, len(group))).astype(np.int32),
            "example_document": rng.integers(0, 9, len(group)).astype(np.int32),
            "example_peak": np.array([each[0] for each in fired], np.int32),
            "example_offsets": (3 * np.arange(len(group) + 1)).astype(np.int32),
            "positions": np.concatenate(fired or [np.empty(0)]).astype(np.uint16),
            "values": values,
            "cosine_other": others,
            "cosine_value": np.full(len(others), 0.5, np.float32),
            "coactive_other": others,
            "coactive_value": np.full(len(others), 0.25, np.float32),
            "logit_tokens": np.arange(7, 11, dtype=np.int32),
            "logit_effects": np.array([2, 1, -3, -2], np.float32),
        },
    )


ABOUT = About(
    coder="0" * 64, model="bundled", read="2.mlp_in", write="2.mlp_out", activation="batchtopk", k=4, widths=WIDTHS,
    context=CONTEXT, text="</script> of \"tests\"", split="held_out", windows=WINDOWS, documents=9, tokens=COUNTED,
    tokens_left_out=3, left_out="BOS", largest_norms={"2.mlp_in": 9.0}, direct_path=True, collected=date(2026, 11, 24),
    top=2, groups=2, members=2, seed=0,
)  # fmt: skip


def make_store(path: Path, annotations: dict[int, tuple[str, str]] | None = None) -> FeatureStore:
    """A small store whose tokens are what breaks pages and indices."""
    writer = Writer(path, VOCABULARY)
    writer.features(row(i) for i in range(WIDTHS[-1]))
    writer.windows(windows())
    writer.parents([(40, 12, 0.75), (41, 12, 1.0), (40, 2, 0.5)])
    return writer.finish(ABOUT, annotations or {})
