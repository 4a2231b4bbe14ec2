"""matryoshka analyze: all that can be found of coders, from features to findings, and one report."""

import argparse
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markdown import Markdown

from matryoshka.analysis.catalogue import ANALYSES
from matryoshka.cli.flags import add_device, add_runs, add_text, add_valued, count
from matryoshka.cli.tables import console
from matryoshka.defaults import FEATURE_TOKENS
from matryoshka.errors import Interrupted
from matryoshka.evaluation.table import EVALUATIONS

if TYPE_CHECKING:
    from matryoshka.report.analysed import Analysed

SUMMARY = "Find all that can be found of coders, and write one report: what is there is taken, what is missing is made."


def define(parser: argparse.ArgumentParser) -> None:
    add_runs(parser)
    add = parser.add_argument
    names = ", ".join((*EVALUATIONS, *ANALYSES, "comparison"))
    add("--only", nargs="+", default=[], metavar="NAME", help=f"some of: {names}")
    tokens = "held-out tokens that features and analyses are of, read once for all coders"
    add_valued(parser, "--tokens", count, "N", FEATURE_TOKENS, tokens)
    add_text(parser)
    where = "where report.html, report.md, scores and figures go [RUN/report; of several runs ./report]"
    add("--out", type=Path, metavar="REPORT", help=where)
    add("--overwrite", action="store_true", help="make and find anew what is there; labels and notes are kept")
    add_device(parser)


def run(arguments: argparse.Namespace) -> None:
    from matryoshka import api

    try:
        analysed = api.analyze(**vars(arguments))
    except KeyboardInterrupt:
        raise Interrupted("interrupted; the same command goes on from here", signal.SIGINT) from None
    _show(analysed)
    print(f"report: {analysed.report}")


def _show(analysed: "Analysed") -> None:
    """The findings that stand out most."""
    console.print(Markdown("\n".join(f"1. {finding.sentence}" for _, finding in analysed.findings), hyperlinks=False))
