"""Tokens a second from text to a trained coder, on this machine.

    python benchmarks/end_to_end.py [--model bundled] [--read 2.mlp_in] [--write 2.mlp_out] [--d-sae 3072] [--k 24]
                                    [--dtype auto] [--rounds 5] [--json FILE] [--save]

Measures, in rounds that alternate (machines have slow phases, so compare within a round): the language model alone,
stopped at the last site read; the coder's step alone, on activations in memory; and both, as `matryoshka train` runs
them. Prints medians with the smallest and the largest, and the share of the language model. --model takes what a recipe
takes, a GGUF file of SmolLM2-135M for one (tests/test_real.py fetches it), with --read 9.mlp_in --write 9.mlp_out;
--dtype is the language model's.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from harness import available_threads, machine, publish, ratio

from matryoshka.data.tokens import tokenise
from matryoshka.lm.model import load
from matryoshka.training.plan import check
from matryoshka.training.recipe import Config
from matryoshka.training.session import calibrate, new_trainees, open_stream
from matryoshka.training.supply import TextSupply


def seconds(job: Callable[[], object]) -> float:
    started = time.perf_counter()
    job()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def measure(config: Config, rounds: int) -> dict[str, Any]:
    """Tokens a second of each part and of the whole, and the language model's share of the whole's time."""
    _, plans = check(config)
    lm = load(**config.model.model_dump())
    stream = open_stream(config, TextSupply(config, lm, tokenise(config.text, *lm.vocabulary)), plans)
    trainee = new_trainees(config, plans, lm.device)[0]
    calibrate([trainee], stream)
    batch = next(stream)
    steps = config.activations.chunk // config.training.batch - 1
    rows = steps * config.training.batch

    def step_alone() -> None:
        for number in range(steps):
            trainee.step(batch, number, measure=False)

    def both() -> None:
        stream.chunks.chunk(0, 0, 2)
        step_alone()

    jobs = {
        "language model alone": (config.activations.chunk, lambda: stream.chunks.chunk(0, 0, 1)),
        "coder's step alone": (rows, step_alone),
        "end to end": (rows, both),
    }
    taken: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(rounds):
        for name, (_, job) in jobs.items():
            taken[name].append(seconds(job))
    rates = {name: sorted(tokens / each for each in taken[name]) for name, (tokens, _) in jobs.items()}
    return {
        "machine": machine(lm.device.type, available_threads()),
        "tokens_per_second": {
            name: {"median": statistics.median(values), "min": values[0], "max": values[-1], "rounds": rounds}
            for name, values in rates.items()
        },
        "language_model_share": ratio(taken["language model alone"], taken["end to end"]),
    }


def markdown(results: dict[str, Any]) -> str:
    """The results as one table."""
    about, coder = results["machine"], results["coder"]
    lines = [
        f"# From text to a trained coder on {about['hardware']}, {about['cores']} cores, {about['date']}",
        "",
        f"{results['model']} ({results['dtype']}), {coder['read']} → {coder['write']}, d_sae {coder['d_sae']:,},"
        f" k {coder['k']};"
        f" torch {about['torch']}, {about['threads']} threads.",
        "",
        "| | tokens/s (smallest, largest) |",
        "|---|---|",
    ]
    for name, each in results["tokens_per_second"].items():
        lines.append(f"| {name} | {each['median']:,.0f} ({each['min']:,.0f}, {each['max']:,.0f}) |")
    lines += ["", f"The language model takes {results['language_model_share']['median']:.0%} of the time end to end."]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--read", default="2.mlp_in")
    parser.add_argument("--write", default="2.mlp_out")
    parser.add_argument("--d-sae", type=int, default=3072)
    parser.add_argument("--k", type=int, default=24)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was measured")
    parser.add_argument("--save", action="store_true", help="write results/DATE-HARDWARE-end-to-end.json and .md")
    given = parser.parse_args()
    coder = {"read": given.read, "write": given.write, "d_sae": given.d_sae, "k": given.k}
    model = {"name": given.model, "dtype": given.dtype}
    config = Config.build({"model": model, "coder": coder, "activations": {"chunk": 16_384}})
    results = {"model": Path(given.model).name, "dtype": given.dtype, "coder": coder, **measure(config, given.rounds)}
    publish(results, markdown(results), given.json, given.save, "-end-to-end")


if __name__ == "__main__":
    main()
