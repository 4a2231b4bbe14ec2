"""matryoshka serve: the page of runs' features, on this machine."""

import argparse

from matryoshka.cli.flags import add_device, add_runs
from matryoshka.defaults import PORT

SUMMARY = "Look at the features of runs in a browser, on this machine."


def define(parser: argparse.ArgumentParser) -> None:
    add_runs(parser)
    parser.add_argument("--port", type=int, default=PORT, help="port on this machine, 0 for any [%(default)s]")
    add_device(parser)


def run(arguments: argparse.Namespace) -> None:
    from matryoshka import api

    api.serve(**vars(arguments), ready=lambda address: print(f"{address}  (Ctrl-C ends it)", flush=True))
