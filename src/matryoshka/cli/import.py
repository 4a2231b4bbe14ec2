"""matryoshka import: coders of other programs as a run, which every other command takes."""

import argparse
from pathlib import Path

from matryoshka.cli.tables import show_imported
from matryoshka.interop import FORMATS

SUMMARY = "Make a run of coders of other programs, from a folder, the hub or a known release."


def define(parser: argparse.ArgumentParser) -> None:
    source = "a folder or file, user/repo[/folder][@revision] on the hub, or RELEASE/CODER (matryoshka releases)"
    parser.add_argument("source", metavar="SOURCE", help=source)
    add = parser.add_argument
    add(
        "--file",
        help="one file of it, such as layer_12/width_16k/average_l0_82/params.npz: its folder alone is fetched",
    )
    add("--format", metavar="NAME", help=f"in place of what it is recognised by: {', '.join(FORMATS)}")
    add("--part", metavar="LABEL", help="one of several coders")
    add("--model", help="language model, where the files do not say it: hub id, folder, .gguf file or bundled")
    add("--read", metavar="SITE", help="site that it reads, such as 8.mlp_in or blocks.8.hook_resid_pre")
    add("--write", metavar="SITE", help="site that it writes, if that is another one")
    add("--out", type=Path, metavar="FOLDER", help="folder of the run [runs/imported/MODEL/NAME]")
    add("--overwrite", action="store_true", help="delete the run that lies there")


def run(arguments: argparse.Namespace) -> None:
    from matryoshka import api

    show_imported(api.import_run(**vars(arguments)))
