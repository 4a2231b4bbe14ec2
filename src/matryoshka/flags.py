"""Command-line flags made from the configuration: every field by its dotted name, its docstring as help.

Flags only collect text; `Config.build` validates it with the recipe's values, so that there is one way to be wrong.
"""

import argparse
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NoReturn, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from matryoshka.errors import MatryoshkaError, did_you_mean
from matryoshka.training.config import Config, sections

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


class Parser(argparse.ArgumentParser):
    """An argument parser whose mistakes are one MatryoshkaError line with the nearest right flag."""

    def error(self, message: str) -> NoReturn:
        """Called by argparse for what it cannot parse."""
        raise MatryoshkaError(f"{self.prog}: {message}; see {self.prog} --help")

    def parse_known_or_refuse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """All `arguments` parsed, or the first unknown one refused by name."""
        given, unknown = self.parse_known_args(arguments)
        if unknown:
            flags = [flag for action in self._actions for flag in action.option_strings if flag.startswith("--")]
            known = flags if unknown[0].startswith("-") else []
            hint = did_you_mean(unknown[0].split("=")[0], known) if known else ""
            hint = hint if "did you mean" in hint else f"; see {self.prog} --help"
            raise MatryoshkaError(f"{self.prog}: unknown argument {unknown[0]!r}{hint}")
        return given


def add_flags(parser: argparse.ArgumentParser) -> None:
    """A flag for every field of Config, grouped by section."""
    groups = {"": parser.add_argument_group("run")}
    for name, section in sections(Config).items():
        doc = (section.__doc__ or name).splitlines()[0].rstrip(".")
        groups[name] = parser.add_argument_group(f"{name}: {doc[0].lower()}{doc[1:]}")
    for dotted, field in _fields(Config):
        if dotted in RECIPE_ONLY:
            continue
        names = [f"--{dotted}", *([SHORT[dotted]] if dotted in SHORT else [])]
        several = get_origin(field.annotation) is tuple
        groups[dotted.rpartition(".")[0]].add_argument(
            *names,
            dest=dotted,
            nargs="+" if several else None,
            default=argparse.SUPPRESS,
            metavar=_metavar(field),
            help=_help(field),
        )


def overrides(given: argparse.Namespace) -> dict[str, Any]:
    """The flags that were given, nested as a recipe is."""
    nested: dict[str, Any] = {}
    for dotted, _ in _fields(Config):
        if dotted in vars(given):
            *sections_, last = dotted.split(".")
            place = nested
            for section in sections_:
                place = place.setdefault(section, {})
            value = vars(given)[dotted]
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
