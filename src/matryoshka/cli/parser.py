"""An argument parser that answers mistakes as the rest of matryoshka does."""

import argparse
from collections.abc import Sequence
from typing import NoReturn

from matryoshka.errors import MatryoshkaError, did_you_mean


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
            hint = did_you_mean(unknown[0].split("=")[0], known) if known else ""
            hint = hint if "did you mean" in hint else f"; see {self.prog} --help"
            raise MatryoshkaError(f"{self.prog}: unknown argument {unknown[0]!r}{hint}")
        return parsed
