"""What the hierarchy of a coder costs beyond its recording and the text: `matryoshka.analysis.hierarchy` at full size.

    python benchmarks/hierarchy.py             1,000,000 tokens, 12,288 latents in five rings, L0 some 30, d 768
    python benchmarks/hierarchy.py --quick     100,000 tokens, 3,072 latents

The recording is synthetic: frequencies by Zipf's law; a latent of an even number has a parent of an earlier ring, which
fires with it nine times in ten and is in its decoder row, the others have none. Activations are what the coder writes,
and noise: making them takes the language model's place, and is not counted.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from apart import answer
from correspondence import CONTEXT, DOCUMENT, WINDOWS, peak, sparse

WIDE = {"d_sae": 12_288, "drawn": 24, "tokens": 1_000_000, "d": 768}
QUICK = {"d_sae": 3072, "drawn": 20, "tokens": 100_000, "d": 256}
READ = 16
"""Windows that are read at once."""
FOLLOWS = 0.9
"""How often a parent fires where its child does."""


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
        f"{size['tokens']:,} tokens, {size['d_sae']:,} latents, {taken['l0']:.1f} active: {taken['processor']:.1f} s of"
        f" CPU, memory {taken['before'] / 1e9:.2f} GB before and {taken['peak'] / 1e9:.2f} GB at the peak\n"
        f"{taken['found']}"
    )


def parents(d_sae: int) -> tuple[tuple[int, ...], np.ndarray]:
    """(widths, the parent of each latent; −1 of those that have none)."""
    widths = tuple(d_sae // part for part in (16, 8, 4, 2, 1))
    starts = np.array([0, *widths[:-1]])[np.searchsorted(widths, np.arange(d_sae), side="right")]
    drawn = (np.random.default_rng(1).random(d_sae) * starts).astype(np.int64)
    return widths, np.where((np.arange(d_sae) % 2 == 0) & (starts > 0), drawn, -1)


def coder(size: dict[str, int]) -> Any:
    """An SAE whose rows are random; those of children are half their parents'."""
    import torch

    from matryoshka.coder.architecture import TopKConfig
    from matryoshka.coder.coder import SparseCoder
    from matryoshka.coder.weights import Weights
    from matryoshka.lm.sites import Site, Wiring
    from matryoshka.study.hooked import EVERY_ROW, HookedCoder

    widths, parent = parents(size["d_sae"])
    rows = torch.nn.functional.normalize(
        torch.randn(size["d_sae"], size["d"], generator=torch.Generator().manual_seed(0))
    )
    child = torch.from_numpy(np.flatnonzero(parent >= 0))
    rows[child] = torch.nn.functional.normalize(rows[child] + 0.6 * rows[torch.from_numpy(parent)[child]])
    weights = Weights(rows.T, torch.zeros(size["d_sae"]), rows, torch.zeros(size["d"]))
    made = SparseCoder.of(weights, TopKConfig(k=32), widths)
    site = Site("resid_post", 0)
    return HookedCoder(made, Wiring.of([site], [site]), EVERY_ROW, "planted")


def record(folder: Path, size: dict[str, int]) -> None:
    from matryoshka.study.recorder import CoderRows, Recorder
    from matryoshka.study.recording import Head

    hooked, generator, d_sae = coder(size), np.random.default_rng(0), size["d_sae"]
    _, parent = parents(d_sae)
    windows = size["tokens"] // CONTEXT
    recorder = Recorder(folder, Head(of={}, context=CONTEXT, total=windows, coders={hooked.key: d_sae}, columns={}))
    frequencies = np.cumsum(np.arange(1, d_sae + 1) ** -0.7)
    for start in range(0, windows, WINDOWS):
        n = min(WINDOWS, windows - start)
        shares = generator.random((n * CONTEXT, size["drawn"]))
        drawn = np.searchsorted(frequencies, shares * frequencies[-1]).clip(0, d_sae - 1)
        follows = (parent[drawn] >= 0) & (generator.random(drawn.shape) < FOLLOWS)
        both = np.concatenate([drawn, np.where(follows, parent[drawn], drawn)], 1)
        places = (start * CONTEXT + np.arange(n * CONTEXT)).reshape(n, CONTEXT)
        kept = np.ones((n, CONTEXT), bool)
        rows = {hooked.key: CoderRows(kept, ~kept, sparse(both, d_sae, generator))}
        tokens = (generator.pareto(1.0, places.shape) * 10).astype(np.int64).clip(0, 49_999)
        recorder.append(tokens, places // DOCUMENT, rows)
    recorder.commit()
    recorder.close()


def corpus_of(hooked: Any, recorded: Any, spent: list[float]) -> Any:
    """What the coder writes where its latents are as they are recorded, and noise; `spent`: seconds of CPU on it."""
    import scipy.sparse as sp
    import torch

    from matryoshka.analysis.corpus import Corpus
    from matryoshka.study.reader import Rows, Text

    class Planted(Corpus):
        def __init__(self) -> None:
            self.token_bytes = [f" {number}".encode() for number in range(50_000)]

        def rows(self, coders: Any, sites: Any = ()) -> Iterator[Rows]:
            directions, offsets = hooked.coder.decoder_rows().numpy(), recorded.offsets
            noise = np.random.default_rng(0).normal(0, 0.02, (READ * CONTEXT, directions.shape[1])).astype(np.float32)
            for start in range(0, len(recorded.counts), READ * CONTEXT):
                began, end = time.process_time(), min(start + READ * CONTEXT, len(recorded.counts))
                own, shape = slice(offsets[start], offsets[end]), (end - start, len(directions))
                parts = (
                    recorded.values[own],
                    recorded.indices[own].astype(np.int32),
                    offsets[start : end + 1] - own.start,
                )
                y = torch.from_numpy(sp.csr_array(parts, shape) @ directions + noise[: end - start])
                n = (end - start) // CONTEXT
                tokens = torch.zeros(n, CONTEXT, dtype=torch.int64)
                activations = {hooked.wiring.reads[0]: y.reshape(n, CONTEXT, -1)}
                spent.append(time.process_time() - began)
                yield Rows(Text(tokens.numpy(), tokens.numpy(), np.arange(n)), tokens, activations)

    return Planted()


def measured(folder: Path, size: dict[str, int]) -> dict[str, Any]:
    """Seconds and memory of the analysis, saved."""
    from matryoshka.analysis import hierarchy
    from matryoshka.analysis.observed import Observed
    from matryoshka.scores.saved import save
    from matryoshka.study.recording import Recording

    hooked, spent = coder(size), []
    recorded = Recording(folder / "recording").of(hooked)
    corpus, before, processor = corpus_of(hooked, recorded, spent), peak(), time.process_time()
    result = hierarchy.analyse(Observed("planted", hooked, recorded), corpus)
    save(result, {}, folder, "hierarchy")
    taken = {"processor": time.process_time() - processor - sum(spent), "before": before, "peak": peak()}
    edges, truth = result.details["edges"], parents(size["d_sae"])[1]
    stand = [pair for pair, of in zip(zip(edges["parent"], edges["child"]), edges["stands"]) if of]  # noqa: B905
    right = sum(truth[child] == parent for parent, child in stand)
    scores = ", ".join(f"{score.measure.name} {score.value:.3f} (null {score.null:.3f})" for score in result.scores)
    found = (
        f"{len(stand):,} of {len(edges['stands']):,} edges stand, {right:,} of {(truth >= 0).sum():,} planted; {scores}"
    )
    return taken | {"l0": len(recorded.values) / recorded.rows, "found": found}


if __name__ == "__main__":
    main()
