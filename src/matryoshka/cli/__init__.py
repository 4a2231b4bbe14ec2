"""The command `matryoshka`: one file a verb, each with the same face.

    SUMMARY            one line for --help
    define(parser)     its flags, where they can be called as the api's parameters
    run(arguments)     calls the api and prints; returns an exit code if it is not 0

A new verb is a file here and a line in VERBS. Files import what is heavy in `run`: torch takes seconds, a mistake in a
flag should not. What lies at RUN is opened before, for the same reason.
"""

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from importlib import import_module
from typing import Protocol, cast

from rich.logging import RichHandler

from matryoshka.cli.flags import Parser
from matryoshka.distributed import World
from matryoshka.errors import Interrupted, MatryoshkaError, did_you_mean, failed_file, out_of_memory
from matryoshka.run import Run
from matryoshka.version import __version__

VERBS = (
    "train",
    "resume",
    "eval",
    "compare",
    "features",
    "explain",
    "steer",
    "serve",
    "export-page",
    "figures",
    "import",
    "export",
    "push",
    "pull",
    "releases",
    "tokens",
    "models",
    "quickstart",
)
"""In the order of --help."""


class Verb(Protocol):
    """The face of a verb's file."""

    SUMMARY: str

    def define(self, parser: argparse.ArgumentParser) -> None: ...
    def run(self, arguments: argparse.Namespace) -> int | None: ...


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; mistakes are one line on standard error and exit code 2."""
    logging.basicConfig(format="%(message)s", handlers=[RichHandler(show_time=False, show_path=False)], level="WARNING")
    for library in ("TRANSFORMERS", "HF_HUB", "DATASETS"):  # what they retry is said once, where it ends
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    warnings.filterwarnings("ignore", module="transformers")
    warnings.filterwarnings("ignore", module="sklearn")  # a probe that needs another solver takes it
    first = World.current().first
    try:
        with nullcontext() if first else _silence():
            sys.exit(_run(list(sys.argv[1:] if arguments is None else arguments)))
    except Interrupted as interrupted:
        if first:
            print(interrupted, file=sys.stderr)
        sys.exit(interrupted.code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(141)
    except Exception as error:
        mistake = " ".join(str(error).split()) if isinstance(error, MatryoshkaError) else None
        if (line := mistake or out_of_memory(error) or failed_file(error)) is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        sys.exit(2)


@contextmanager
def _silence() -> Iterator[None]:
    """Of several processes that work on one command the first one says what is of all; the others, why they ended."""
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


def _run(arguments: list[str]) -> int:
    parser = Parser(prog="matryoshka", description="Train and study Matryoshka sparse autoencoders and transcoders.")
    parser.add_argument("--version", action="version", version=f"matryoshka {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=Parser)
    verbs = {name: cast(Verb, import_module(f"{__name__}.{name.replace('-', '_')}")) for name in VERBS}
    subparsers = {
        name: commands.add_parser(name, help=verb.SUMMARY, description=verb.SUMMARY, allow_abbrev=False)
        for name, verb in verbs.items()
    }
    if not arguments:
        parser.print_help()
        return 0
    if arguments[0].startswith("-"):
        parser.parse_args(arguments)  # --help, --version
    if arguments[0] not in VERBS:
        raise MatryoshkaError(f"unknown command {arguments[0]!r}{did_you_mean(arguments[0], VERBS)}")
    # only the command that is asked for gets its flags; its own parser answers an unknown one
    verb, subparser = verbs[arguments[0]], subparsers[arguments[0]]
    verb.define(subparser)
    parsed = subparser.parse_known_or_refuse(arguments[1:])
    if "run" in parsed:
        parsed.run = Run.open(parsed.run)
    if "runs" in parsed:
        parsed.runs = [Run.open(path) for path in parsed.runs]
    return verb.run(parsed) or 0
