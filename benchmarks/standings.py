"""The race's table: for each number of tokens and architecture, every contender with its defaults, and with the
best of its learning rates."""

import statistics
from collections.abc import Iterator, Sequence
from typing import Any

Result = dict[str, Any]
"""A cell of race.py and what was measured."""
ARCHITECTURES = ("matryoshka", "batchtopk", "topk", "jumprelu")


def markdown(results: dict[str, Any]) -> str:
    """All that was measured, as tables."""
    about, size, rows = results["machine"], results["size"], results["rows"]
    lines = [
        f"# Held-out FVU at equal tokens on {about['hardware']}, {about['threads']} threads, {about['date']}",
        "",
        f"`{results['command']}`; {rows['model']} at {rows['site']}, d {size['d']}, d_sae {size['d_sae']:,},"
        f" k {size['k']}, batch {size['batch']}; {rows['train']:,} training rows, judged on"
        f" {rows['held_out']:,} held-out ones; torch {about['torch']}. Means over seeds (smallest–largest).",
    ]
    cells: list[Result] = results["cells"]
    for tokens in sorted({cell["tokens"] for cell in cells}):
        epochs = max(cell["epochs"] for cell in cells if cell["tokens"] == tokens)
        for architecture in ARCHITECTURES:
            group = [cell for cell in cells if (cell["tokens"], cell["architecture"]) == (tokens, architecture)]
            if group:
                lines += ["", f"## {architecture}, {tokens:,} tokens ({epochs:.2f} epochs)", "", *_group(group, size)]
    return "\n".join(lines) + "\n"


def _group(group: Sequence[Result], size: dict[str, Any]) -> Iterator[str]:
    prefixes = [f"{width:,}" for width in size["widths"][:-1]]
    columns = ["contender", "setting", "seeds", "FVU", *prefixes, "FVU by threshold", "L0", "L0 by threshold"]
    columns += ["silent", "s", "processor s", "peak MiB"]
    yield f"| {' | '.join(columns)} |"
    yield "|" + "---|" * len(columns)
    for contender in dict.fromkeys(cell["contender"] for cell in group):
        its = [cell for cell in group if cell["contender"] == contender]
        if default := [cell for cell in its if cell["lr"] is None]:
            yield _line(contender, "default", default)
        rates = {lr: [cell for cell in its if cell["lr"] == lr] for lr in {cell["lr"] for cell in its} - {None}}
        if rates:
            best = min(rates, key=lambda lr: _rank(rates[lr], max(map(len, rates.values()))))
            edge = ", the last tried" if len(rates) > 1 and best in (min(rates), max(rates)) else ""
            yield _line(contender, f"lr {best:g} of {len(rates)}{edge}", rates[best])


def _rank(runs: Sequence[Result], seeds: int) -> tuple[bool, float]:
    """Smaller is better: a rate that has not been run on all seeds, or was not finite on one, comes last."""
    whole = len(runs) == seeds and all(run["finite"] for run in runs)
    return not whole, statistics.mean(run["fvu"][-1] for run in runs) if whole else 0.0


def _line(contender: str, setting: str, runs: Sequence[Result]) -> str:
    finite = [run for run in runs if run["finite"]]
    fvus = [[run["fvu"][m] for run in finite] for m in range(len(finite[0]["fvu"]))] if finite else [[]]
    thresholded = [run for run in finite if "threshold" in run]
    words = [contender, setting, str(len(runs)), _spread(fvus[-1], 4)]
    words += [_spread(fvu, 3) for fvu in fvus[:-1]]
    words += [
        _spread([run["fvu_by_threshold"][-1] for run in thresholded], 4),
        _spread([run["l0"] for run in finite], 1),
        _spread([run["l0_by_threshold"] for run in thresholded], 1),
        _spread([100 * run["silent"] for run in finite], 1, " %"),
        _spread([run["seconds"] for run in runs], 0),
        _spread([run["processor_seconds"] for run in runs], 0),
        _spread([run["peak_growth_bytes"] / 2**20 for run in runs], 0),
    ]
    if len(finite) < len(runs):
        words[3] += f", {len(runs) - len(finite)} of {len(runs)} NaN"
    return f"| {' | '.join(words)} |"


def _spread(values: Sequence[float], digits: int, unit: str = "") -> str:
    """Mean (smallest–largest), or a dash where there are none."""
    if not values:
        return "–"
    mean = f"{statistics.mean(values):,.{digits}f}{unit}"
    return mean if len(values) == 1 else f"{mean} ({min(values):,.{digits}f}–{max(values):,.{digits}f})"
