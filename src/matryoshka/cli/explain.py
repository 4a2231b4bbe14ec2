"""matryoshka explain: features named by rules, or explained by a chat model whose explanations are tested."""

import argparse
import sys
from functools import partial
from typing import TYPE_CHECKING

from rich.text import Text

from matryoshka.cli.flags import add_device, add_run, add_valued, count
from matryoshka.cli.tables import console, new_table
from matryoshka.errors import MatryoshkaError
from matryoshka.features.chat import ChatModel, Choice
from matryoshka.features.endpoint import Cost

if TYPE_CHECKING:
    from matryoshka.features.naming import Named
    from matryoshka.scores.result import Result

SUMMARY = "Explain features: by rules, or by a chat model whose explanations are tested."


def define(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    group = parser.add_argument_group("a chat model (without --model: rules, without any other machine)")
    add, add_default = group.add_argument, partial(add_valued, group)
    add("--model", metavar="NAME", help="the model that explains and judges, by its name at the address")
    add_default("--base-url", str, "URL", ChatModel.base_url, "OpenAI-compatible address")
    add_default("--key-variable", str, "NAME", ChatModel.key_variable, "environment variable with its key")
    add("--features", type=int, nargs="+", metavar="I", help="these features instead of a sample")
    add_default("--per-ring", count, "N", Choice().per_ring, "living features of each ring")
    add_default("--seed", int, "N", Choice().seed, "of the sample and of the contexts")
    add_default("--temperature", _temperature, "X|none", ChatModel.temperature, "none: the model's own")
    add_default("--max-tokens", count, "N", ChatModel.max_tokens, "of an answer, thoughts included")
    add_default("--concurrency", count, "N", ChatModel.concurrency, "requests at once")
    add("--price-in", type=float, metavar="X", help="price of a million tokens sent, to say what it will cost")
    add("--price-out", type=float, metavar="X", help="price of a million tokens answered")
    add("--yes", action="store_true", help="do not ask whether to go on")
    add_device(parser)


def _temperature(text: str) -> float | None:
    return None if text == "none" else float(text)


def run(arguments: argparse.Namespace) -> None:
    if arguments.model is None and (arguments.features or arguments.base_url != ChatModel.base_url):
        raise MatryoshkaError("--features and --base-url are for a chat model: give its name by --model")

    from matryoshka import api

    if arguments.model is None:
        for path, named in api.name(arguments.run).items():
            _show_named(path, named)
    else:
        options = ("base_url", "key_variable", "temperature", "max_tokens", "concurrency")
        model = ChatModel(arguments.model, **{name: getattr(arguments, name) for name in options})
        choice = Choice(arguments.features, arguments.per_ring, arguments.seed)
        agree = partial(_agree, arguments)
        for path, result in api.explain(arguments.run, model, choice, agree, arguments.device).items():
            _show_explained(path, result)
    print(f"\nlook at them: matryoshka serve {arguments.run.path}")


def _agree(arguments: argparse.Namespace, cost: Cost) -> None:
    """Say what will be asked; on a terminal, ask whether to go on."""
    unknown = arguments.price_in is None and arguments.price_out is None
    price = None if unknown else cost.price(arguments.price_in or 0.0, arguments.price_out or 0.0)
    if cost.requests:
        money = "" if price is None else f", at most {price:,.2f} at the given prices"
        told = (
            f"{cost.requests:,} questions to {arguments.model}: about {cost.tokens_in:,} tokens, and at most"
            f" {cost.tokens_out:,} of answers{money}"
        )
    else:
        told = f"0 questions to {arguments.model}: all answers are in the cache"
    console.print(Text(told), soft_wrap=True)
    if not cost.requests or arguments.yes:
        return
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise MatryoshkaError("nothing was asked yet: --yes goes on without a question, which needs a terminal")
    if input("Go on? [y/N] ").strip().lower() not in ("y", "yes"):
        raise MatryoshkaError("nothing was asked")


def _show_named(name: str, named: "Named") -> None:
    """What a naming by rules has found."""
    from matryoshka.features.naming import LEAST_AUC

    others = f"; {named.explained:,} were explained by a chat model already" if named.explained else ""
    told = (
        f"{name}: {named.by_rule:,} features named by an n-gram that tells clearly better than their top tokens where"
        f" they fire (AUC {LEAST_AUC} or more); {named.without_rule:,} keep their top tokens{others}"
    )
    console.print(Text(told), soft_wrap=True)


def _show_explained(name: str, result: "Result") -> None:
    """How well a chat model's explanations tell where features fire: a row a prefix."""
    if result.reason is not None:
        console.print(Text(f"{name}: not measured: {result.reason}"), soft_wrap=True)
        return
    table = new_table(
        name, "latents", "measure", "balanced accuracy", "95 % interval", "another's explanation", "features"
    )
    for score in sorted(result.scores, key=lambda score: score.width):
        null = "–" if score.null is None else f"{score.null:.3f}"
        interval = f"{score.interval.low:.3f} to {score.interval.high:.3f}"
        row = (score.measure.name, f"{score.value:.3f}", interval, null, f"{len(score.units)}")
        table.add_row(f"first {score.width:,}", *row)
    console.print(table)
    about = result.details
    left_out = [what for what in ("too few contexts", "no explanation of the right form") if about[what]]
    told = "".join(f"; {len(about[what])} with {what}" for what in left_out)
    failed = about["contexts without a judgement of the right form"]
    console.print(
        f"{len(about['features'])} of {about['features chosen']} features explained{told};"
        f" {failed} contexts without a judgement of the right form",
        soft_wrap=True,
    )
