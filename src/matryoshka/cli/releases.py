"""matryoshka releases: coders of others that are known by name."""

import argparse

from rich.text import Text

from matryoshka.cli.tables import console
from matryoshka.interop.registry import releases

SUMMARY = "List the releases of others that `matryoshka import` knows by name."


def define(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pattern", nargs="?", default="", metavar="PATTERN", help="part of a name, model or repository")


def run(arguments: argparse.Namespace) -> None:
    for name, release in releases(arguments.pattern).items():
        called = f"{name}/{release.coders}" if release.coders else name
        console.print(Text.assemble((name, "bold"), f"  {release.model}\n  {release.what}"), soft_wrap=True)
        console.print(f"  not read: it {release.refused}" if release.refused else f"  {called}", soft_wrap=True)
    console.print("\na run of one: matryoshka import RELEASE/CODER; of several: matryoshka pull RELEASE CODER …")
