"""What `--dry-run` states bounds what training then takes."""

import json
import subprocess
import sys

import pytest

from matryoshka import commands
from matryoshka.training.config import Config

CONFIGS = {
    "a wide coder": {"coder": {"d_sae": 12_288}, "training": {"batch": 1024, "tokens": 4096}},
    "a long chunk": {"coder": {"d_sae": 512}, "training": {"batch": 1024, "tokens": 120_000}},
    "several coders": {
        "coder": {"d_sae": 6144},
        "variants": [{"k": 8}, {"k": 16}, {"k": 32, "activation": "topk"}],
        "training": {"batch": 512, "tokens": 2048},
    },
}

# VmHWM and not ru_maxrss, which begins with the peak of the process that started this one
TRAIN = """
import json, re, sys
from pathlib import Path
from matryoshka import commands
from matryoshka.training.config import Config
commands.train(Config.build(json.loads(sys.argv[1])), sys.argv[2])
print(1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]))
"""


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read as Linux reports it")
def test_peak_memory_stays_below_the_stated_bound(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    values = {"evaluation": {"tokens": 1024}, **CONFIGS[name]}
    values["coder"] = {"read": "1.mlp_in", "write": "1.mlp_out", "k": 16, **values["coder"]}
    stated = sum(item.bytes for item in commands.memory(Config.build(values)))
    folder = tmp_path_factory.mktemp("memory") / "run"
    done = subprocess.run(
        [sys.executable, "-c", TRAIN, json.dumps(values), str(folder)], capture_output=True, text=True, check=True
    )
    peak = int(done.stdout.split()[-1])
    print(f"{name}: peak {peak / 1e9:.2f} GB, stated {stated / 1e9:.2f} GB")
    assert peak <= stated
    assert peak > 0.4 * stated, "a bound so loose says nothing"
