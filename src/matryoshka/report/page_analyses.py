"""What analyses have found of a run's features, as the page's map and tree show it.

    map_view        where features lie and what community each is of, packed: 36,864 points in half a megabyte
    tree_view       parents and children, and suspected absorption, in columns
    pair_examples   the passages of a few pairs: edges first, then suspects, as tree_view numbers them

The files may come from elsewhere: each is checked, and what cannot be shown is one line (`why`) in its place.
"""

import base64
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
from pydantic import BaseModel, BeforeValidator, Field, FiniteFloat, NonNegativeInt, model_validator

from matryoshka.errors import MatryoshkaError
from matryoshka.features.store import FeatureStore
from matryoshka.report.page_results import SavedJson, checked, read_saved, told
from matryoshka.run import Run
from matryoshka.scores.result import four_digits

PAIRS = 128
"""Pairs of features whose passages travel together."""


def _equal(**columns: Sequence[Any]) -> None:
    if len({len(column) for column in columns.values()}) > 1:
        lengths = ", ".join(f"{name} {len(column):,}" for name, column in columns.items())
        raise ValueError(f"expected lists of one length, found {lengths}")


class _Layout(BaseModel):
    """Where each feature of a map lies."""

    x: list[FiniteFloat]
    y: list[FiniteFloat]


class _Map(BaseModel):
    """Of analysis/map.json."""

    features: list[NonNegativeInt]
    dense: list[NonNegativeInt]
    layouts: dict[str, _Layout] = Field(min_length=1)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for name, layout in self.layouts.items():
            _equal(features=self.features, **{f"{name}.x": layout.x, f"{name}.y": layout.y})
        return self


class _Community(BaseModel):
    """Features that belong together, the most central first."""

    number: NonNegativeInt
    size: NonNegativeInt
    central: list[NonNegativeInt]


class _Clusters(BaseModel):
    """Of analysis/clusters.json; a label of −1 is no community."""

    features: list[NonNegativeInt]
    dense: list[NonNegativeInt]
    partitions: dict[str, list[int]]
    communities: dict[str, list[_Community]]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        _equal(features=self.features, **self.partitions)
        if self.partitions.keys() != self.communities.keys():
            raise ValueError("expected communities of each partition")
        return self


class _Place(BaseModel):
    """Where two features were looked at, and what each was there."""

    place: int
    parent: FiniteFloat
    child: FiniteFloat


class _Passage(BaseModel):
    """Tokens around a place, which is that numbered `at` among them."""

    tokens: list[str]
    at: NonNegativeInt

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.at >= len(self.tokens):
            raise ValueError(f"token {self.at} of {len(self.tokens)}")
        return self


class _Pairs(BaseModel):
    """Parents and children side by side, with examples of each pair."""

    parent: list[NonNegativeInt]
    child: list[NonNegativeInt]
    coverage: list[FiniteFloat]
    examples: list[list[_Place]]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        _equal(**dict(self))
        return self


class _Edges(_Pairs):
    """Candidates, and whether each passed the reconstruction test (`stands`)."""

    lift: list[FiniteFloat]
    share: list[FiniteFloat]
    gain: list[FiniteFloat | None]
    null: list[FiniteFloat | None]
    stands: list[bool]


class _Suspects(_Pairs):
    """Where the parent should have fired and did not."""

    cosine: list[FiniteFloat]


def _by_place(passages: Any) -> Any:
    """JSON's keys are texts."""
    return {int(place): passage for place, passage in passages.items()} if isinstance(passages, Mapping) else passages


class _Hierarchy(BaseModel):
    """Of analysis/hierarchy.json."""

    edges: _Edges
    suspects: _Suspects
    passages: Annotated[dict[int, _Passage], BeforeValidator(_by_place)]


def map_view(run: Run, store: FeatureStore) -> dict[str, Any]:
    """Layouts and partitions of the same features, each as base64 of little-endian integers: numbers as uint32,
    coordinates as uint16 on a square of 65,535, labels as int16. Either may be missing, and says why."""
    layouts = told(run, lambda: _details(run, "map", store, _Map))
    clusters = told(run, lambda: _details(run, "clusters", store, _Clusters))
    placed, grouped = isinstance(layouts, _Map), isinstance(clusters, _Clusters)
    features = layouts.features if placed else clusters.features if grouped else []
    view: dict[str, Any] = {
        "features": _packed(features, "<u4"),
        "dense": layouts.dense if placed else clusters.dense if grouped else [],
        "layouts": {name: _square(layout) for name, layout in layouts.layouts.items()} if placed else {},
        "partitions": _labels(clusters, features, len(store)) if grouped else {},
        "communities": clusters.model_dump()["communities"] if grouped else {},
    }
    return view | {"why": [answer["why"] for answer in (layouts, clusters) if isinstance(answer, dict)]}


