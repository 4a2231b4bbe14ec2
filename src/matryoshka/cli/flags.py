"""Command-line flags: what verbs share, and those made of the configuration, every field by its dotted name.

Those only collect text; `Config.build` validates it with the recipe's values, so that there is one way to be wrong.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from matryoshka.config import sections
from matryoshka.training.recipe import Config, TokensConfig

SHORT = {
    "model.name": "--model",
    "coder.read": "--read",
    "coder.write": "--write",
    "coder.d_sae": "--d-sae",
    "coder.k": "--k",
    "coder.widths": "--widths",
    "text.source": "--text",
    "training.tokens": "--tokens",
    "training.batch": "--batch",
    "training.lr": "--lr",
}
"""The common fields also by short flags."""

RECIPE_ONLY = ("variants",)


def add_run(parser: argparse.ArgumentParser) -> None:
    """The folder of a run."""
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run")


def add_runs(parser: argparse.ArgumentParser) -> None:
    """The folders of one run or several."""
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folder of a run")


def add_text(parser: argparse.ArgumentParser) -> None:
    """Another text than the one that the coder's card knows."""
    parser.add_argument(
        "--text", metavar="SOURCE", help="a text, in place of the one trained on: a file, folder or data set"
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    """Where language model and coders live."""
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1; auto: cuda where there is one")


def count(text: str) -> int:
    """A whole number, also written 2e6 or 2_000_000."""
    number = float(text)
    if number < 1 or number != int(number):
        raise ValueError
    return int(number)


def add_flags(parser: argparse.ArgumentParser, config: type[TokensConfig] = Config) -> None:
    """A flag for every field of `config`, grouped by section."""
    groups = {"": parser.add_argument_group("run")}
    for name, section in sections(config).items():
        doc = (section.__doc__ or name).splitlines()[0].rstrip(".")
        groups[name] = parser.add_argument_group(f"{name}: {doc[0].lower()}{doc[1:]}")
    for dotted, field in _fields(config):
        if dotted in RECIPE_ONLY:
            continue
        names = [f"--{dotted}", *([SHORT[dotted]] if dotted in SHORT else [])]
        kinds = (field.annotation, *get_args(field.annotation))
        several = any(get_origin(kind) is tuple for kind in kinds)
        groups[dotted.rpartition(".")[0]].add_argument(
            *names,
            dest=dotted,
            nargs="+" if several else None,
            default=argparse.SUPPRESS,
            metavar=_metavar(field),
            help=_help(field),
        )


def overrides(arguments: argparse.Namespace) -> dict[str, Any]:
    """The flags that were given, nested as a recipe is."""
    nested: dict[str, Any] = {}
    for dotted, _ in _fields(Config):
        if dotted in vars(arguments):
            *sections_, last = dotted.split(".")
            place = nested
            for section in sections_:
                place = place.setdefault(section, {})
            value = vars(arguments)[dotted]
            place[last] = None if value == "none" else value
    return nested


def _fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    below = sections(model)
    for name, field in model.model_fields.items():
        if name in below:
            yield from _fields(below[name], f"{prefix}{name}.")
        else:
            yield prefix + name, field


def _metavar(field: FieldInfo) -> str:
    choices = [choice for kind in (field.annotation, *get_args(field.annotation)) for choice in _literal(kind)]
    if choices:
        return "{" + ",".join(choices) + "}"
    names = {int: "N", float: "X", bool: "true|false"}
    kinds = {field.annotation, *get_args(field.annotation)}
    return next((shown for kind, shown in names.items() if kind in kinds), "X" if "float" in str(kinds) else "TEXT")


def _literal(kind: object) -> list[str]:
    return [str(value) for value in get_args(kind)] if get_origin(kind) is Literal else []


def _help(field: FieldInfo) -> str:
    default = "" if field.is_required() else f" [{_shown(field.default)}]"
    return ((field.description or "") + default).replace("%", "%%")


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
