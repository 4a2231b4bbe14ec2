"""How soon the command answers where there is nothing to compute: for that torch, which takes seconds, stays out."""

import os
import subprocess
import sys

import pytest

BOUND = 1.0
"""Seconds of CPU time; some 0.4 on the machine where this was written, 4.7 with torch and transformers."""


def cpu_seconds(words: list[str]) -> tuple[float, int]:
    """What one call costs, user and system together, and its exit code."""
    process = subprocess.Popen(
        [sys.executable, "-m", "matryoshka", *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_utime + usage.ru_stime, process.returncode


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("--help", 0),
        ("models", 0),
        ("train --help", 0),
        ("train --no-such-flag 1", 2),
        ("train --read 8.mlp_im --d-sae 64", 2),
        ("resume MISSING", 2),
        ("eval MISSING", 2),
        ("compare MISSING", 2),
        ("analyze MISSING", 2),
        ("features MISSING", 2),
        ("explain MISSING", 2),
        ("steer MISSING 3", 2),
        ("serve MISSING", 2),
        ("figures MISSING", 2),
        ("export MISSING new --format saelens", 2),
        ("push MISSING me/coders", 2),
        ("releases", 0),
    ],
)
def test_help_and_mistakes_are_answered_at_once(words: str, code: int) -> None:
    spent = []
    for _ in range(3):
        seconds, ended = cpu_seconds(words.split())
        assert ended == code
        spent.append(seconds)
        if seconds < BOUND:
            break
    assert min(spent) < BOUND


def test_every_verb_has_the_same_face() -> None:
    """Looked at without torch, or one of them would be slow to start for all."""
    code = (
        "import sys; from importlib import import_module; from matryoshka.cli import VERBS;"
        " files = [import_module('matryoshka.cli.' + verb.replace('-', '_')) for verb in VERBS];"
        " assert all(f.SUMMARY.endswith('.') and callable(f.define) and callable(f.run) for f in files);"
        " sys.exit(bool({'torch', 'transformers', 'pyarrow', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
