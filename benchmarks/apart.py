"""A benchmark's measurement in a process of its own: its memory is nobody else's."""

import json
import subprocess
import sys
from typing import Any


def answer(*command: str) -> Any:
    """The JSON of the last line that `python COMMAND` prints."""
    done = subprocess.run([sys.executable, *command], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])
