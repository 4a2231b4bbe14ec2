"""The first minutes with matryoshka: a Matryoshka transcoder of the bundled model, no network."""

import shutil
import sys
from pathlib import Path

from matryoshka import assembly, commands, display
from matryoshka.coder.coder import SparseCoder
from matryoshka.evaluation.examples import top_tokens
from matryoshka.evaluation.reconstruction import Placed
from matryoshka.lm.sites import Site
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
    """Train, measure, and show what a few latents fire on. The run lies in `out`; one that is there is replaced."""
    config = Config.build(CONFIG)
    display.console.print(
        "Training a Matryoshka transcoder of the bundled language model: what MLP 2 reads → what it adds.\n"
        f"{config.coder.d_sae:,} latents, {config.coder.k} active a token, {config.training.tokens:,} tokens.\n",
        soft_wrap=True,
    )
    run = commands.train(config, out, overwrite=out.exists())
    coder = SparseCoder.load(run.path)
    lm = commands.open_lm(config)
    held_out = assembly.open_tokens(config.text, lm.vocabulary).windows("held_out")
    placed = Placed(coder, Site.parse(coder.metadata["read"]), Site.parse(coder.metadata["write"]))
    display.show_run(run)
    display.show_examples(top_tokens(lm, held_out, placed, config.evaluation.tokens, per_ring=2))
    command = "matryoshka" if shutil.which("matryoshka") else sys.argv[0]  # not on the PATH: as it was called
    display.console.print(NEXT.format(matryoshka=command, run=run.path), soft_wrap=True)
    return run


NEXT = """\
Next:
  {matryoshka} eval {run}                        these measures again, --json for programs
  {matryoshka} train --model gpt2 --read 8.mlp_in --write 8.mlp_out --d-sae 12288 --k 32 --text FILE --tokens 2e6
  {matryoshka} train --help                      every field of a recipe
  python: from matryoshka import SparseCoder; coder = SparseCoder.load("{run}")"""
