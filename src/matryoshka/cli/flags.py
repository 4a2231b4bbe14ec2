"""Command-line flags: their parser, what verbs share, and those made of the configuration, every field by its dotted
name.

Those only collect text; `Config.build` validates it with the recipe's values, so that there is one way to be wrong.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NoReturn, Union, get_args, get_origin

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from matryoshka.config import Count, sections
from matryoshka.errors import MatryoshkaError, did_you_mean
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


class Parser(argparse.ArgumentParser):
    """An argument parser whose mistakes are one MatryoshkaError line with the nearest right flag."""

    def error(self, message: str) -> NoReturn:
        """Called by argparse for what it cannot parse."""
        raise MatryoshkaError(f"{self.prog}: {message}; see {self.prog} --help")

    def parse_known_or_refuse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """All `arguments` parsed, or the first unknown one refused by name."""
        parsed, unknown = self.parse_known_args(arguments)
        if unknown:
            flags = [flag for action in self._actions for flag in action.option_strings if flag.startswith("--")]
            known = flags if unknown[0].startswith("-") else []
            hint = did_you_mean(unknown[0].split("=")[0], known, f"; see {self.prog} --help")
            raise MatryoshkaError(f"{self.prog}: unknown argument {unknown[0]!r}{hint}")
        return parsed


def add_run(parser: argparse.ArgumentParser) -> None:
    """The folder of a run."""
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run")


def add_runs(parser: argparse.ArgumentParser) -> None:
    """The folders of one run or several."""
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folder of a run")


def add_text(parser: argparse.ArgumentParser) -> None:
    """Another text than the one that the coder's card knows, and how it is read."""
    helps = {
        "source": "a text, in place of the one trained on: a file, folder or data set",
        "field": "its column that holds the text",
        "subset": "subset of a hub data set",
        "split": "split of a hub data set [train]",
    }
    for name, text in helps.items():
        flag = "--text" if name == "source" else f"--text.{name}"
        parser.add_argument(flag, action=_TextPart, const=name, dest="text", metavar=name.upper(), help=text)


class _TextPart(argparse.Action):
    """Collects the flags of a text in one mapping."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, value: Any, _: Any = None
    ) -> None:
        namespace.text = {**(namespace.text or {}), str(self.const): value}


def add_device(parser: argparse.ArgumentParser) -> None:
    """Where language model and coders live."""
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1; auto: cuda where there is one")


def add_valued(
    group: argparse._ActionsContainer, flag: str, kind: Callable[[str], Any], metavar: str, default: Any, what: str
) -> None:
    """A flag that takes a value, and its default in the help."""
    group.add_argument(flag, type=kind, metavar=metavar, default=default, help=f"{what} [%(default)s]")


def count(text: str) -> int:
    """A whole number, also written 2e6 or 2_000_000."""
    try:
        return TypeAdapter(Count).validate_python(text)
    except ValidationError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0 (2e6 and 2_000_000 are)") from None


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
        nargs = "+" if any(get_origin(kind) is tuple for kind in _kinds(field.annotation)) else None
        about = {"dest": dotted, "nargs": nargs, "metavar": _metavar(field), "help": _help(field)}
        groups[dotted.rpartition(".")[0]].add_argument(*names, default=argparse.SUPPRESS, **about)


def overrides(arguments: argparse.Namespace) -> dict[str, Any]:
    """The flags that were given, nested as a recipe is."""
    nested: dict[str, Any] = {}
    for dotted, field in _fields(Config):
        if dotted in vars(arguments):
            *parents, last = dotted.split(".")
            place = nested
            for name in parents:
                place = place.setdefault(name, {})
            value = vars(arguments)[dotted]
            none = value in ("none", ["none"]) and NoneType in _kinds(field.annotation)
            place[last] = None if none else value
    return nested


def _fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    below = sections(model)
    for name, field in model.model_fields.items():
        if name in below:
            yield from _fields(below[name], f"{prefix}{name}.")
        else:
            yield prefix + name, field


def _kinds(annotation: object) -> list[object]:
    """The types that a field may have, those of a union's branches and of what is only annotated among them."""
    if get_origin(annotation) is Annotated:
        return _kinds(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [kind for branch in get_args(annotation) for kind in _kinds(branch)]
    return [annotation]


def _metavar(field: FieldInfo) -> str:
    kinds = _kinds(field.annotation)
    choices = [str(choice) for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
    inner = [part for kind in kinds for branch in get_args(kind) for part in _kinds(branch)]
    names = {bool: "true|false", float: "X", int: "N"}
    value = [shown for kind, shown in names.items() if kind in (*kinds, *inner)][:1]
    if choices:
        return "|".join([*value, *choices]) if value else "{" + ",".join(choices) + "}"
    return "|".join([*value, "auto"]) if field.default_factory else next(iter(value), "TEXT")


def _help(field: FieldInfo) -> str:
    default = "" if field.is_required() else f" [{'auto' if field.default_factory else _shown(field.default)}]"
    return ((field.description or "") + default).replace("%", "%%")


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
