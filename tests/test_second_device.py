"""Everything on a second device (second_device.py): what mixes devices, as a GPU would refuse it, fails here."""

import json
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from torch.utils import backend_registration

from matryoshka import api
from matryoshka.config import merged
from matryoshka.run import Run
from matryoshka.training.recipe import Config

from .conftest import FEATURE_TOKENS, SMALL

pytestmark = pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this torch takes no devices written in Python",
)
PROGRAM = Path(__file__).with_name("second_device.py")
TRAIN_THERE = ["--model.device", "apart", "--model.dtype", "float32"]
STUDY_THERE = ["--device", "apart"]
"""In the precision of the card: what was trained on a CPU is float32."""


def on_second_device(*arguments: str | Path) -> int:
    """Run the command; returns how often the host asked the device for something."""
    done = subprocess.run([sys.executable, PROGRAM, *arguments], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    found = re.search(r"asked the device (\d+) times", done.stdout)
    assert found
    return int(found[1])


def copied(run: Run, path: Path) -> Run:
    """The run at another path, to be studied on the second device."""
    shutil.copytree(run.path, path)
    return Run(path)


def test_a_mixture_of_devices_is_refused_and_there_is_no_numpy_array() -> None:
    code = """
import torch, second_device
x = torch.ones(3, device="apart")
assert (x + 1).sum().item() == 6 and x.device.type == "apart" and (x + x).cpu().numpy().tolist() == [2, 2, 2]
for wrong in (lambda: x + torch.ones(3), lambda: x.numpy(), lambda: torch.ones(3)[x > 0]):
    try:
        wrong()
    except RuntimeError:
        continue
    raise SystemExit("taken")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=PROGRAM.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_training_from_a_cache_learns_what_it_learns_on_a_cpu_and_resumes(tmp_path: Path) -> None:
    training = {"select": "float32", "checkpoint_every": 25}
    here = api.train(Config.build(merged(SMALL, {"training": training})), tmp_path / "here")
    cached = ["--activations.cache", tmp_path / "activations"]
    on_second_device("train", here.config_file, *TRAIN_THERE, *cached, "--out", tmp_path / "there")
    there = Run(tmp_path / "there")
    shutil.rmtree(there.checkpoints / "step_40")
    shutil.rmtree(there.coder)
    on_second_device("resume", there.path)
    assert api.results(there).values("FVU") == pytest.approx(api.results(here).values("FVU"), rel=1e-3)


@pytest.mark.parametrize("activation", ["topk", "batchtopk"])
def test_another_forty_steps_ask_the_device_less_often_than_every_other_step(
    trained: Run, tmp_path: Path, activation: str
) -> None:
    """For the number of the dead every eighth step, and once a chunk and a forward pass of the language model."""
    asked, chosen = [], ["--coder.activation", activation]
    for steps in 40, 80:
        sizes = ["--training.tokens", str(512 * steps), "--activations.lm_batch", "128", "--log.every", "1000"]
        out = ["--out", tmp_path / f"{steps}"]
        asked.append(on_second_device("train", trained.config_file, *TRAIN_THERE, *sizes, *chosen, *out))
    assert 0 < asked[1] - asked[0] < 15


@pytest.mark.timeout(900)  # all evaluations twice, on a machine that may be busy
def test_every_evaluation_finds_what_it_finds_on_a_cpu(trained: Run, tmp_path: Path) -> None:
    there = copied(trained, tmp_path / "there")
    on_second_device("eval", there.path, *STUDY_THERE, "--tokens", "1024", "--overwrite")
    shutil.copytree(trained.path, tmp_path / "here")
    api.evaluate([tmp_path / "here"], tokens=1024)
    found, expected = (
        {
            (row["name"], row["width"]): row["value"]
            for row in json.loads((folder / "evaluation/scores.json").read_text())
        }
        for folder in (there.path, tmp_path / "here")
    )
    assert len(expected) > 50
    assert found == pytest.approx(expected, rel=2e-3, abs=2e-3)


def test_features_are_those_that_a_cpu_finds_and_are_named_and_steered(featured: Run, tmp_path: Path) -> None:
    there = copied(featured, tmp_path / "run")
    there.features_file.unlink()
    shutil.rmtree(there.recording)  # what a CPU has read would be taken as it is
    on_second_device("features", there.path, *STUDY_THERE, "--tokens", str(FEATURE_TOKENS))
    ours, theirs = (api.store(run).ranking("density") for run in (there, featured))
    assert ours == theirs
    on_second_device("explain", there.path, *STUDY_THERE)
    written = ["--prompt", "The people", "--tokens", "4", "--temperature", "1"]
    on_second_device("steer", there.path, "3", *STUDY_THERE, *written)


def test_the_page_reads_texts_there(featured: Run, tmp_path: Path) -> None:
    there = copied(featured, tmp_path / "run")
    command = [sys.executable, PROGRAM, "serve", there.path, *STUDY_THERE, "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        address = server.stdout.readline().split("/  ")[0]
        headers = {"Content-Type": "application/json", "Origin": address}
        text = json.dumps({"text": "The people of the United States"}).encode()
        request = urllib.request.Request(f"{address}/api/runs/0/try", text, headers, method="POST")
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert json.load(answer)["features"]
        server.send_signal(signal.SIGINT)
        assert re.search(r"asked the device [1-9]", server.communicate(timeout=20)[0])
    finally:
        server.kill()
        server.communicate()
