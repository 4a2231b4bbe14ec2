"""What `--dry-run` states bounds what training then takes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from matryoshka import api, cli
from matryoshka.training.plan import check
from matryoshka.training.preview import needed, upstream
from matryoshka.training.recipe import Config

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
from matryoshka import api
from matryoshka.training.recipe import Config
api.train(Config.build(json.loads(sys.argv[1])), sys.argv[2])
print(1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]))
"""


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read as Linux reports it")
def test_peak_memory_stays_below_the_stated_bound(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    values = {"evaluation": {"tokens": 1024}, **CONFIGS[name]}
    values["coder"] = {"read": "1.mlp_in", "write": "1.mlp_out", "k": 16, **values["coder"]}
    config = Config.build(values)
    info, plans = check(config)
    stated = sum(item.bytes for item in needed(config, info, plans, upstream(config, info, plans)))
    folder = tmp_path_factory.mktemp("memory") / "run"
    done = subprocess.run(
        [sys.executable, "-c", TRAIN, json.dumps(values), str(folder)], capture_output=True, text=True, check=True
    )
    peak = int(done.stdout.split()[-1])
    print(f"{name}: peak {peak / 1e9:.2f} GB, stated {stated / 1e9:.2f} GB")
    assert peak <= stated
    assert peak > 0.4 * stated, "a bound so loose says nothing"


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is set as Linux takes it")
def test_running_out_of_memory_is_one_line(tmp_path: Path) -> None:
    import resource

    arguments = ["--read", "1.mlp_in", "--d-sae", "40000000", "--text", "bundled", "--tokens", "1000"]
    done = subprocess.run(
        [sys.executable, "-m", "matryoshka", "train", *arguments, "--out", tmp_path / "run"],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (12_000_000_000, 12_000_000_000)),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: out of memory at a request for 30720000000 bytes: matryoshka train --dry-run")
    assert len(done.stderr.splitlines()) == 1


def test_running_out_of_a_gpus_memory_is_known_and_other_errors_are_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raised: list[Exception] = [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has …")]

    def train(*_: object) -> None:
        raise raised[0]

    monkeypatch.setattr(api, "train", train)
    with pytest.raises(SystemExit) as ended:
        cli.main(["train", "--read", "1.mlp_in", "--d-sae", "64"])
    assert ended.value.code == 2
    assert "out of memory at a request for 2.00 GiB: " in capsys.readouterr().err
    raised[0] = RuntimeError("a mistake of ours")
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        cli.main(["train", "--read", "1.mlp_in", "--d-sae", "64"])
