"""Libraries that only some analyses need, and that not everybody has."""

from importlib import import_module
from types import ModuleType

from matryoshka.scores.result import NotMeasurable


def extra(module: str, package: str, of: str, needed_for: str) -> ModuleType:
    """The module of a package that the extra `of` brings. Raises NotMeasurable without it."""
    try:
        return import_module(module)
    except ImportError:
        raise NotMeasurable(f"{needed_for} need {package}: pip install 'matryoshka-sae[{of}]'") from None
