"""The machinery of configuration: frozen sections, YAML in, one line for each mistake.

A recipe is a YAML file of a section's fields, and every field can be overridden by its dotted flag (`--coder.k 64`):
validation is the same for recipes, flags and Python. The sections themselves stand beside what they configure.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails, PydanticUseDefault

from matryoshka.errors import MatryoshkaError, did_you_mean


def _count(value: object) -> object:
    """Whole numbers as people write them: 2e7 and 20_000_000 (YAML reads both as text)."""
    if isinstance(value, str):
        try:
            number = float(value.replace("_", ""))
        except ValueError:
            return value
        return int(number) if number.is_integer() else value
    return value


def _number(value: object) -> object:
    """A whole number or one with a decimal point, as it is written: `1.0` as a flag is what it is in YAML."""
    if not isinstance(value, str):
        return value
    for kind in (int, float):
        try:
            return kind(value.replace("_", ""))
        except ValueError:
            continue
    return value


def _default(value: object) -> object:
    if value == "auto":
        raise PydanticUseDefault
    return value


Auto = BeforeValidator(_default)
"""Of a field whose default is made by a rule from the fields above it: `auto` means that default."""
MOST = 2**53
"""The largest count: whole numbers up to it are exact as floats too."""
Count = Annotated[int, BeforeValidator(_count), Field(ge=1, le=MOST)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Share = Annotated[float, Field(ge=0, le=1)]
WholeOrShare = Annotated[Annotated[int, Field(ge=0, le=MOST)] | Share, BeforeValidator(_number)]
"""So many (whole), or a share of all (with a decimal point)."""


class Section(BaseModel):
    """Frozen; unknown keys are refused; the string below a field is its help."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)
    RENAMED: ClassVar[Mapping[str, str]] = {}
    """Fields by the names that they had, for those who know them by these."""

    @classmethod
    def build(cls, values: Mapping[str, Any]) -> Self:
        """A validated section from nested values; a mistake is one MatryoshkaError line that names the field."""
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise MatryoshkaError(one_line(error, cls)) from None

    @classmethod
    def load(cls, file: Path, overrides: Mapping[str, Any] | None = None) -> Self:
        """The fields of this class in a YAML recipe, with nested `overrides` laid over them before validation."""
        return cls.build(merged(read_yaml(file), overrides or {}))


LARGEST_RECIPE, DEEPEST = 2**20, 20
"""Bytes of a recipe, and levels in it: far more than any has, far less than takes a machine down."""


class _Loader(yaml.SafeLoader):
    """The safe loader, bounded: without aliases, of which a few lines unfold to gigabytes, and to a depth."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not read in a recipe: write the value out")
        self.depth += 1
        if self.depth > DEEPEST:
            raise yaml.YAMLError(f"nested more than {DEEPEST} levels deep")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def read_yaml(file: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises MatryoshkaError, in one line, for whatever is not a recipe."""
    try:
        if (size := file.stat().st_size) > LARGEST_RECIPE:
            raise MatryoshkaError(f"{file}: has {size:,} bytes, a recipe at most {LARGEST_RECIPE:,}")
        content = yaml.load(file.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        near = [str(path) for path in file.parent.glob("*.y*ml")] if file.parent.is_dir() else []
        hint = did_you_mean(str(file), near) if near else ""
        raise MatryoshkaError(f"{file}: cannot read this recipe ({error.strerror}){hint}") from None
    except (yaml.YAMLError, ValueError) as error:  # bytes that are no UTF-8, impossible dates, tags that do not fit
        raise MatryoshkaError(f"{file}: not YAML: {_short(' '.join(str(error).split()))}") from None
    if not isinstance(content, dict):
        raise MatryoshkaError(f"{file}: expected a mapping of sections, got {type(content).__name__}")
    return content


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid on `base`, mapping by mapping."""
    result = dict(base)
    for name, value in over.items():
        below = result.get(name)
        result[name] = merged(below, value) if isinstance(below, dict) and isinstance(value, Mapping) else value
    return result


def sections(model: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """The fields of `model` that are sections themselves, those that may be None too."""
    return {
        name: kind
        for name, field in model.model_fields.items()
        for kind in (field.annotation, *get_args(field.annotation))
        if isinstance(kind, type) and issubclass(kind, BaseModel)
    }


def one_line(error: ValidationError, model: type[BaseModel]) -> str:
    """The first mistake: the field, what was expected, what was given, the nearest right name."""
    errors = error.errors()
    typos = (mistake for mistake in errors if mistake["type"] == "extra_forbidden")
    first = next(typos, errors[0])  # a typo makes others
    *parents, last = map(str, first["loc"] or ("",))  # what is wrong with a section as a whole has no place in it
    # in a union pydantic appends the branch that failed, as a type's name or a description, to the path
    path = [str(part) for part in first["loc"] if isinstance(part, int) or part.isidentifier()]
    where = ".".join(part for part in path if part not in ("int", "float", "str"))
    holder = model
    for parent in parents:
        holder = sections(holder).get(parent, holder)
    below = sections(holder).get(last)
    match first["type"]:
        case "extra_forbidden" if name := getattr(holder, "RENAMED", {}).get(last):
            return f"{'.'.join([*parents, last])}: is called {'.'.join([*parents, name])} now"
        case "extra_forbidden":
            return f"{'.'.join(map(str, first['loc']))}: unknown field{did_you_mean(last, holder.model_fields)}"
        case "missing":
            needed = [name for name, field in below.model_fields.items() if field.is_required()] if below else []
            fields = [f"{where}.{name}" for name in needed] or [where]
            them = "is needed (give it" if len(fields) == 1 else "are needed (give them"
            return f"{' and '.join(fields)} {them} in the recipe, or as --{' --'.join(fields)})"
        case "model_type" if below:
            return f"{where}: is a section; give its fields ({', '.join(below.model_fields)}), got {_got(first)}"
        case "value_error":
            return f"{where}: {_lower(first['msg'].removeprefix('Value error, '))}".removeprefix(": ")
        case "tuple_type" | "list_type":
            return f"{where}: should be a list, got {_got(first)}"
    return f"{where}: {_lower(first['msg'])}, got {_got(first)}"


def _lower(message: str) -> str:
    return message[0].lower() + message[1:]


def _got(error: ErrorDetails) -> str:
    return _short(repr(error["input"]))


def _short(text: str, most: int = 200) -> str:
    return text if len(text) <= most else f"{text[:most]}… ({len(text):,} characters)"
