"""matryoshka resume: on from a run's last checkpoint."""

import argparse

from matryoshka.cli.flags import add_run
from matryoshka.cli.tables import show_run
from matryoshka.run import Run

SUMMARY = "Go on with an interrupted run, to the same result as if it had not stopped."


def define(parser: argparse.ArgumentParser) -> None:
    """The run."""
    add_run(parser)


def run(arguments: argparse.Namespace) -> None:
    """Go on with it."""
    interrupted = Run.open(arguments.run)

    from matryoshka import api

    show_run(api.resume(interrupted))
