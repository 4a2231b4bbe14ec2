"""matryoshka models: which families of language models there are, and what their sites mean."""

import argparse

from matryoshka.cli.tables import console, new_table
from matryoshka.lm.sites import FAMILIES, KINDS, TRANSFORMER_LENS

SUMMARY = "List the model families, their sites, and what each site is."


def define(parser: argparse.ArgumentParser) -> None:
    """Nothing is asked."""


def run(arguments: argparse.Namespace) -> None:
    families = new_table("Families of language models", "model_type", "such as")
    families.columns[1].justify = "left"
    for model_type, family in FAMILIES.items():
        families.add_row(model_type, family.examples)
    console.print(families)
    console.print("Any size: sizes come from the model's config. By hub id, local folder, GGUF file, or `bundled`.\n")
    kinds = new_table("Sites, written LAYER.KIND such as 8.mlp_in", "kind", "what it is", "in TransformerLens")
    for column in kinds.columns:
        column.justify = "left"
    for kind, meaning in KINDS.items():
        names = [name for name, ours in TRANSFORMER_LENS.items() if ours == kind]
        kinds.add_row(kind, meaning, ", ".join(names))
    console.print(kinds)
