"""What finding activation patterns costs beyond the recording: `matryoshka.analysis.activation_patterns` at full size.

    python benchmarks/patterns.py             1,000,000 tokens, 12,288 latents, L0 32
    python benchmarks/patterns.py --quick     100,000 tokens, 3,072 latents

The recording is that of `correspondence.py`, of which coder A is taken: latents fire by chance, by Zipf's law, and
nothing is planted but their frequencies, so that what is found is found by chance. Measured in a process of its own.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from correspondence import QUICK, WIDE, coders, peak, record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # pyright: ignore[reportOptionalMemberAccess]
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    size = QUICK if given.quick else WIDE
    if given.child:
        print(json.dumps(measured(given.child, size)))
        return
    with tempfile.TemporaryDirectory() as folder:
        record(Path(folder) / "recording", size)
        command = [sys.executable, __file__, "--child", folder, *(["--quick"] if given.quick else [])]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        taken = json.loads(done.stdout.splitlines()[-1])
    print(
        f"{size['tokens']:,} tokens, {size['d_sae']:,} latents: {taken['seconds']:.1f} s ({taken['processor']:.1f} s of"
        f" CPU), peak memory {taken['peak'] / 1e9:.2f} GB ({taken['before'] / 1e9:.2f} before)\n{taken['found']}"
    )


def measured(folder: Path, size: dict[str, int]) -> dict[str, Any]:
    """Seconds and peak memory of the analysis of coder A, saved."""
    from matryoshka.analysis import activation_patterns
    from matryoshka.analysis.corpus import Corpus
    from matryoshka.analysis.observed import Observed
    from matryoshka.scores.saved import save
    from matryoshka.study.recording import Recording

    hooked, before = coders(size)[0], peak()
    recording = Recording(folder / "recording")
    started, processor = time.perf_counter(), time.process_time()
    result = activation_patterns.analyse(
        Observed("A", hooked, recording.of(hooked)), object.__new__(Corpus)
    )  # which is not read
    save(result, {}, folder, "patterns")
    taken = {"seconds": time.perf_counter() - started, "processor": time.process_time() - processor, "peak": peak()}
    found = ", ".join(f"{score.measure.name} {score.value:.3f} (null {score.null:.3f})" for score in result.scores)
    return taken | {"before": before, "found": found}


if __name__ == "__main__":
    main()
