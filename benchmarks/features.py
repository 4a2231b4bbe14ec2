"""What collecting features costs above the bare pass: the language model up to the written site, and the encoder.

    python benchmarks/features.py             1,000,000 tokens of the bundled model into 12,288 features
    python benchmarks/features.py --quick     200,000 tokens into 3,072

The coder is trained for a moment first, on text that is then left alone. Bare pass and collection alternate, each in a
process of its own; the collection's time is that of the whole: recording, making the features, writing the store.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

WIDE = {"d_sae": 12_288, "k": 32, "tokens": 1_000_000, "train": 100_000}
QUICK = {"d_sae": 3072, "k": 32, "tokens": 200_000, "train": 50_000}
ROUNDS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # pyright: ignore[reportOptionalMemberAccess]
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--child", choices=["bare", "collect"], help=argparse.SUPPRESS)
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    size = QUICK if given.quick else WIDE
    if given.child:
        print(json.dumps({"seconds": CHILDREN[given.child](given.run, size), "peak": peak()}))
        return
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        train(run, size)
        rounds = []
        for i in range(ROUNDS):
            rounds.append({name: child(name, run, given.quick) for name in CHILDREN})
            bare, collected = rounds[-1]["bare"], rounds[-1]["collect"]
            print(
                f"round {i + 1}: bare {bare['seconds']:.1f} s, collect {collected['seconds']:.1f} s,"
                f" ratio {collected['seconds'] / bare['seconds']:.3f}, peak memory {collected['peak'] / 1e9:.2f} GB"
            )
        ratios = [each["collect"]["seconds"] / each["bare"]["seconds"] for each in rounds]
        store = (run / "features.sqlite").stat().st_size
        print(
            f"{size['tokens']:,} tokens, {size['d_sae']:,} features: {median(ratios):.2f} × the bare pass"
            f" ({min(ratios):.2f}–{max(ratios):.2f}); store {store / 1e6:.0f} MB"
        )


def train(run: Path, size: dict[str, int]) -> None:
    command = [sys.executable, "-m", "matryoshka", "train", "--read", "2.mlp_in", "--write", "2.mlp_out"]
    command += ["--d-sae", str(size["d_sae"]), "--k", str(size["k"]), "--tokens", str(size["train"])]
    command += ["--batch", "1024", "--lr", "1e-3", "--out", str(run)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def child(name: str, run: Path, quick: bool) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", name, "--run", str(run), *(["--quick"] if quick else [])]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def bare(run: Path, size: dict[str, int]) -> float:
    """Seconds of the language model and the encoder alone."""
    from matryoshka.data.tokens import tokenise
    from matryoshka.lm.model import load
    from matryoshka.run import Run
    from matryoshka.study.hooked import hook_all
    from matryoshka.study.reader import READ_BATCH, batches, read, spread_windows
    from matryoshka.training.allocator import keep_freed_memory
    from matryoshka.training.recipe import Config

    keep_freed_memory()
    config = Config.load(Run.open(run).config_file)
    lm = load(**config.model.model_dump())
    windows = tokenise(config.text, *lm.vocabulary).windows("train")
    [hooked] = hook_all([Run(run).coder], lm, windows)
    started = time.perf_counter()
    for rows in read(lm, batches(windows, spread_windows(windows, size["tokens"]), READ_BATCH), [hooked]):
        rows.latents(hooked)
    return time.perf_counter() - started


def collect(run: Path, size: dict[str, int]) -> float:
    """Seconds of the whole collection, without loading the models."""
    from matryoshka import api

    started = 0.0

    def start(_: object) -> None:  # all is loaded then
        nonlocal started
        started = time.perf_counter()

    api.features(run, size["tokens"], split="train", overwrite=True, announce=start, keep_recording=False)
    return time.perf_counter() - started


def peak() -> int:
    """Bytes, as Linux counts them."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


CHILDREN = {"bare": bare, "collect": collect}

if __name__ == "__main__":
    main()
