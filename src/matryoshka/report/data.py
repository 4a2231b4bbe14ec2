"""What the page is given, as JSON: the same for a live server, a static folder and a notebook.

overview    a run's facts and the columns of its list, one entry a feature
card        one feature with all its evidence
reading     a text of the user's own, and what fires on it
"""

import json
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from matryoshka.analysis.matching import FIRINGS
from matryoshka.features.feature import FLAGS
from matryoshka.features.store import FeatureStore
from matryoshka.scores.result import four_digits

WEB = Path(__file__).parent / "web"
"""The page's files."""
SHARD = 64
"""Features in one file of a static page."""
FACTS = {
    "model", "read", "write", "widths", "activation", "k", "context", "windows", "tokens", "tokens_left_out",
    "documents", "left_out", "collected",
}  # fmt: skip
NUMBERS = ("density", "mean", "max", "entropy", "first", "cosine")
TEXTS = ("summary", "tokens", "label", "note", "explanation")
NO_PATH = (
    "None: what is written here, {site}, is not added to the residual stream, so it reaches the logits only through"
    " the rest of its block."
)


def overview(store: FeatureStore, key: str, name: str) -> dict[str, Any]:
    """A run's facts, and its columns."""
    return facts(store, key, name) | {"columns": columns(store)}


def facts(store: FeatureStore, key: str, name: str) -> dict[str, Any]:
    """What was collected, of which coder, on which text."""
    about = store.about
    return {
        "key": key,
        "name": name,
        "text": f"{about.text}, {about.split.replace('_', '-')} split",
        "shard": SHARD,
        "flags": FLAGS,
        "rare": FIRINGS,
        **about.model_dump(mode="json", include=FACTS),
    }


def columns(store: FeatureStore) -> dict[str, list]:
    """One entry a feature; numbers to four digits."""
    stored = store.columns()
    numbers = {name: four_digits(stored[name]) for name in NUMBERS}
    return numbers | {name: stored[name] for name in ("flags", *TEXTS)}


def card(store: FeatureStore, index: int) -> dict[str, Any]:
    """A feature. Raises MatryoshkaError if there is none of this number."""
    feature = _plain(store[index])
    if feature["logits"] is None:
        feature["logits_why"] = NO_PATH.format(site=store.about.write)
    return feature


def reading(
    store: FeatureStore, tokens: list[str], counted: list[bool], firings: dict[int, tuple[list[int], list[float]]]
) -> dict[str, Any]:
    """A text and the features that fire on it, the strongest relative to its own maximum first."""
    brief = store.brief(firings)
    features = [
        {
            "index": index,
            "ring": brief[index].ring,
            "name": brief[index].name,
            "max": max(values),
            "typical_max": brief[index].max,
            "positions": positions,
            "values": values,
        }
        for index, (positions, values) in firings.items()
    ]
    features.sort(key=lambda feature: -feature["max"] / (feature["typical_max"] or feature["max"]))
    return _plain({"tokens": tokens, "counted": counted, "features": features})


def to_json(value: Any) -> str:
    """Compact JSON; NaN, which JSON has not, is an error."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def _plain(value: Any) -> Any:
    """What JSON knows, numbers to five digits: what a page can show."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, list):
        if value and isinstance(value[0], str | int):  # the tokens of an example, which are most of a card
            return value
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    return value
