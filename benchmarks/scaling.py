"""What our training step costs as the number of prefixes, the dictionary and k grow.

    python benchmarks/scaling.py [--json FILE] [--save]

Prefixes M 1 → 8, d_sae ×8 (3,072 → 24,576), k ×4 (32 → 128), around d 768, d_sae 12,288, k 32, five prefixes and
batch 2048, on the activations and in the alternating rounds of step.py. Each line is a ratio to the first one of its
series: the median over rounds, with the extremes.
"""

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

from harness import Contender, Effort, Setting, Size, available_threads, machine, match, publish, ratio

BASE = Size(768, 12_288, 32, 2048)
SERIES: dict[str, dict[str, Size]] = {
    "prefixes": {str(m): BASE._replace(fractions=tuple(2.0**-i for i in reversed(range(m)))) for m in (1, 2, 4, 8)},
    "d_sae": {f"{d_sae:,}": BASE._replace(d_sae=d_sae) for d_sae in (3072, 6144, 12_288, 24_576)},
    "k": {str(k): BASE._replace(k=k) for k in (32, 64, 128)},
}


def measure(setting: Setting, effort: Effort) -> dict[str, dict[str, Any]]:
    """For each series and value: seconds a step, and their ratio to the first value's."""
    results: dict[str, dict[str, Any]] = {}
    for series, sizes in SERIES.items():
        contenders = [Contender(f"{series}={at}", "ours.py", "matryoshka", size) for at, size in sizes.items()]
        timings = match(contenders, setting, effort)
        first = timings[contenders[0].name].seconds
        results[series] = {
            at: {
                "seconds": statistics.median(timings[contender.name].seconds),
                "ratio": ratio(timings[contender.name].seconds, first),
            }
            for at, contender in zip(sizes, contenders, strict=True)
        }
    return results


def markdown(results: dict[str, Any]) -> str:
    """The results as one table."""
    about = results["machine"]
    lines = [
        f"# How a training step grows, on {about['hardware']}, {about['cores']} cores, {about['date']}",
        "",
        f"`python benchmarks/scaling.py`; d {BASE.d}, d_sae {BASE.d_sae:,}, k {BASE.k}, batch {BASE.batch} and five"
        " prefixes where nothing else is said.",
        "",
        "| series | value | ms a step | ratio (smallest, largest) |",
        "|---|---|---|---|",
    ]
    for series, values in results["series"].items():
        for at, each in values.items():
            spread = each["ratio"]
            span = f"{spread['median']:.2f} ({spread['min']:.2f}, {spread['max']:.2f})"
            lines.append(f"| {series} | {at} | {1000 * each['seconds']:.0f} | {span} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was measured")
    parser.add_argument("--save", action="store_true", help="write results/DATE-HARDWARE-scaling.json and .md")
    given = parser.parse_args()
    threads = available_threads()
    with tempfile.TemporaryDirectory() as data:
        # no peer takes part: where their environments lie does not matter
        setting = Setting("cpu", threads, tuned=True, peers=Path(data), data=Path(data))
        series = measure(setting, Effort(rounds=7, seconds=60))
    results = {"machine": machine("cpu", threads), "series": series}
    publish(results, markdown(results), given.json, given.save, "-scaling")


if __name__ == "__main__":
    main()
