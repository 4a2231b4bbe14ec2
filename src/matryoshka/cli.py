"""The command `matryoshka`. Functions import what they need when they run: torch takes seconds, --help should not."""

import argparse
import json
import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.logging import RichHandler

from matryoshka import __version__
from matryoshka.errors import MatryoshkaError, did_you_mean, out_of_memory
from matryoshka.parser import Parser

if TYPE_CHECKING:
    from matryoshka.features.endpoint import Cost


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; mistakes are one line on standard error and exit code 2."""
    logging.basicConfig(format="%(message)s", handlers=[RichHandler(show_time=False, show_path=False)], level="WARNING")
    logging.getLogger("transformers").setLevel("ERROR")
    warnings.filterwarnings("ignore", module="transformers")
    warnings.filterwarnings("ignore", module="sklearn")  # a probe that needs another solver takes it
    try:
        sys.exit(_run(list(sys.argv[1:] if arguments is None else arguments)))
    except MatryoshkaError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except (RuntimeError, MemoryError) as error:
        if (line := out_of_memory(error)) is None:
            raise
        print(f"error: {line}", file=sys.stderr)
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
    subparsers = {
        name: commands.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        for name, (_, _, summary) in COMMANDS.items()
    }
    if not arguments:
        parser.print_help()
        return 0
    if arguments[0].startswith("-"):
        parser.parse_args(arguments)  # --help, --version
    if arguments[0] not in COMMANDS:
        raise MatryoshkaError(f"unknown command {arguments[0]!r}{did_you_mean(arguments[0], COMMANDS)}")
    # only the command that is asked for gets its flags, which import torch; its own parser answers an unknown one
    function, define, _ = COMMANDS[arguments[0]]
    define(subparsers[arguments[0]])
    return function(subparsers[arguments[0]].parse_known_or_refuse(arguments[1:])) or 0


def _define_tokens(parser: argparse.ArgumentParser) -> None:
    from matryoshka.flags import add_flags
    from matryoshka.training.config import TokensConfig

    parser.usage = "%(prog)s [RECIPE] [--FIELD VALUE ...]"
    parser.add_argument("recipe", nargs="?", type=Path, help="YAML recipe, of which model and text are read")
    add_flags(parser, TokensConfig)


def _define_train(parser: argparse.ArgumentParser) -> None:
    from matryoshka.flags import add_flags

    parser.usage = "%(prog)s [RECIPE] [--FIELD VALUE ...] [--out FOLDER] [--overwrite] [--dry-run]"
    parser.add_argument("--out", type=Path, help="folder of the run [runs/<sae|transcoder>/<base model>/<name>]")
    parser.add_argument("--overwrite", action="store_true", help="delete the run that lies there")
    parser.add_argument("--dry-run", action="store_true", help="check everything, print the memory it needs, and stop")
    parser.add_argument("recipe", nargs="?", type=Path, help="YAML file of the fields below; flags override it")
    add_flags(parser)


def _define_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run")


def _define_eval(parser: argparse.ArgumentParser) -> None:
    from matryoshka.suite import EVALUATIONS

    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folder of a run")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help=f"some of: {', '.join(EVALUATIONS)}")
    parser.add_argument(
        "--labels", type=Path, nargs="+", default=[], metavar="FILE", help="labelled text of yours as well (JSONL)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="where report.md, scores.json and scores.parquet go [RUN/evaluation; of several runs ./evaluation]",
    )
    parser.add_argument("--overwrite", action="store_true", help="measure anew what is measured already")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")


def _define_features(parser: argparse.ArgumentParser) -> None:
    _define_run(parser)
    parser.add_argument("--tokens", type=_count, default=2_000_000, help="tokens to read [2e6]")
    parser.add_argument("--text", metavar="SOURCE", help="another text than the run's: a file, folder or data set")
    parser.add_argument(
        "--split", choices=["held_out", "train"], default="held_out", help="which documents of the text [%(default)s]"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="collect anew; labels, notes and explanations are kept"
    )


def _define_explain(parser: argparse.ArgumentParser) -> None:
    from matryoshka.features.endpoint import ChatModel
    from matryoshka.features.explain import Wanted

    _define_run(parser)
    add = parser.add_argument_group("a chat model (without --model: rules, without any other machine)").add_argument
    add("--model", metavar="NAME", help="the model that explains and judges, by its name at the address")
    add("--base-url", metavar="URL", default=ChatModel.base_url, help="OpenAI-compatible address [%(default)s]")
    add(
        "--key-variable",
        metavar="NAME",
        default=ChatModel.key_variable,
        help="environment variable with its key [%(default)s]",
    )
    add("--features", type=int, nargs="+", metavar="I", help="these features instead of a sample")
    add(
        "--per-ring",
        type=_count,
        metavar="N",
        default=Wanted().per_ring,
        help="living features of each ring [%(default)s]",
    )
    add("--seed", type=int, metavar="N", default=Wanted().seed, help="of the sample and of the contexts [%(default)s]")
    add(
        "--temperature",
        type=_temperature,
        metavar="X|none",
        default=ChatModel.temperature,
        help="none: the model's own [%(default)s]",
    )
    add(
        "--max-tokens",
        type=_count,
        metavar="N",
        default=ChatModel.max_tokens,
        help="of an answer, thoughts included [%(default)s]",
    )
    add("--concurrency", type=_count, metavar="N", default=ChatModel.concurrency, help="requests at once [%(default)s]")
    add("--price-in", type=float, metavar="X", help="price of a million tokens sent, to say what it will cost")
    add("--price-out", type=float, metavar="X", help="price of a million tokens answered")
    add("--yes", action="store_true", help="do not ask whether to go on")


def _temperature(text: str) -> float | None:
    return None if text == "none" else float(text)


def _define_steer(parser: argparse.ArgumentParser) -> None:
    from matryoshka.evaluation.steering import PROMPT, STRENGTH, TEMPERATURE, TOKENS

    _define_run(parser)
    add = parser.add_argument
    add("feature", type=int, metavar="FEATURE", help="number of a feature")
    add(
        "--strength",
        type=float,
        metavar="X",
        default=STRENGTH,
        help="level, in units of its maximum on held-out text [%(default)s]",
    )
    add("--prompt", metavar="TEXT", default=PROMPT, help="text to go on with [%(default)s]")
    add("--tokens", type=_count, metavar="N", default=TOKENS, help="tokens to write [%(default)s]")
    add("--temperature", type=float, metavar="X", default=TEMPERATURE, help="0: the likeliest token [%(default)s]")
    add("--seed", type=int, metavar="N", default=0, help="of the tokens drawn [%(default)s]")


def _define_serve(parser: argparse.ArgumentParser) -> None:
    from matryoshka.report.server import PORT

    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folder of a run")
    parser.add_argument("--port", type=int, default=PORT, help="port on this machine, 0 for any [%(default)s]")


def _define_export(parser: argparse.ArgumentParser) -> None:
    _define_run(parser)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="new folder for the page")
    parser.add_argument("--overwrite", action="store_true", help="replace the page that lies there")


def _count(text: str) -> int:
    """A whole number, also written 2e6 or 2_000_000."""
    number = float(text)
    if number < 1 or number != int(number):
        raise ValueError
    return int(number)


def _define_out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("runs/quickstart"), help="folder of the run [%(default)s]")


def _train(given: argparse.Namespace) -> int:
    from matryoshka import commands, display
    from matryoshka.flags import overrides
    from matryoshka.training.config import Config

    flags = overrides(given)
    config = Config.load(given.recipe, flags) if given.recipe else Config.build(flags)
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
    from matryoshka import display, suite
    from matryoshka.report.comparison import tidy

    found = suite.evaluate(given.runs, given.only, given.labels, given.out, given.overwrite)
    if given.json:
        print(json.dumps(tidy(found.entries), indent=2))
    else:
        display.show_entries(found.entries)
        print(f"\nreport: {found.report}")


def _features(given: argparse.Namespace) -> None:
    from matryoshka import display, evidence

    stores = evidence.features(
        given.run, given.tokens, given.text, given.split, given.overwrite, announce=display.show_needs
    )
    for store in stores:
        display.show_features(store)
    if stores:
        print(f"\nlook at them: matryoshka serve {given.run}")


def _explain(given: argparse.Namespace) -> None:
    from matryoshka import display, evidence
    from matryoshka.features.endpoint import ChatModel
    from matryoshka.features.explain import Wanted

    if given.model is None:
        if given.features or given.base_url != ChatModel.base_url:
            raise MatryoshkaError("--features and --base-url are for a chat model: give its name by --model")
        for path, named in evidence.name(given.run).items():
            display.show_named(path, named)
    else:
        model = ChatModel(
            given.model, given.base_url, given.key_variable, given.temperature, given.max_tokens, given.concurrency
        )
        wanted = Wanted(given.features, given.per_ring, given.seed)
        for path, result in evidence.explain(given.run, model, wanted, partial(_agree, given)).items():
            display.show_explained(path, result)
    print(f"\nlook at them: matryoshka serve {given.run}")


def _agree(given: argparse.Namespace, cost: "Cost") -> None:
    """Say what will be asked; on a terminal, ask whether to go on."""
    from matryoshka import display

    unknown = given.price_in is None and given.price_out is None
    price = None if unknown else cost.price(given.price_in or 0.0, given.price_out or 0.0)
    display.show_cost(given.model, cost, price)
    if not cost.requests or given.yes:
        return
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise MatryoshkaError("nothing was asked yet: --yes goes on without a question, which needs a terminal")
    if input("Go on? [y/N] ").strip().lower() not in ("y", "yes"):
        raise MatryoshkaError("nothing was asked")


def _steer(given: argparse.Namespace) -> None:
    from matryoshka import commands, display

    display.show_steered(
        commands.steer(
            given.run, given.feature, given.strength, given.prompt, given.tokens, given.temperature, given.seed
        )
    )


def _serve(given: argparse.Namespace) -> None:
    from matryoshka import evidence

    evidence.serve(given.runs, given.port, lambda address: print(f"{address}  (Ctrl-C ends it)", flush=True))


def _export_page(given: argparse.Namespace) -> None:
    from matryoshka import evidence

    print(evidence.export_page(given.run, given.folder, given.overwrite))


def _figures(given: argparse.Namespace) -> None:
    from matryoshka import evidence

    for path in evidence.figures(given.run):
        print(path)


def _tokens(given: argparse.Namespace) -> None:
    from matryoshka import commands, display
    from matryoshka.config import merged, read_yaml
    from matryoshka.flags import overrides
    from matryoshka.training.config import TokensConfig

    flags = overrides(given)
    if given.recipe:
        recipe = read_yaml(given.recipe)
        flags = merged({name: recipe[name] for name in TokensConfig.model_fields if name in recipe}, flags)
    display.show_tokens(commands.tokenise(TokensConfig.build(flags)))


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
    "eval": (_eval, _define_eval, "Measure the coders of runs and compare them: a table, and a report beside it."),
    "features": (_features, _define_features, "Collect every feature's evidence from text it was not trained on."),
    "explain": (
        _explain,
        _define_explain,
        "Explain features: by rules, or by a chat model whose explanations are tested.",
    ),
    "steer": (_steer, _define_steer, "Let the model write with a feature held high, beside what it writes without."),
    "serve": (_serve, _define_serve, "Look at the features of runs in a browser, on this machine."),
    "export-page": (_export_page, _define_export, "Write the same page as a folder that opens without a server."),
    "figures": (_figures, _define_run, "Draw training curves, FVU of each prefix and densities as PNG and SVG."),
    "tokens": (_tokens, _define_tokens, "Tokenise a recipe's text; training does so by itself."),
    "models": (_models, lambda parser: None, "List the model families, their sites, and what each site is."),
    "quickstart": (
        _quickstart,
        _define_out,
        "Train a Matryoshka transcoder of the bundled model in minutes, offline.",
    ),
}


if __name__ == "__main__":
    main()
