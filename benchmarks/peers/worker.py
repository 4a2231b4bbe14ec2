"""The beginning of every contender's process: the job, and how its training loop is fed.

    python with_PEER.py JOB paced ACTIVATIONS     steps when the benchmark asks for them, timed (paced.py)
    python with_PEER.py JOB raced ROWS WEIGHTS    the whole run, and what it has learned (raced.py)

A contender is a function `train(job, batches)` that trains on an iterator in the peer's own public loop, unchanged, and
returns the weights that it has come to. What it prints goes to stderr; answers go to the original stdout, one line of
JSON each.
"""

import json
import os
import sys
from collections.abc import Callable
from typing import Any

import torch
from canonical import Canonical
from job import Batches, Job
from paced import pace
from raced import race


def read_job() -> Job:
    """What the command line says is to be trained."""
    return Job(**json.loads(sys.argv[1]))


def run(train: Callable[[Job, Batches], Canonical]) -> None:
    """Train as the command line says."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(values: dict[str, Any]) -> None:
        print(json.dumps(values), file=answers, flush=True)

    job = read_job()
    torch.set_num_threads(job.threads)
    torch.manual_seed(job.seed)
    mode, *files = sys.argv[2:]
    {"paced": pace, "raced": race}[mode](train, job, answer, *files)
