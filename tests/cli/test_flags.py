"""Flags made of the configuration."""

from pathlib import Path

import pytest

from matryoshka.cli.flags import Parser, add_flags, overrides
from matryoshka.training.recipe import Config


def test_flags_override_a_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("coder: {read: 1.mlp_in, d_sae: 64, k: 4, widths: [8, 64]}\n")
    parser = Parser(prog="x")
    add_flags(parser)
    flags = [
        "--training.tokens",
        "2000",
        "--coder.widths",
        "16",
        "0.5",
        "64",
        "--k",
        "8",
        "--coder.write",
        "none",
    ]
    config = Config.load(recipe, overrides(parser.parse_known_or_refuse(flags)))
    assert config.coder.widths == (16, 0.5, 64)
    assert (config.coder.k, config.training.tokens, config.coder.read) == (8, 2000, "1.mlp_in")
