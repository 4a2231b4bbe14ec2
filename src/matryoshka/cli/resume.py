"""matryoshka resume: on from a run's last checkpoint."""

import argparse

from matryoshka.cli.flags import add_run
from matryoshka.cli.tables import show_run

SUMMARY = "Go on with an interrupted run, to the same result as if it had not stopped."
define = add_run


def run(arguments: argparse.Namespace) -> None:
    from matryoshka import api

    show_run(api.resume(arguments.run))
