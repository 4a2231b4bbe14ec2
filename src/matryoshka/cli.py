"""The command `matryoshka`."""

import argparse
import json
import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.logging import RichHandler

from matryoshka import __version__
from matryoshka.errors import MatryoshkaError
from matryoshka.flags import Parser, add_flags, overrides


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; mistakes are one line on standard error and exit code 2."""
    logging.basicConfig(format="%(message)s", handlers=[RichHandler(show_time=False, show_path=False)], level="WARNING")
    logging.getLogger("transformers").setLevel("ERROR")
    warnings.filterwarnings("ignore", module="transformers")
    try:
        sys.exit(_run(list(sys.argv[1:] if arguments is None else arguments)))
    except MatryoshkaError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(141)


def _run(arguments: list[str]) -> int:
    parser = Parser(prog="matryoshka", description="Train and study Matryoshka sparse autoencoders and transcoders.")
    parser.add_argument("--version", action="version", version=f"matryoshka {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=Parser)
    for name, (function, define, summary) in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        define(command)
        command.set_defaults(function=function, parser=command)
    if not arguments:
        parser.print_help()
        return 0
    # the parser of the command itself, so that an unknown flag is answered with the nearest of that command's
    if arguments[0] in commands.choices and "-h" not in arguments and "--help" not in arguments:
        given = commands.choices[arguments[0]].parse_known_or_refuse(arguments[1:])
        return given.function(given) or 0
    given = parser.parse_args(arguments)
    return given.function(given) or 0


def _recipe_and_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", nargs="?", type=Path, help="YAML file of the fields below; flags override it")
    add_flags(parser)


def _define_train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, help="folder of the run [runs/<sae|transcoder>/<base model>/<name>]")
    parser.add_argument("--overwrite", action="store_true", help="delete the run that lies there")
    parser.add_argument("--dry-run", action="store_true", help="check everything, print the memory it needs, and stop")
    _recipe_and_flags(parser)


def _define_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run")


def _define_eval(parser: argparse.ArgumentParser) -> None:
    _define_run(parser)
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")


def _define_out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("runs/quickstart"), help="folder of the run [%(default)s]")


def _config(given: argparse.Namespace):  # imported late: torch takes seconds, --help should not
    from matryoshka.training.config import Config

    return Config.load(given.recipe, overrides(given)) if given.recipe else Config.build(overrides(given))


def _train(given: argparse.Namespace) -> int:
    from matryoshka import commands, display

    config = _config(given)
    if given.dry_run:
        display.show_memory(commands.memory(config))
        return 0
    return _finish(lambda: display.show_run(commands.train(config, given.out, given.overwrite)))


def _resume(given: argparse.Namespace) -> int:
    from matryoshka import commands, display

    return _finish(lambda: display.show_run(commands.resume(given.run)))


def _finish(job: Callable[[], object]) -> int:
    """Run a training job; where it was interrupted, say how to go on."""
    from matryoshka.training.train import Interrupted

    try:
        job()
    except Interrupted as interrupted:
        print(interrupted, file=sys.stderr)
        return interrupted.code
    return 0


def _eval(given: argparse.Namespace) -> None:
    from matryoshka import commands, display

    results = commands.evaluate(given.run)
    if given.json:
        print(json.dumps(results, indent=2))
    else:
        for path, measures in results.items():
            display.show_results(path, measures)


def _tokens(given: argparse.Namespace) -> None:
    from matryoshka import commands, display

    display.show_tokens(commands.tokenise(_config(given)))


def _models(_: argparse.Namespace) -> None:
    from matryoshka import display

    display.show_models()


def _quickstart(given: argparse.Namespace) -> int:
    from matryoshka.quickstart import quickstart

    return _finish(lambda: quickstart(given.out))


COMMANDS: dict[str, tuple[Callable, Callable[[argparse.ArgumentParser], None], str]] = {
    "train": (_train, _define_train, "Train coders on a language model, and measure them on held-out text."),
    "resume": (
        _resume,
        _define_run,
        "Go on with an interrupted run, to the same result as if it had not stopped.",
    ),
    "eval": (_eval, _define_eval, "Measure a run's coders on held-out text: FVU, L0, CE and KL recovered."),
    "tokens": (_tokens, _recipe_and_flags, "Tokenise a recipe's text; training does so by itself."),
    "models": (_models, lambda parser: None, "List the model families, their sites, and what each site is."),
    "quickstart": (
        _quickstart,
        _define_out,
        "Train a Matryoshka transcoder of the bundled model in minutes, offline.",
    ),
}


if __name__ == "__main__":
    main()
