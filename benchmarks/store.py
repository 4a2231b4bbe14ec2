"""What the store of features answers in, and how large it is.

    python benchmarks/store.py [--features 36864] [--examples 100] [--export 4608] [--rounds 200] [--json FILE] [--save]

Builds a store of so many features with so many examples each, as `matryoshka features` fills it: windows of 128 tokens
shared by the features, tokens by a Zipf law, some six activations an example, half of the examples the strongest, half
from five quantile groups. Then prints medians and maxima of calls for features, words and statistics drawn at random.
--export writes a page of the first so many features as a folder (0: none).
"""

import argparse
import statistics
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import date
from functools import partial
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import Any

import numpy as np
from harness import available_threads, machine, publish

from matryoshka.features.feature import BINS, TokenShare, summarise
from matryoshka.features.reading import Reading
from matryoshka.features.schema import STATISTICS, About
from matryoshka.features.store import FeatureStore
from matryoshka.features.writer import Row, Writer
from matryoshka.report import data
from matryoshka.report.server import Shown, serve
from matryoshka.report.static_page import write_page
from matryoshka.run import Run

CONTEXT, WINDOWS, VOCABULARY = 128, 15_625, 50_000
GROUPS, NEIGHBOURS, EFFECTS, TOP_TOKENS = 5, 10, 10, 10
RINGS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)
SOUGHT = {"common": "the", "rare": "zyzzyva", "missing": "qqqxxqqq", "short": "th", "shortest": "q"}
"""What is searched for; the rare word is written into one note."""


def vocabulary(rng: np.random.Generator) -> list[bytes]:
    """Words of syllables, most with the space before them, as byte-level tokenizers have."""
    syllables = ["th", "the", "an", "re", "in", "er", "al", "on", "ti", "es", "or", "en", "qu", "ly", "ing", "com", "é"]
    words = {"".join(rng.choice(syllables, rng.integers(1, 5))) for _ in range(3 * VOCABULARY)}
    found = [f" {word}" if i % 4 else word for i, word in enumerate(sorted(words))][:VOCABULARY]
    found += [f" {i}" for i in range(VOCABULARY - len(found))]
    return [found[i].encode() for i in rng.permutation(VOCABULARY)]


def draw(rng: np.random.Generator, size: int | tuple[int, ...]) -> np.ndarray:
    """Tokens by a Zipf law."""
    return np.minimum(VOCABULARY ** rng.random(size), VOCABULARY - 1).astype(np.int32)


