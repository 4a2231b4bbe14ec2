"""What analyses of one coder that read its recording alone cost: clusters, map and patterns at full size.

    python benchmarks/analyses.py               1,000,000 tokens, 12,288 features, L0 32, d 768
    python benchmarks/analyses.py --quick       100,000 tokens, 3,072 features
    python benchmarks/analyses.py --only map    one of them

The recording is that of benchmarks/correspondence.py, whose features fire, and write, by chance: no score should say
otherwise. Each analysis is measured in a process of its own, imports and compilation included, and saved.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from apart import answer
from correspondence import QUICK, WIDE, coders, peak, record

NAMES = ("clusters", "map", "patterns")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # pyright: ignore[reportOptionalMemberAccess]
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", choices=NAMES)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    size = QUICK if given.quick else WIDE
    if given.child:
        folder, name = given.child
        print(json.dumps(measured(Path(folder), name, size)))
        return
    with tempfile.TemporaryDirectory() as folder:
        record(Path(folder) / "recording", size)
        for name in [given.only] if given.only else NAMES:
            taken = answer(__file__, "--child", folder, name, *(["--quick"] if given.quick else []))
            print(
                f"{name} of {size['d_sae']:,} features on {size['tokens']:,} tokens: {taken['seconds']:.1f} s"
                f" ({taken['processor']:.1f} s of CPU), peak memory {taken['peak'] / 1e9:.2f} GB\n{taken['found']}"
            )


def measured(folder: Path, name: str, size: dict[str, int]) -> dict[str, Any]:
    """Seconds and peak memory of one analysis, saved."""
    from matryoshka.analysis.catalogue import module_of
    from matryoshka.analysis.corpus import Corpus
    from matryoshka.analysis.observed import Observed
    from matryoshka.scores.saved import save
    from matryoshka.study.recording import Recording

    hooked, recording = coders(size)[0], Recording(folder / "recording")
    no_corpus = object.__new__(Corpus)  # none reads the text again
    started, processor = time.perf_counter(), time.process_time()
    result = module_of(name).analyse(Observed("A", hooked, recording.of(hooked)), no_corpus)
    save(result, {}, folder, name)
    taken = {"seconds": time.perf_counter() - started, "processor": time.process_time() - processor, "peak": peak()}
    found = ", ".join(f"{score.measure.name} {score.value:.3f} (null {score.null:.3f})" for score in result.scores)
    return taken | {"found": found}


if __name__ == "__main__":
    main()
