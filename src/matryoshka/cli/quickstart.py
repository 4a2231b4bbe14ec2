"""matryoshka quickstart: a Matryoshka transcoder of the bundled model in the first minutes, no network."""

import argparse
import re
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rich.text import Text

from matryoshka.cli.tables import console, show_features, show_run
from matryoshka.defaults import PORT
from matryoshka.run import Run
from matryoshka.training.recipe import Config

if TYPE_CHECKING:
    from matryoshka.features.feature import Example, Feature
    from matryoshka.features.store import FeatureStore

SUMMARY = "Train a Matryoshka transcoder of the bundled model in minutes, offline."

CONFIG = {
    "model": {"name": "bundled"},
    "text": {"source": "bundled"},
    "coder": {"read": "2.mlp_in", "write": "2.mlp_out", "d_sae": 3072, "k": 24},
    "training": {
        "tokens": 450_000,
        "batch": 1024,  # half the steps of the automatic one: a minute instead of one and a half
        "evaluate_every": 200,
        "checkpoint_every": 200,
    },
}
WORD = re.compile(" [A-Za-z]{3,}")
NEXT = """\

Next:
  {matryoshka} serve {run}                       all features in your browser, at http://127.0.0.1:{port}/
  {matryoshka} eval {run}                        the whole suite of evaluations, and a report
  {matryoshka} train --model gpt2 --read 8.mlp_in --write 8.mlp_out --d-sae 12288 --k 32 --text FILE --tokens 2e6
  {matryoshka} train --help                      every field of a recipe
  python: from matryoshka import SparseCoder; coder = SparseCoder.load("{run}")"""


def define(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("runs/quickstart"), help="folder of the run [%(default)s]")
    parser.add_argument("--overwrite", action="store_true", help="delete the run that lies there")


def run(arguments: argparse.Namespace) -> None:
    config, out = Config.build(CONFIG), arguments.out
    Run.refuse_existing(out, arguments.overwrite)

    from matryoshka import api

    console.print(
        "Training a Matryoshka transcoder of the bundled language model: what MLP 2 reads → what it adds.\n"
        f"{config.coder.d_sae:,} latents, {config.coder.k} active a token, {config.training.tokens:,} tokens.\n",
        soft_wrap=True,
    )
    trained = api.train(config, out, arguments.overwrite)
    show_run(trained)
    [store] = api.features(trained)
    show_features(store)
    _show_telling(store, 3)
    command = "matryoshka" if shutil.which("matryoshka") else sys.argv[0]  # not on the PATH: as it was called
    console.print(NEXT.format(matryoshka=command, run=trained.path, port=PORT), soft_wrap=True)


def _show_telling(store: "FeatureStore", n: int) -> None:
    """A few features, each from another ring, that fire on few kinds of tokens, with their strongest examples."""
    for index in _telling(store, n):
        feature = store[index]
        where = f"feature {index:,}, ring {feature.ring}, fires on {feature.statistics.density:.2%} of tokens"
        console.print(Text.assemble("\n", (feature.name, "bold"), f"  {where}"))
        for example in feature.groups[0].examples[:3]:
            console.print(_in_context(example), no_wrap=True, overflow="ellipsis")


def _telling(store: "FeatureStore", n: int) -> list[int]:
    """One feature in each of `n` rings, from the first to the last: of the hundred of least entropy above one bit,
    without flags and firing often enough, the one with the most whole words among its first tokens."""
    columns, rings = store.columns(), len(store.about.widths)
    names = ("entropy", "index", "ring", "count", "flags")
    often = sorted(
        (entropy, index, ring)
        for entropy, index, ring, count, flags in zip(*(columns[name] for name in names), strict=True)
        if not flags and count >= 50 and entropy > 1
    )
    telling = []
    for wanted in dict.fromkeys(round(i * (rings - 1) / max(1, n - 1)) for i in range(n)):
        candidates = [index for _, index, ring in often if ring == wanted][:100]
        telling += [max(candidates, key=lambda index: _whole_words(store[index]))] if candidates else []
    return telling


def _whole_words(feature: "Feature") -> tuple[int, float]:
    """How many of its first four tokens are whole words with a twentieth of its activation, and their share of it."""
    words = [top.share for top in feature.top_tokens[:4] if WORD.fullmatch(top.token) and top.share >= 0.05]
    return len(words), sum(words)


def _in_context(example: "Example", before: int = 10, after: int = 4) -> Text:
    """An example's activation, and the tokens around its peak; those on which the feature fires stand out."""
    from matryoshka.features.feature import printable

    line = Text(f"  {example.activation:6.2f}  ")
    for i in range(max(0, example.peak - before), min(len(example.tokens), example.peak + after)):
        style = "bold reverse" if i == example.peak else "underline" if i in example.positions else ""
        line.append(printable(example.tokens[i]), style)
    return line
