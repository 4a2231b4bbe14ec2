"""How fast the page's views stand, in Debian's Chromium.

    python benchmarks/page.py [--features 36864] [--rounds 5] [--json FILE] [--save]

Builds a store as benchmarks/store.py does, with results of the analyses beside it: a map of all features, communities,
and an edge for every third feature. Serves it, and opens each view anew: milliseconds from the address to what it
shows, and of the processor's time that the page's main thread takes for it, which other programs do not change much.
"""

import argparse
import shutil
import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import Any, NamedTuple

import numpy as np
from harness import available_threads, machine, publish
from playwright.sync_api import Browser, Page, sync_playwright
from store import build, no_model

from matryoshka.features.store import FeatureStore
from matryoshka.report.server import Shown, serve
from matryoshka.run import Run
from matryoshka.scores.result import Result
from matryoshka.scores.saved import save

EXAMPLES, COMMUNITIES = 12, 200
FRAMES = 30
"""Drawn one after the other while the map moves."""
OPENED = {
    "overview": ("", ".score-groups"),
    "list": ("/features", ".rows .row"),
    "map": ("/map", ".community"),
    "tree": ("/tree", ".roots li"),
    "feature": ("/100", "article.card"),
}
"""What is opened, and what stands there when it is."""
MOVED = """frames => new Promise((resolve) => {
    const stage = document.querySelector(".stage"), times = [];
    const step = (then) => requestAnimationFrame((now) => {
        times.push(now - then);
        stage.dispatchEvent(new KeyboardEvent("keydown", {key: times.length % 2 ? "ArrowLeft" : "ArrowRight"}));
        times.length < frames ? step(now) : resolve(times.slice(2));
    });
    step(performance.now());
})"""


def plant(run: Run, store: FeatureStore) -> None:
    """Results of the analyses, in their layout and of their size."""
    rng, features = np.random.default_rng(0), len(store)
    numbers = list(range(features))
    of = np.sort(rng.zipf(1.3, features) % COMMUNITIES)
    places = 6 * rng.standard_normal((COMMUNITIES, 2))[of] + rng.standard_normal((features, 2))
    layouts = {name: dict(zip("xy", places.round(3).T.tolist(), strict=True)) for name in ("geometry", "coactivation")}
    communities = [
        {"number": i, "size": int((of == i).sum()), "central": np.flatnonzero(of == i)[:12].tolist()}
        for i in range(COMMUNITIES)
    ]
    kinds = ("tokens", "blocks", "geometry")
    child = np.arange(features // 8, features, 3)
    n = len(child)
    column = rng.random(n).tolist()
    edges = dict.fromkeys(("coverage", "lift", "share", "gain", "null"), column)
    edges |= {"parent": (child // 9).tolist(), "child": child.tolist(), "stands": [True] * n}
    edges["examples"] = [[{"place": i % 100, "parent": 1.0, "child": 2.0}] for i in range(n)]
    none = {"parent": [], "child": [], "cosine": [], "coverage": [], "examples": []}
    passages = {str(i): {"tokens": [" word"] * 25, "at": 12} for i in range(100)}
    details = {
        "map": {"features": numbers, "dense": [], "layouts": layouts},
        "clusters": {
            "features": numbers,
            "dense": [],
            "partitions": dict.fromkeys(kinds, of.tolist()),
            "communities": dict.fromkeys(kinds, communities),
        },
        "hierarchy": {"edges": edges, "suspects": none, "passages": passages},
    }
    for name, found in details.items():
        save(Result((), found), {"coders": [store.about.coder]}, run.analysis, name)


def served(shown: Shown) -> str:
    ready: Queue[str] = Queue()
    Thread(target=serve, args=([shown], 0, ready.put), daemon=True).start()
    return ready.get()


class Taken(NamedTuple):
    """Milliseconds."""

    wall: float
    processor: float
    """Of the page's main thread."""


@contextmanager
def fresh(browser: Browser) -> Iterator[tuple[Page, Callable[[], float]]]:
    """A new page, and the milliseconds of processor time that it has taken so far."""
    with closing(browser.new_page(viewport={"width": 1280, "height": 900})) as page:
        session = page.context.new_cdp_session(page)
        session.send("Performance.enable", {"timeDomain": "threadTicks"})

        def processor() -> float:
            metrics = session.send("Performance.getMetrics")["metrics"]
            return 1000 * next(metric["value"] for metric in metrics if metric["name"] == "TaskDuration")

        page.goto("about:blank")
        yield page, processor


def opened(browser: Browser, address: str, stands: str) -> Taken:
    """From nothing to what stands there."""
    with fresh(browser) as (page, processor):
        before = processor()
        page.goto(address, wait_until="commit")
        page.wait_for_selector(stands, state="attached")
        wall = page.evaluate("performance.now()")
        page.wait_for_timeout(300)
        return Taken(wall, processor() - before)


def moved(browser: Browser, address: str) -> list[Taken]:
    """Frames of the map while keys move it."""
    with fresh(browser) as (page, processor):
        page.goto(f"{address}#/0/map")
        page.wait_for_selector(OPENED["map"][1], state="attached")
        page.wait_for_timeout(500)
        before = processor()
        frames = page.evaluate(MOVED, FRAMES)
        each = (processor() - before) / FRAMES
        return [Taken(frame, each) for frame in frames]


def measure(features: int, rounds: int) -> dict[str, Any]:
    """Build, plant, serve, look."""
    results: dict[str, Any] = {"machine": machine("cpu", available_threads()), "milliseconds": {}}
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        run = Run(Path(folder))
        build(run.features_file, features, EXAMPLES)
        chromium = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        with closing(FeatureStore(run.features_file)) as store, closing(chromium):
            plant(run, store)
            address = served(Shown("", run, store, no_model))
            taken = {
                name: [opened(chromium, f"{address}#/0{path}", stands) for _ in range(rounds)]
                for name, (path, stands) in OPENED.items()
            }
            taken["a frame of the moving map"] = moved(chromium, address)
            results["milliseconds"] = {name: summary(times) for name, times in taken.items()}
    return results


def summary(times: list[Taken]) -> dict[str, float]:
    walls, processors = zip(*times, strict=True)
    return {"median": statistics.median(walls), "max": max(walls), "processor": statistics.median(processors)}


def markdown(results: dict[str, Any]) -> str:
    """The results as one table."""
    about = results["machine"]
    lines = [
        f"# The page on {about['hardware']}, {about['cores']} cores, {about['date']}",
        "",
        f"{results['features']:,} features, each view opened anew.",
        "",
        "| | median, ms | largest, ms | processor's time of the page, ms |",
        "|---|---|---|---|",
    ]
    for name, of in results["milliseconds"].items():
        lines.append(f"| {name} | {of['median']:,.0f} | {of['max']:,.0f} | {of['processor']:,.0f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--features", type=int, default=36_864)
    parser.add_argument("--rounds", type=int, default=5, help="openings of each view")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was measured")
    parser.add_argument("--save", action="store_true", help="write results/DATE-HARDWARE-page.json and .md")
    given = parser.parse_args()
    results = {"features": given.features, **measure(given.features, given.rounds)}
    publish(results, markdown(results), given.json, given.save, "-page")


if __name__ == "__main__":
    main()
