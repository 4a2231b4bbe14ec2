"""Features of a set for circuit-tracer: what its page shows of a node of a graph, made of our stores of features.

A graph has a `scan`, and a node a number that pairs layer and index. From these its page takes what it shows:

    NUMBER.json                       in the folder that a scan that begins with ./ is: ./data/ is that of the graphs
    index.json.gz  layer_N.bin        in features/ of the repository on the hub that any other scan is

A layer whose run has no store has none. Of a feature that never fired the page says so. Numbers have six significant
digits; a BOS at the start of a window is left out, as for Neuronpedia.
"""

import gzip
import json
import shutil
import struct
import zlib
from collections.abc import Iterable
from contextlib import closing
from itertools import count, takewhile
from pathlib import Path
from typing import Any

import numpy as np

from matryoshka.features.feature import Feature, Histogram
from matryoshka.features.schema import About
from matryoshka.interop.dashboards import bars, brief, rounded, text, window
from matryoshka.interop.ours import Ours

FEATURES = "features"
FILES = (f"{FEATURES}/*/*.json",)


def number(layer: int, index: int) -> int:
    """Of a feature: Cantor's pairing, (l + i)(l + i + 1) / 2 + i."""
    return (layer + index) * (layer + index + 1) // 2 + index


def write_features(coders: Iterable[Ours], folder: Path) -> bool:
    """NUMBER.json in `folder` for every latent that is exported of a coder whose run has a store; whether any has."""
    for ours in coders:
        if not ours.run.features_file.is_file():
            continue
        folder.mkdir(parents=True, exist_ok=True)
        layer = ours.read.layer
        with closing(ours.features()) as store:
            for index in range(ours.prefix or len(store)):
                page = {"transcoder_id": f"layer_{layer}"} | _page(store[index], store.about, ours.card.prepend_bos)
                content = json.dumps(page, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
                (folder / f"{number(layer, index)}.json").write_text(content, encoding="utf-8")
    return folder.is_dir()


def _page(feature: Feature, about: About, bos: bool) -> dict[str, Any]:
    """`bos`: windows begin with a BOS token."""
    heights, _ = bars(feature.histogram)
    effects = feature.logits
    return {
        "index": feature.index,
        "examples_quantiles": _quantiles(feature, about, int(bos)),
        "top_logits": [text(effect.token) for effect in effects.top] if effects is not None else [],
        "bottom_logits": [text(effect.token) for effect in effects.bottom] if effects is not None else [],
        "act_min": 0.0,  # where the bars begin
        "act_max": brief(feature.statistics.max or 0.0),
        "quantile_values": _percentiles(feature.histogram),
        "histogram": heights,
        "activation_frequency": brief(feature.statistics.density),
    }


def _quantiles(feature: Feature, about: About, start: int) -> list[dict[str, Any]]:
    """The groups of examples, the strongest first; of a window that was shown already it is marked, and pale there."""
    if not feature.groups:
        return [{"quantile_name": f"never fired on {about.tokens:,} tokens", "examples": []}]
    quantiles, seen = [], set()
    for group in feature.groups:
        examples = []
        for example in group.examples:
            shown = window(example, start)
            examples.append(
                {
                    "tokens_acts_list": shown["values"],
                    "train_token_ind": shown["qualifying_token_index"],
                    "is_repeated_datapoint": example.window in seen,
                    "tokens": shown["tokens"],
                }
            )
            seen.add(example.window)
        name = f"{group.name}, activation {group.low:.3g} to {group.high:.3g}"
        quantiles.append({"quantile_name": name, "examples": examples})
    return quantiles


def _percentiles(histogram: Histogram) -> list[float]:
    """What 1, 2 … 100 % of its firings lie at or below; activations are taken to lie evenly within each bin."""
    if not histogram.counts:
        return []
    below = np.cumsum([0, *histogram.counts])
    return rounded(np.interp(np.arange(1, 101) / 100 * below[-1], below, histogram.edges))


def pack(folder: Path) -> None:
    """Of a set that is to lie on the hub: its features, if it has any, in two files more than layers in place of one
    each.

    index.json.gz: of each layer `filename` and `offsets`, one more than features; of one without features both empty.
    layer_N.bin: of each feature the length of what follows, uint32, little-endian, and its JSON by zlib.
    """
    features = folder / FEATURES
    if not features.is_dir():
        return
    [pages] = features.iterdir()
    index = []
    for layer in range(len([*folder.glob("layer_*.safetensors")])):
        file, offsets = f"layer_{layer}.bin", [0]
        files = [*takewhile(Path.is_file, (pages / f"{number(layer, feature)}.json" for feature in count()))]
        if not files:
            index.append({"filename": "", "offsets": []})
            continue
        with (features / file).open("wb") as packed:
            for page in files:
                content = zlib.compress(page.read_bytes())
                packed.write(struct.pack("<I", len(content)) + content)
                offsets.append(packed.tell())
        index.append({"filename": file, "offsets": offsets})
    (features / "index.json.gz").write_bytes(gzip.compress(json.dumps(index).encode(), mtime=0))
    shutil.rmtree(pages)
