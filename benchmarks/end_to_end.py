"""Tokens a second from text to a trained coder, on this machine.

    python benchmarks/end_to_end.py [--model bundled] [--read 2.mlp_in] [--write 2.mlp_out] [--d-sae 3072] [--rounds 5]

Measures, in rounds that alternate (machines have slow phases, so compare within a round): the language model alone,
stopped at the last site read; the coder's step alone, on activations in memory; and both, as `matryoshka train` runs
them. Prints medians with the smallest and the largest, and the share of the language model.
"""

import argparse
import statistics
import time
from collections.abc import Callable

from matryoshka import assembly, commands
from matryoshka.training.config import Config


def rate(tokens: int, job: Callable[[], object]) -> float:
    started = time.perf_counter()
    job()
    return tokens / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--read", default="2.mlp_in")
    parser.add_argument("--write", default="2.mlp_out")
    parser.add_argument("--d-sae", type=int, default=3072)
    parser.add_argument("--k", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    coder = {"read": given.read, "write": given.write, "d_sae": given.d_sae, "k": given.k}
    config = Config.build({"model": {"name": given.model}, "coder": coder, "activations": {"chunk": 16_384}})
    info, plans = assembly.check(config)
    lm = commands.open_lm(config)
    stream = assembly.open_stream(config, lm, assembly.open_tokens(config.text, lm.vocabulary), plans)
    trainee = assembly.new_trainees(config, plans, lm.device, info)[0]
    assembly.calibrate([trainee], stream)
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
    rates: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(given.rounds):
        for name, (tokens, job) in jobs.items():
            rates[name].append(rate(tokens, job))
    for name, values in rates.items():
        middle = statistics.median(values)
        print(f"{name:22} {middle:10,.0f} tokens/s   ({min(values):,.0f} to {max(values):,.0f}, {len(values)} rounds)")


if __name__ == "__main__":
    main()
