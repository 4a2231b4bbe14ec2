"""The first minutes with matryoshka: a Matryoshka transcoder of the bundled model, no network."""

import shutil
import sys
from pathlib import Path

from matryoshka import commands, display, evidence
from matryoshka.report.server import PORT
from matryoshka.run import Run
from matryoshka.training.config import Config

CONFIG = {
    "model": {"name": "bundled"},
    "text": {"source": "bundled"},
    "coder": {"read": "2.mlp_in", "write": "2.mlp_out", "d_sae": 3072, "k": 24},
    "training": {
        "tokens": 450_000,
        "batch": 1024,
        "lr": 1e-3,
        "dead_after_tokens": 100_000,
        "evaluate_every": 200,
        "checkpoint_every": 200,
    },
}


def quickstart(out: Path) -> Run:
    """Train, measure, collect features, and show a few. The run lies in `out`; one that is there is replaced."""
    config = Config.build(CONFIG)
    display.console.print(
        "Training a Matryoshka transcoder of the bundled language model: what MLP 2 reads → what it adds.\n"
        f"{config.coder.d_sae:,} latents, {config.coder.k} active a token, {config.training.tokens:,} tokens.\n",
        soft_wrap=True,
    )
    run = commands.train(config, out, overwrite=out.exists())
    display.show_run(run)
    [store] = evidence.features(run.path)
    display.show_features(store)
    display.show_telling(store, 3)
    command = "matryoshka" if shutil.which("matryoshka") else sys.argv[0]  # not on the PATH: as it was called
    display.console.print(NEXT.format(matryoshka=command, run=run.path, port=PORT), soft_wrap=True)
    return run


NEXT = """\

Next:
  {matryoshka} serve {run}                       all features in your browser, at http://127.0.0.1:{port}/
  {matryoshka} eval {run}                        the whole suite of evaluations, and a report
  {matryoshka} train --model gpt2 --read 8.mlp_in --write 8.mlp_out --d-sae 12288 --k 32 --text FILE --tokens 2e6
  {matryoshka} train --help                      every field of a recipe
  python: from matryoshka import SparseCoder; coder = SparseCoder.load("{run}")"""
