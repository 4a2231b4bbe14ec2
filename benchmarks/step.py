"""The training step against other projects' and against its floor, in one run on one machine.

    python benchmarks/step.py [--quick] [--at D_SAE BATCH] [--json FILE] [--save] [--device cuda] [--peers DIR]
                              [--plain-malloc]

Pure training steps on activations in memory: each contender's own training loop (peers/), its own defaults, without
logging, evaluation, checkpoints or an activation store. sae-lens is run with its best options as well. Then

    1. ours against ourselves and the floor: five prefixes, one prefix, TopK, and the bare encoder product
    2. ours against each peer's trainer of the same architecture, one at a time, in alternating rounds
    3. peak memory of each, in a process of its own

`X_vs_Y` is their time over ours: above 1, ours is faster. `step_over_gemm` and `m5_over_m1` are ours over the floor and
over one prefix; `memory_vs_…` is our peak over theirs. Ratios are medians over rounds, with the extremes. The
environments of the peers are made on first use in ~/.cache/matryoshka/peers (--peers); several GB of packages.
--quick is one size in less than ten minutes (a larger one of --at takes longer). --save writes
results/DATE-HARDWARE.json and a table beside it.
"""

import argparse
import statistics
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path
from typing import Any

from harness import (
    TUNED,
    Contender,
    Effort,
    Setting,
    Size,
    available_threads,
    machine,
    match,
    memory,
    multiplies_bfloat16,
    publish,
    ratio,
)

SIZES = {
    "cpu": [Size(768, d_sae, 32, batch) for d_sae in (12_288, 24_576) for batch in (2048, 4096)],
    "cuda": [Size(2304, d_sae, 32, batch) for d_sae in (65_536, 36_864) for batch in (8192, 4096)],
}
"""The first of each is the one of --quick, and of the ratios at the head of the results."""
QUICK, WHOLE = Effort(rounds=7, seconds=20), Effort(rounds=9, seconds=90)


def ours(size: Size) -> dict[str, Contender]:
    """Our contenders by architecture; batchtopk is the Matryoshka with one prefix."""
    names = ("matryoshka", "batchtopk", "topk")
    return {name: Contender(f"ours-{name}", "ours.py", name, size) for name in names}


def floors(size: Size, device: str) -> list[Contender]:
    """The bare encoder products; the first is the one that a step is held against."""
    dtypes = ("bfloat16", "float32") if multiplies_bfloat16(device) else ("float32",)
    return [Contender(f"gemm-{dtype}", "floor.py", dtype, size) for dtype in dtypes]


def theirs(size: Size) -> list[Contender]:
    """Every trainer of a peer, with its default options, and sae-lens' with its best as well."""
    offered = {
        "saelens": ("matryoshka", "batchtopk", "topk"),
        "dictionary_learning": ("matryoshka", "batchtopk", "topk"),
        "sparsify": ("topk",),
    }
    contenders = [
        Contender(f"{peer}-{name}", f"with_{peer}.py", name, size, environment=peer)
        for peer, names in offered.items()
        for name in names
    ]
    best = [each._replace(name=f"{each.name}-best", best=True) for each in contenders if each.environment == "saelens"]
    return contenders + best


class Results:
    """What was measured at one size."""

    def __init__(self, size: Size) -> None:
        self.size = size
        self.ratios: dict[str, dict[str, float]] = {}
        self.seconds: dict[str, list[float]] = {}
        self.ends: dict[str, dict[str, Any]] = {}
        self.foreign = 0.0

    def hold(self, contenders: list[Contender], setting: Setting, effort: Effort) -> dict[str, list[float]]:
        """Run a match, keep what each contender did, and return the seconds by name."""
        timings = match(contenders, setting, effort)
        for name, each in timings.items():
            self.foreign = max(self.foreign, each.foreign)
            self.seconds.setdefault(name, []).extend(each.seconds)
            self.ends.setdefault(name, each.end)
        return {name: each.seconds for name, each in timings.items()}

    def summary(self) -> dict[str, Any]:
        """Plain values for JSON."""
        contenders = {}
        for name, seconds in self.seconds.items():
            median = statistics.median(seconds)
            contenders[name] = {
                "seconds": {"median": median, "min": min(seconds), "max": max(seconds), "rounds": len(seconds)},
                "steps_per_second": 1 / median,
                "tokens_per_second": self.size.batch / median,
                **self.ends[name],
            }
        return {
            **self.size._asdict(),
            "widths": self.size.widths,
            "ratios": {name: value["median"] for name, value in self.ratios.items()},
            "spreads": self.ratios,
            "foreign_load": self.foreign,
            "contenders": contenders,
        }