def rows(rng: np.random.Generator, features: int, examples: int, words: list[bytes]) -> Iterator[Row]:
    """The features, in the shapes and types that `features/collection.py` gives them."""
    ends = [round(features * share) for share in RINGS]
    group = np.repeat(np.arange(GROUPS + 1), [examples - examples // 2, *_shares(examples // 2)]).astype(np.uint8)
    for index in range(features):
        fired = rng.integers(1, 12, examples)  # about six an example
        offsets = np.concatenate([[0], np.cumsum(fired)]).astype(np.int32)
        positions = [np.sort(rng.choice(CONTEXT, n, replace=False)) for n in fired]
        top = np.unique(draw(rng, 3 * TOP_TOKENS))[:TOP_TOKENS]
        shares = np.sort(rng.dirichlet(np.ones(len(top))))[::-1].astype(np.float32)
        named = [
            TokenShare(words[token].decode(), share, 1)
            for token, share in zip(top.tolist(), shares.tolist(), strict=True)
        ]
        count = int(np.exp(rng.normal(7, 1.5))) + 1
        others = rng.choice(features, (2, min(NEIGHBOURS, features)))
        yield Row(
            index=index,
            statistics={
                "ring": int(np.searchsorted(ends, index, side="right")),
                "count": count,
                "density": count / (WINDOWS * CONTEXT),
                **{name: float(rng.lognormal()) for name in ("mean", "mean_square", "max", "entropy")},
                **{name: float(rng.random()) for name in ("first", "cosine")},
            },
            flags=int(rng.random() < 0.05) << 2,
            summary=summarise(named),
            tokens="".join(each.token for each in named),
            arrays={
                "histogram": rng.integers(1, 500, BINS).astype(np.int32),
                "range": np.array([0.1, 10.0]),
                "limits": np.sort(rng.random((GROUPS, 2)).astype(np.float32), axis=1),
                "top_tokens": top,
                "top_counts": rng.integers(1, 500, len(top)).astype(np.int32),
                "top_shares": shares,
                "example_group": group,
                "example_window": rng.integers(0, WINDOWS, examples).astype(np.int32),
                "example_document": rng.integers(0, 1000, examples).astype(np.int32),
                "example_peak": np.array([each[0] for each in positions], np.int32),
                "example_offsets": offsets,
                "positions": np.concatenate(positions).astype(np.uint16),
                "values": rng.lognormal(size=offsets[-1]).astype(np.float32),
                "cosine_other": others[0].astype(np.int32),
                "cosine_value": rng.random(len(others[0])).astype(np.float32),
                "coactive_other": others[1].astype(np.int32),
                "coactive_value": rng.random(len(others[1])).astype(np.float32),
                "logit_tokens": draw(rng, 2 * EFFECTS),
                "logit_effects": rng.normal(size=2 * EFFECTS).astype(np.float32),
            },
        )


def _shares(examples: int) -> list[int]:
    """`examples` over the quantile groups, as evenly as possible."""
    return [examples * (i + 1) // GROUPS - examples * i // GROUPS for i in range(GROUPS)]


def build(path: Path, features: int, examples: int) -> None:
    """Make the store."""
    rng = np.random.default_rng(0)
    words = vocabulary(rng)
    writer = Writer(path, words)
    try:
        writer.features(rows(rng, features, examples, words))
        writer.windows((i, draw(rng, CONTEXT)) for i in range(WINDOWS))
        children = rng.integers(features // 2, features, features // 4).tolist()
        writer.parents({(child, child // 3): (child, child // 3, 0.8) for child in children}.values())
        about = About(
            coder="0" * 64, model="synthetic", read="8.mlp_in", write="8.mlp_out", activation="batchtopk", k=32,
            widths=tuple(round(features * share) for share in RINGS), context=CONTEXT, text="synthetic",
            split="held_out", windows=WINDOWS, documents=1000, tokens=WINDOWS * CONTEXT, tokens_left_out=WINDOWS,
            left_out="nothing", largest_norms={}, direct_path=True, collected=date.today(), top=examples // 2,
            groups=GROUPS, members=examples // 2 // GROUPS, seed=0,
        )  # fmt: skip
        writer.finish(about, {features // 2: ("", SOUGHT["rare"])}).close()
    finally:
        writer.abandon()


def server(store: FeatureStore) -> Callable[[str], bytes]:
    """A server of this store; the function that asks it."""
    ready: Queue[str] = Queue()
    Thread(target=serve, args=([Shown("", Run(store.path.parent), store, no_model)], 0, ready.put), daemon=True).start()
    address = ready.get().rstrip("/")

    def get(path: str) -> bytes:
        with urllib.request.urlopen(address + path) as answer:
            return answer.read()

    return get


def first(path: Path) -> None:
    with closing(FeatureStore(path)) as store:
        _ = store[len(store) // 3]


def no_model(text: str) -> Reading:
    raise NotImplementedError


def jobs(store: FeatureStore, rng: np.random.Generator) -> dict[str, Callable[[], object]]:
    """What is timed, each call on another feature."""
    get = server(store)

    def any_feature() -> int:
        return int(rng.integers(len(store)))

    return {
        "open the store": lambda: FeatureStore(store.path).close(),
        "open it, and the first feature": lambda: first(store.path),
        "a feature": lambda: store[any_feature()],
        "a feature's card as JSON": lambda: data.to_json(data.card(store, any_feature())),
        "a card from the server": lambda: get(f"/api/runs/0/features/{any_feature()}"),
        "a label": lambda: store.annotate(any_feature(), f"label {any_feature()}"),
        "overview as JSON": lambda: data.to_json(data.overview(store, "0", "")),
        "overview from the server": lambda: get("/api/runs/0"),
        "all columns": store.columns,
        **{f"sort by {name}": partial(store.ranking, name) for name in STATISTICS},
        **{
            f"search, {kind} ({len(store.search(text)):,})": partial(store.search, text)
            for kind, text in SOUGHT.items()
        },
    }


def seconds(job: Callable[[], object], rounds: int) -> list[float]:
    """Of `rounds` calls, or of as many as five seconds hold, but of three at least."""
    taken: list[float] = []
    while len(taken) < rounds and (sum(taken) < 5 or len(taken) < 3):
        started = time.perf_counter()
        job()
        taken.append(time.perf_counter() - started)
    return taken


def measure(features: int, examples: int, exported: int, rounds: int) -> dict[str, Any]:
    """Build, ask, export."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "features.sqlite"
        results: dict[str, Any] = {"machine": machine("cpu", available_threads()), "milliseconds": {}}
        results["build_seconds"] = seconds(partial(build, path, features, examples), 1)[0]
        results["megabytes"] = path.stat().st_size / 1e6
        with closing(FeatureStore(path)) as store:
            for name, job in jobs(store, np.random.default_rng(1)).items():
                taken = [1000 * each for each in seconds(job, rounds)]
                results["milliseconds"][name] = {
                    "median": statistics.median(taken), "max": max(taken), "calls": len(taken),
                }  # fmt: skip
        if exported:
            part = Path(folder) / "part.sqlite"
            build(part, exported, examples)
            with closing(FeatureStore(part)) as store:
                page = Path(folder) / "page"
                results["export"] = {
                    "features": exported,
                    "seconds": seconds(partial(write_page, Run(store.path.parent), store, "", page), 1)[0],
                }
                results["export"]["megabytes"] = sum(f.stat().st_size for f in page.rglob("*") if f.is_file()) / 1e6
    return results


def markdown(results: dict[str, Any]) -> str:
    """The results as one table."""
    about = results["machine"]
    lines = [
        f"# The store of features on {about['hardware']}, {about['cores']} cores, {about['date']}",
        "",
        f"{results['features']:,} features of {results['examples']} examples: {results['megabytes']:,.0f} MB, built in"
        f" {results['build_seconds']:,.0f} s.",
        "",
        "| | median, ms | largest, ms | calls |",
        "|---|---|---|---|",
    ]
    for name, each in results["milliseconds"].items():
        lines.append(f"| {name} | {each['median']:,.2f} | {each['max']:,.2f} | {each['calls']} |")
    if page := results.get("export"):
        size, taken = page["megabytes"], page["seconds"]
        lines += ["", f"A page of {page['features']:,} features as a folder: {taken:,.1f} s, {size:,.1f} MB."]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--features", type=int, default=36_864)
    parser.add_argument("--examples", type=int, default=100, help="of each feature")
    parser.add_argument("--export", type=int, default=4608, metavar="N", help="write a page of N features; 0: none")
    parser.add_argument("--rounds", type=int, default=200, help="calls of each kind, at most")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was measured")
    parser.add_argument("--save", action="store_true", help="write results/DATE-HARDWARE-store.json and .md")
    given = parser.parse_args()
    results = {
        "features": given.features,
        "examples": given.examples,
        **measure(given.features, given.examples, given.export, given.rounds),
    }
    publish(results, markdown(results), given.json, given.save, "-store")


if __name__ == "__main__":
    main()