def tree_view(run: Run, store: FeatureStore) -> dict[str, Any]:
    """Edges and suspects, a list a column, numbers to four digits."""
    return told(run, lambda: _columns(_details(run, "hierarchy", store, _Hierarchy)))


def pair_examples(run: Run, store: FeatureStore, number: int) -> list[list[dict[str, Any]]]:
    """The passages of the pairs PAIRS · number and following, with the values of parent and child at the place. Raises
    MatryoshkaError where there are none."""
    details = _details(run, "hierarchy", store, _Hierarchy)
    examples = [*details.edges.examples, *details.suspects.examples]
    if not 0 <= number < shards(len(examples)):
        raise MatryoshkaError(f"there are no pairs of number {PAIRS * number:,}: {len(examples):,} in all")
    return [
        [
            {**details.passages[example.place].model_dump(), "parent": example.parent, "child": example.child}
            for example in of_pair
            if example.place in details.passages
        ]
        for of_pair in examples[PAIRS * number : PAIRS * (number + 1)]
    ]


def shards(pairs: int) -> int:
    """How many lists `pair_examples` makes of so many pairs."""
    return -(-pairs // PAIRS)


def _details(run: Run, name: str, store: FeatureStore, model: type[BaseModel]) -> Any:
    """The details of an analysis of this store's coder, checked; read again only when the file is another."""
    file = run.analysis / f"{name}.json"
    if not file.is_file():
        raise MatryoshkaError(f"Not looked for yet; find it with: matryoshka analyze RUN --only {name}")
    at = file.stat()
    return _read(file, (at.st_mtime_ns, at.st_size), model, store.about.coder, len(store))


@lru_cache(maxsize=12)
def _read(file: Path, stamp: tuple[int, int], model: type[BaseModel], coder: str, d_sae: int) -> Any:
    """`stamp` only tells one content of the file from another."""
    found: SavedJson = read_saved(file.parent, file.stem, coder)
    if found.reason is not None:
        raise MatryoshkaError(f"Not to be found here: {found.reason}")
    details = checked(model, found.details, file)
    if (largest := max(_numbers(details), default=0)) >= d_sae:
        raise MatryoshkaError(f"{file}: damaged (feature {largest:,} of {d_sae:,})")
    return details


def _numbers(details: Any) -> list[int]:
    """All features that are named anywhere in it."""
    if isinstance(details, _Hierarchy):
        return [*details.edges.parent, *details.edges.child, *details.suspects.parent, *details.suspects.child]
    numbers = [*details.features, *details.dense]
    if isinstance(details, _Clusters):
        numbers += [i for some in details.communities.values() for community in some for i in community.central]
    return numbers


def _packed(numbers: Any, kind: str) -> str:
    return base64.b64encode(np.asarray(numbers, kind).tobytes()).decode()


def _square(layout: _Layout) -> dict[str, str]:
    """Both axes on one scale."""
    x, y = (np.asarray(axis, np.float64) for axis in (layout.x, layout.y))
    extent = max((np.ptp(axis) for axis in (x, y) if len(axis)), default=0) or 1.0
    return {
        name: _packed(((axis - axis.min(initial=np.inf)) * (65535 / extent)).round(), "<u2")
        for name, axis in (("x", x), ("y", y))
    }


def _labels(clusters: _Clusters, features: Sequence[int], d_sae: int) -> dict[str, str]:
    """Of each of `features`, which are not those of the clusters where the two were found apart."""
    packed = {}
    for name, labels in clusters.partitions.items():
        of = np.full(d_sae, -1, np.int64)
        of[clusters.features] = labels
        packed[name] = _packed(np.clip(of[list(features)], -1, 32767), "<i2")
    return packed


def _columns(details: _Hierarchy) -> dict[str, Any]:
    return {
        "pairs": PAIRS,
        "edges": {name: _short(column) for name, column in details.edges if name != "examples"},
        "suspects": {name: _short(column) for name, column in details.suspects if name != "examples"},
    }


def _short(column: list) -> list:
    return four_digits(column) if any(isinstance(x, float) for x in column) else column
