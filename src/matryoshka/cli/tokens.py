"""matryoshka tokens: a recipe's text, tokenised."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from matryoshka.cli.flags import add_flags, overrides
from matryoshka.cli.tables import console, new_table
from matryoshka.config import merged, read_yaml
from matryoshka.training.recipe import TokensConfig

if TYPE_CHECKING:
    from matryoshka.data.tokens import Tokens

SUMMARY = "Tokenise a recipe's text; training does so by itself."


def define(parser: argparse.ArgumentParser) -> None:
    parser.usage = "%(prog)s [RECIPE] [--FIELD VALUE ...]"
    parser.add_argument("recipe", nargs="?", type=Path, help="YAML recipe, of which model and text are read")
    add_flags(parser, TokensConfig)


def run(arguments: argparse.Namespace) -> None:
    values = overrides(arguments)
    if arguments.recipe:
        recipe = read_yaml(arguments.recipe)
        values = merged({name: recipe[name] for name in TokensConfig.model_fields if name in recipe}, values)
    config = TokensConfig.build(values)

    from matryoshka import api

    _show_tokens(api.tokenise(config))


def _show_tokens(tokens: "Tokens") -> None:
    """What was tokenised, and where it lies."""
    from matryoshka.data.tokens import SPLITS

    table = new_table(str(tokens.folder), "split", "documents", "tokens", f"windows of {tokens.context}")
    for split in SPLITS:
        counts = (tokens.meta.documents[split], tokens.meta.tokens[split], len(tokens.windows(split)))
        table.add_row(split, *(f"{count:,}" for count in counts))
    console.print(table)
