"""Results of analyses, planted in a run as `Joint.found` saves them: the layout is real, what they say is made up."""

import numpy as np

from matryoshka.features.store import FeatureStore
from matryoshka.run import Run
from matryoshka.scores.result import Measure, Result, Score, score
from matryoshka.scores.saved import save

AGREEMENT = Measure(
    "agreement", "higher", "Adjusted mutual information of two partitions.", unit="feature", null="labels exchanged"
)
CHILDREN = Measure(
    "has a parent", "neither", "Share of features with a parent that stands.", unit="feature", percent=True
)
BLOBS = 7
ROOTS = 5
"""The first features: each is the parent of some of later rings."""


def plant(run: Run, store: FeatureStore) -> None:
    """Clusters, map and hierarchy of the store's features, of which the densest two are dense and apart."""
    rng = np.random.default_rng(0)
    density = np.array(store.columns()["density"])
    dense = np.argsort(-density)[:2].tolist()
    features = [int(i) for i in np.flatnonzero(density > 0) if i not in dense]
    blob = rng.integers(0, BLOBS, len(features))
    blob = np.argsort(np.argsort(-np.bincount(blob, minlength=BLOBS)))[blob]  # numbered by size
    _save(run, store, "clusters", [_score(AGREEMENT, features, rng)], _clusters(rng, features, dense, blob))
    _save(run, store, "map", [], _map(rng, features, dense, blob))
    _save(run, store, "hierarchy", [_score(CHILDREN, features, rng)], hierarchy(rng, store))


def _save(run: Run, store: FeatureStore, name: str, scores: list[Score], details: dict) -> None:
    save(Result(tuple(scores), details), {"coders": [store.about.coder]}, run.analysis, name)


def _score(measure: Measure, features: list[int], rng: np.random.Generator) -> Score:
    return score(measure, features[-1] + 1, features, rng.random(len(features)), null=0.1)


def _clusters(rng: np.random.Generator, features: list[int], dense: list[int], blob: np.ndarray) -> dict:
    partitions, communities = {}, {}
    for name, noise in (("tokens", 0.05), ("blocks", 0.3), ("geometry", 0.5)):
        labels = np.where(rng.random(len(blob)) < noise, -1, blob)
        partitions[name] = labels.tolist()
        communities[name] = [
            {
                "number": number,
                "size": int((labels == number).sum()),
                "central": [features[i] for i in np.flatnonzero(labels == number)[:12]],
            }
            for number in range(BLOBS)
        ]
    return {"features": features, "dense": dense, "partitions": partitions, "communities": communities}


def _map(rng: np.random.Generator, features: list[int], dense: list[int], blob: np.ndarray) -> dict:
    layouts = {}
    for name, spread in (("geometry", 0.7), ("coactivation", 0.4)):
        middles = 5 * rng.standard_normal((BLOBS, 2))
        x, y = (middles[blob] + spread * rng.standard_normal((len(blob), 2))).round(3).T.tolist()
        layouts[name] = {"x": x, "y": y}
    return {"features": features, "dense": dense, "layouts": layouts}


def hierarchy(rng: np.random.Generator, store: FeatureStore) -> dict:
    """Feature r < ROOTS has children in ring 1, and these in the last ring; every fifth edge is no better than chance.
    The suspects are of the first root."""
    first, *_, d_sae = store.about.widths
    second = store.about.widths[1]
    middle = [(i % ROOTS, first + i) for i in range(min(3 * ROOTS, second - first))]
    late = [(parent, second + 2 * n + k) for n, (_, parent) in enumerate(middle) for k in range(2)]
    pairs = [(parent, child) for parent, child in middle + late if child < d_sae]
    stands = [n % 5 != 4 for n in range(len(pairs))]
    passages, examples = {}, []
    numbers = sorted(i for group in store[0].groups[:1] for i in {example.window for example in group.examples})
    texts = {number: store.pieces(tokens)[:25] for number, tokens in store.windows(numbers).items()}
    for n in range(len(pairs)):
        number = numbers[n % len(numbers)]
        passages[str(number)] = {"tokens": texts[number], "at": min(12, len(texts[number]) - 1)}
        examples.append([{"place": number, "parent": round(3 * rng.random(), 3), "child": 1.5}])
    edges = {
        "parent": [parent for parent, _ in pairs],
        "child": [child for _, child in pairs],
        "coverage": (0.5 + 0.5 * rng.random(len(pairs))).tolist(),
        "lift": (2 + 30 * rng.random(len(pairs))).tolist(),
        "share": rng.random(len(pairs)).tolist(),
        "gain": [0.12 if stands[n] else 0.01 for n in range(len(pairs))],
        "null": [0.03] * len(pairs),
        "stands": stands,
        "examples": examples,
    }
    suspects = {
        "parent": [0, 0],
        "child": [d_sae - 1, d_sae - 2],
        "cosine": [0.61, 0.55],
        "coverage": [0.04, 0.11],
        "examples": [[{"place": numbers[0], "parent": 0.0, "child": 2.5}]] * 2,
    }
    return {"edges": edges, "suspects": suspects, "passages": passages, "rings": list(store.about.widths)}
