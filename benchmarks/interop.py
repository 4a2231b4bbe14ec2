"""Do the programs of others read what we export, and compute what our coder computes?

    python benchmarks/interop.py [--checks DIR] [--peers DIR] [--json FILE] [--save]
    python benchmarks/interop.py --real              and what they measure with them on the language model (at_work.py)

    1. small coders of every kind are trained on the bundled language model: some minutes in all
    2. each is exported in every format that can hold it, whole and (where it has several prefixes) a prefix on its own
    3. our coder says in float64 what the latents and the output of real activations are
    4. each peer loads the exports in an environment of its own and is held against that (the programs in --checks,
       default ../shared/formats/checks beside the checkout; where they are not there, nothing is done)

A peer disagrees where a number is off by more than 1e-4 of the largest one. Exit code 1 where one does, or an export
fails.
"""

import argparse
import os
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from at_work import as_table, compare
from exports import PEERS, Export, Peer, planned, train, write
from harness import HERE, OFFLINE, available_threads, machine, publish

from matryoshka.errors import MatryoshkaError
from matryoshka.run import Run

CHECKS = HERE.parent.parent / "shared" / "formats" / "checks"
ENVIRONMENTS = Path.home() / ".cache" / "matryoshka" / "peers"


class Verdict(NamedTuple):
    """What a peer made of an export."""

    peer: str
    version: str
    what: str
    difference: float | None
    """the largest one of its numbers from ours, relative to the largest number; None where it has none"""
    failure: str | None
    """the first thing that was wrong"""


def ask(peer: Peer, folders: Mapping[Path, str], checks: Path, environments: Path) -> list[Verdict]:
    """What a peer makes of the exports in these folders, by folder what they hold."""
    python = peer.python(environments)
    version = _version(python, peer.name) if peer.environment else ""
    places = {peer.place(folder): what for folder, what in folders.items()}
    # SAEBench's takes one folder at a time
    calls = [[place] for place in places] if peer.format == "saebench" else [list(places)]
    verdicts = []
    for call in calls:
        print(f"asking {peer.name} {version} about {len(call)} of our exports", flush=True)
        command = [python, checks / peer.check[0], *peer.check[1:], *call]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | OFFLINE)
        judged = judge(call, done.stdout, done.stderr)
        verdicts += [Verdict(peer.name, version, places[place], *judged[place]) for place in call]
    return verdicts


def _version(python: Path, distribution: str) -> str:
    code = f"from importlib.metadata import version; print(version({distribution!r}))"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def judge(folders: Sequence[Path], said: str, errors: str) -> dict[Path, tuple[float | None, str | None]]:
    """By folder: the largest difference that the program printed, and what failed first.

    It prints a section for each folder, which begins with its path, and a verdict at the end; where that is not there,
    the last section and all that were to follow have failed.
    """
    sections: dict[Path, list[str]] = {}
    for line in said.splitlines():
        begins = next((folder for folder in folders if re.match(rf"{re.escape(str(folder))}([ :]|$)", line)), None)
        if begins is not None:
            sections[begins] = []
        elif sections:
            next(reversed(sections.values())).append(line)
    crashed = not re.search(r"^(all good|FAILED: .*)\Z", said.strip(), re.MULTILINE)
    last_words = ["it said nothing of it", *(errors.strip().splitlines() if crashed else ())][-1]
    judged = {}
    for folder in folders:
        lines = sections.get(folder)
        differences = [float(value) for line in lines or () for value in re.findall(r"max rel ([\d.e+-]+)", line)]
        failures = (re.search(r"FAIL (.+)|note (.+ not tried)$", line) for line in lines or ())
        failure = next((match[1] or match[2] for match in failures if match), None)
        if lines is None or (crashed and folder == next(reversed(sections), None)):
            failure = failure or last_words
        judged[folder] = (max(differences, default=None), failure)
    return judged


# --- the program


def measure(
    runs: Mapping[str, Run], checks: Path, environments: Path, folder: Path
) -> tuple[dict[Export, Path], list[Verdict]]:
    """Export these runs (by their names in CODERS) into `folder`, and ask the peers: what was written where, and what
    they say."""
    written: dict[Export, Path] = {}
    verdicts = []
    for number, export in enumerate(planned(runs)):
        place = folder / f"export-{number}"
        try:
            write(export, runs[export.coder], place)
        except MatryoshkaError as error:
            verdicts.append(Verdict(export.format, "", export.what, None, f"not exported: {error}"))
        else:
            written[export] = place
    for peer in PEERS:
        held = {place: export for export, place in written.items() if export.format == peer.format}
        if folders := {place: export.what for place, export in held.items() if export.coder in peer.holds}:
            verdicts += ask(peer, folders, checks, environments)
    return written, verdicts


def markdown(verdicts: Sequence[Verdict]) -> str:
    """The verdicts as a table."""
    lines = [
        "# Exports, read by the programs that they are for",
        "",
        "Largest difference: of latents, output and prefixes, relative to the largest number. SAEDashboard's own"
        " classes read the first batch of features and write it back unchanged. Neuronpedia's importer is not run:"
        " its files are held against the columns of its database.",
        "",
        "| peer | version | what | largest difference | |",
        "|---|---|---|---|---|",
    ]
    for verdict in verdicts:
        difference = "" if verdict.difference is None else f"{verdict.difference:.1e}"
        judged = "agrees" if verdict.failure is None else f"**fails**: {verdict.failure}"
        lines.append(f"| {verdict.peer} | {verdict.version} | {verdict.what} | {difference} | {judged} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--checks", type=Path, default=CHECKS, metavar="DIR", help="the programs that ask the peers")
    parser.add_argument("--peers", type=Path, default=ENVIRONMENTS, metavar="DIR", help="the peers' environments")
    parser.add_argument("--real", action="store_true", help="what they measure on the language model, too")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was measured")
    parser.add_argument("--save", action="store_true", help="write results/DATE-HARDWARE-interop.json and .md")
    given = parser.parse_args()
    if not given.checks.is_dir():
        print(f"nothing is checked: the programs that ask the peers are not in {given.checks}; give --checks DIR")
        return
    results: dict[str, Any] = {"machine": machine("cpu", available_threads())}
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made).resolve()
        runs = train(folder)
        written, verdicts = measure(runs, given.checks, given.peers, folder)
        numbers = compare(runs, written, given.peers) if given.real else []
    results |= {"verdicts": [each._asdict() for each in verdicts], "real": [each._asdict() for each in numbers]}
    publish(results, markdown(verdicts) + as_table(numbers), given.json, given.save, "-interop")
    if any(verdict.failure for verdict in verdicts) or not all(number.agrees for number in numbers):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