def measure(size: Size, setting: Setting, effort: Effort) -> dict[str, Any]:
    """All matches at one size."""
    print(f"d {size.d}, d_sae {size.d_sae}, k {size.k}, batch {size.batch}, widths {size.widths}", flush=True)
    results, mine, gemms = Results(size), ours(size), floors(size, setting.device)
    seconds = results.hold([*mine.values(), *gemms], setting, effort)
    five, one = seconds["ours-matryoshka"], seconds["ours-batchtopk"]
    results.ratios["step_over_gemm"] = ratio(five, seconds[gemms[0].name])
    results.ratios["topk_step_over_gemm"] = ratio(seconds["ours-topk"], seconds[gemms[0].name])
    results.ratios["m5_over_m1"] = ratio(five, one)
    for peer in theirs(size):
        our = mine[peer.architecture]
        seconds = results.hold([our, peer], setting, effort)
        name = f"{peer.architecture}_vs_{peer.environment}{'_best' if peer.best else ''}"
        results.ratios[name] = ratio(seconds[peer.name], seconds[our.name])
    compare_memory(results, [*mine.values(), *theirs(size)], setting)
    return results.summary()


def compare_memory(results: Results, contenders: list[Contender], setting: Setting) -> None:
    """Peak memory of each, and ours against each peer's Matryoshka trainer."""
    if setting.tuned:
        with ThreadPoolExecutor(2) as pool:  # memory does not mind company
            for contender, peaks in zip(contenders, pool.map(memory, contenders, repeat(setting)), strict=True):
                results.ends[contender.name] |= peaks
    our = results.ends["ours-matryoshka"]["peak_growth_bytes"]
    for contender in contenders:
        if contender.architecture == "matryoshka" and contender.environment:
            name = f"memory_vs_{contender.environment}{'_best' if contender.best else ''}"
            results.ratios[name] = ratio([our], [results.ends[contender.name]["peak_growth_bytes"]])


def markdown(results: dict[str, Any]) -> str:
    """The results as tables."""
    about = results["machine"]
    lines = [
        f"# Training steps on {about['hardware']}, {about['cores']} cores, {about['date']}",
        "",
        f"`{results['command']}`; torch {about['torch']}, {about['threads']} threads, native bfloat16: "
        f"{'yes' if about['native_bfloat16'] else 'no'}, allocator: {results['allocator'] or 'as it is'}.",
    ]
    for size in results["sizes"]:
        lines += ["", f"## d {size['d']}, d_sae {size['d_sae']:,}, k {size['k']}, batch {size['batch']}", ""]
        lines += [f"Other programs took at most {size['foreign_load']:.0%} of the processors in any round kept.", ""]
        lines += ["| ratio | median | smallest | largest | rounds |", "|---|---|---|---|---|"]
        for name, spread in size["spreads"].items():
            values = " | ".join(f"{spread[key]:.2f}" for key in ("median", "min", "max"))
            lines.append(f"| {name} | {values} | {spread['rounds']} |")
        lines += ["", "| contender | ms a step (smallest, largest) | tokens/s | peak MiB | FVU, steps 2 → n |"]
        lines.append("|---|---|---|---|---|")
        for name, each in size["contenders"].items():
            ms = {key: 1000 * each["seconds"][key] for key in ("median", "min", "max")}
            timing = f"{ms['median']:.0f} ({ms['min']:.0f}, {ms['max']:.0f})"
            fvu = f"{each['fvu'][0]:.4f} → {each['fvu'][1]:.4f} ({each['steps']})" if each["fvu"] else "–"
            peak = each["peak_growth_bytes"] / 2**20
            lines.append(f"| {name} | {timing} | {each['tokens_per_second']:,.0f} | {peak:,.0f} | {fvu} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one size, fewer rounds: less than ten minutes")
    parser.add_argument("--at", nargs=2, type=int, metavar=("D_SAE", "BATCH"), help="at this size alone")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was measured")
    parser.add_argument("--save", action="store_true", help="write results/DATE-HARDWARE.json and .md")
    parser.add_argument("--device", choices=SIZES, default="cpu")
    parser.add_argument("--peers", type=Path, metavar="DIR", default=Path.home() / ".cache" / "matryoshka" / "peers")
    parser.add_argument("--plain-malloc", action="store_true", help="leave every process' allocator as it is")
    given = parser.parse_args()
    threads = available_threads()
    tuned = given.device == "cpu" and not given.plain_malloc
    sizes, effort = (SIZES[given.device][:1], QUICK) if given.quick else (SIZES[given.device], WHOLE)
    if given.at:
        sizes = [sizes[0]._replace(d_sae=given.at[0], batch=given.at[1])]
    with tempfile.TemporaryDirectory() as data:
        setting = Setting(given.device, threads, tuned, given.peers, Path(data))
        measured = [measure(size, setting, effort) for size in sizes]
    results = {
        "ratios": measured[0]["ratios"],
        "command": " ".join(["python benchmarks/step.py", *sys.argv[1:]]),
        "machine": machine(given.device, threads),
        "allocator": " ".join(f"{name}={value}" for name, value in TUNED.items()) if tuned else "",
        "sizes": measured,
    }
    suffix = ("-{}-{}".format(*given.at) if given.at else "") + ("-plain-malloc" if given.plain_malloc else "")
    publish(results, markdown(results), given.json, given.save, suffix)


if __name__ == "__main__":
    main()
