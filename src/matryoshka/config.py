"""The machinery of configuration: frozen sections, YAML in, one line for each mistake.

A recipe is a YAML file of a section's fields, and every field can be overridden by its dotted flag (`--coder.k 64`):
validation is the same for recipes, flags and Python. The sections themselves stand beside what they configure.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

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


Count = Annotated[int, BeforeValidator(_count), Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Steps = Annotated[int, Field(ge=0)] | Share
"""A number of steps (whole), or a share of all steps (with a decimal point)."""


class Section(BaseModel):
    """Frozen; unknown keys are refused; the string below a field is its help."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

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


def read_yaml(file: Path) -> dict[str, Any]:
    """The mapping in a YAML file (safe loader)."""
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        near = [str(path) for path in file.parent.glob("*.y*ml")] if file.parent.is_dir() else []
        hint = did_you_mean(str(file), near) if near else ""
        raise MatryoshkaError(f"{file}: cannot read this recipe ({error.strerror}){hint}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise MatryoshkaError(f"{file}: not YAML: {' '.join(str(error).split())}") from None
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
    """The fields of `model` that are sections themselves."""
    return {
        name: field.annotation
        for name, field in model.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
    }


def one_line(error: ValidationError, model: type[BaseModel]) -> str:
    """The first mistake: the field, what was expected, what was given, the nearest right name."""
    first = error.errors()[0]
    *parents, last = first["loc"]
    if first["type"] == "extra_forbidden":
        for parent in parents:
            model = sections(model)[str(parent)]
        where = ".".join(map(str, first["loc"]))
        return f"{where}: unknown field{did_you_mean(str(last), model.model_fields)}"
    # in a union pydantic appends the branch that failed, as a type's name or a description, to the path
    path = [str(part) for part in first["loc"] if isinstance(part, int) or part.isidentifier()]
    where = ".".join(part for part in path if part not in ("int", "float", "str"))
    if first["type"] == "missing":
        return f"{where}: is needed (give it in the recipe, or as --{where})"
    message = first["msg"].removeprefix("Value error, ")
    got = "" if first["type"] == "value_error" else f", got {first['input']!r}"
    return f"{where}: {message[0].lower()}{message[1:]}{got}"
