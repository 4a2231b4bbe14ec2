"""What matching two coders costs beyond their recording: `matryoshka.analysis.correspondence` at full size.

    python benchmarks/correspondence.py             1,000,000 tokens, two coders of 12,288 latents, L0 32, d 768
    python benchmarks/correspondence.py --quick     100,000 tokens, 3,072 latents

The recording is synthetic: frequencies by Zipf's law; a latent of A with an even number has one of B that fires with it
seven times in ten, the others have none. Everything is measured in a process of its own: matches in both directions,
those by chance, decoder cosines, the pairing one to one, intervals, and what is saved.
"""

import argparse
import json
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from apart import answer

WIDE = {"d_sae": 12_288, "l0": 32, "tokens": 1_000_000, "d": 768}
QUICK = {"d_sae": 3072, "l0": 32, "tokens": 100_000, "d": 256}
CONTEXT, DOCUMENT, WINDOWS = 100, 500, 500
FOLLOWS = 0.7
"""How often a latent of B fires where its partner does."""


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
        taken = answer(__file__, "--child", folder, *(["--quick"] if given.quick else []))
    print(
        f"{size['tokens']:,} tokens, two coders of {size['d_sae']:,} latents: {taken['seconds']:.1f} s"
        f" ({taken['processor']:.1f} s of CPU), peak memory {taken['peak'] / 1e9:.2f} GB\n{taken['found']}"
    )


def coders(size: dict[str, int]) -> list[Any]:
    """A and B at a site of their own each; their weights are random."""
    from matryoshka.coder.architecture import CoderConfig, TopKConfig
    from matryoshka.coder.coder import SparseCoder
    from matryoshka.lm.sites import Site, Wiring
    from matryoshka.study.hooked import EVERY_ROW, HookedCoder

    d, d_sae = size["d"], size["d_sae"]
    config = CoderConfig(reads=(d,), writes=(d,), d_sae=d_sae, widths=(d_sae,), activation=TopKConfig(k=size["l0"]))
    sites = [Site("resid_post", layer) for layer in (0, 1)]
    return [
        HookedCoder(SparseCoder(config).initialise(i, tied=True).eval(), Wiring.of([site], [site]), EVERY_ROW, f"{i}")
        for i, site in enumerate(sites)
    ]


def record(folder: Path, size: dict[str, int]) -> None:
    from matryoshka.study.recorder import CoderRows, Recorder
    from matryoshka.study.recording import Head

    made, generator, d_sae = coders(size), np.random.default_rng(0), size["d_sae"]
    windows = size["tokens"] // CONTEXT
    sizes = {hooked.key: d_sae for hooked in made}
    recorder = Recorder(folder, Head(of={}, context=CONTEXT, total=windows, coders=sizes, columns={}))
    frequencies = np.cumsum(np.arange(1, d_sae + 1) ** -0.7)
    for start in range(0, windows, WINDOWS):
        n = min(WINDOWS, windows - start)
        shares = generator.random((2, n * CONTEXT, size["l0"]))
        drawn = np.searchsorted(frequencies, shares * frequencies[-1]).clip(0, d_sae - 1)
        follows = (drawn[0] % 2 == 0) & (generator.random(drawn[0].shape) < FOLLOWS)
        both = drawn[0], np.where(follows, d_sae - 1 - drawn[0], drawn[1] // 2 * 2)  # an even one of B is nobody's
        places = (start * CONTEXT + np.arange(n * CONTEXT)).reshape(n, CONTEXT)
        kept = np.ones((n, CONTEXT), bool)
        rows = {h.key: CoderRows(kept, ~kept, sparse(of, d_sae, generator)) for h, of in zip(made, both, strict=True)}
        recorder.append(places % 1000, places // DOCUMENT, rows)
    recorder.commit()
    recorder.close()


def sparse(drawn: np.ndarray, d_sae: int, generator: np.random.Generator) -> Any:
    """Latents of these numbers, a row a token, each once."""
    import torch

    from matryoshka.coder.latents import Latents, Pattern

    drawn = np.sort(drawn, 1)
    first = np.diff(drawn, axis=1, prepend=-1) > 0
    offsets = np.concatenate([[0], np.cumsum(first.sum(1))])
    values = 0.1 + generator.random(int(offsets[-1]), dtype=np.float32)
    return Latents(Pattern(torch.from_numpy(drawn[first]), torch.from_numpy(offsets), d_sae), torch.from_numpy(values))


def measured(folder: Path, size: dict[str, int]) -> dict[str, Any]:
    """Seconds and peak memory of the analysis of both, saved."""
    from matryoshka.analysis import correspondence
    from matryoshka.analysis.observed import Observed, Pair
    from matryoshka.scores.saved import save
    from matryoshka.study.recording import Recording

    hooked = coders(size)
    recording = Recording(folder / "recording")
    started, processor = time.perf_counter(), time.process_time()
    pair = Pair(*(Observed(name, coder, recording.of(coder)) for name, coder in zip("AB", hooked, strict=True)))
    result = correspondence.analyse(pair)
    save(result, {}, folder, "A--B")
    taken = {"seconds": time.perf_counter() - started, "processor": time.process_time() - processor, "peak": peak()}
    found = ", ".join(f"{score.measure.name} {score.value:.3f} (null {score.null:.3f})" for score in result.scores)
    return taken | {"found": found}


def peak() -> int:
    """Bytes, as Linux counts them."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


if __name__ == "__main__":
    main()
