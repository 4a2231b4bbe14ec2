"""matryoshka push: coders to a repository on the hub, in SAELens' files, with a model card."""

import argparse

from matryoshka.cli.flags import add_runs, count

SUMMARY = "Upload coders to the Hugging Face hub, with a model card, as SAELens and others load them."


def define(parser: argparse.ArgumentParser) -> None:
    add_runs(parser)
    add = parser.add_argument
    add("repository", metavar="USER/REPO", help="repository on the hub, made if it is not there yet")
    add("--prefix", type=count, metavar="N", help="the first N latents alone: one of the coder's prefixes")
    add("--license", metavar="NAME", help="for the card, by the hub's name: apache-2.0, cc-by-4.0, mit …")
    add("--private", action="store_true", help="make a new repository private")
    add("--overwrite", action="store_true", help="replace coders of the same names, and the card")


def run(arguments: argparse.Namespace) -> None:
    from matryoshka import api

    pushed = api.push(**vars(arguments))
    for place in pushed.places:
        print(place)
    if not pushed.card:
        print("README.md there is left as it is; --overwrite writes it anew")
    print(f"{pushed.address} at {pushed.commit}")
