"""What holds of an export of any format: whole or not at all, and only where it may lie."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from written_coders import card, random_coder, saved

from matryoshka.coder.card import ModelCard
from matryoshka.errors import MatryoshkaError
from matryoshka.interop import FORMATS, WRITTEN
from matryoshka.interop.exporting import export
from matryoshka.run import Run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return saved(random_coder("batchtopk"), tmp_path / "run")


def test_unknown_formats_are_refused(run: Run, tmp_path: Path) -> None:
    with pytest.raises(MatryoshkaError, match=r"unknown format 'sealens' to export to \(did you mean 'saelens'\?\)"):
        export(run, tmp_path / "out", "sealens")
    only_read = next(name for name in FORMATS if name not in WRITTEN)
    with pytest.raises(MatryoshkaError, match=r"it is only read; written are: saelens"):
        export(run, tmp_path / "out", only_read)


def test_a_prefix_has_to_be_one_of_the_coders(run: Run, tmp_path: Path) -> None:
    with pytest.raises(MatryoshkaError, match=rf"^{run.path}: prefix 7 is none of the coder's: 2, 5, 16"):
        export(run, tmp_path / "out", "saelens", prefix=7)
    assert not (tmp_path / "out").exists()
    folder = export(run, tmp_path / "out", "saelens", prefix=5)
    assert json.loads((folder / "cfg.json").read_text())["d_sae"] == 5


def test_a_folder_that_is_there_is_refused_without_overwrite(run: Run, tmp_path: Path) -> None:
    folder = export(run.path, str(tmp_path / "out"), "saelens")
    before = (folder / "sae_weights.safetensors").read_bytes()
    with pytest.raises(MatryoshkaError, match="exists already; give another folder, or --overwrite"):
        export(run, folder, "saelens", prefix=5)
    assert (folder / "sae_weights.safetensors").read_bytes() == before
    (folder / "README.md").write_text("a card")
    export(run, folder, "saelens", prefix=5, overwrite=True)
    assert json.loads((folder / "cfg.json").read_text())["d_sae"] == 5


def test_overwriting_leaves_alone_what_is_no_export(run: Run, tmp_path: Path) -> None:
    for name in ("notes.txt", "deep/er/cfg.json", ".hidden"):
        folder = tmp_path / name.replace("/", "-")
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text("mine")
        with pytest.raises(MatryoshkaError, match=r"is no file of saelens, so --overwrite leaves it alone"):
            export(run, folder, "saelens", overwrite=True)
        assert (folder / name).read_text() == "mine"
    with pytest.raises(MatryoshkaError, match="so --overwrite leaves it alone"):
        export(run, run.path, "saelens", overwrite=True)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(MatryoshkaError, match="is a file; an export is a folder"):
        export(run, tmp_path / "file", "saelens", overwrite=True)


def test_a_refusal_while_writing_leaves_the_old_export(kinds: dict[str, Run], run: Run, tmp_path: Path) -> None:
    folder = export(run, tmp_path / "out", "saelens")
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    damaged = saved(random_coder("batchtopk", read="2.resid_post"), tmp_path / "damaged")
    weights = damaged.path / "coder" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-7])
    with pytest.raises(MatryoshkaError, match="damaged"):
        export([run, damaged], folder, "saelens", overwrite=True)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert {path.name for path in tmp_path.iterdir()} == {"run", "damaged", "out"}


def test_a_folder_that_cannot_be_made_is_said(run: Run, tmp_path: Path) -> None:
    with pytest.raises(MatryoshkaError, match="cannot be made or written into"):
        export(run, tmp_path / ("x" * 300), "saelens")


def test_two_coders_of_one_name_are_refused(run: Run, tmp_path: Path) -> None:
    other = saved(random_coder("relu"), tmp_path / "other")
    with pytest.raises(
        MatryoshkaError, match=r"would both be blocks\.1\.hook_resid_post; export one of them at a time"
    ):
        export([run, other], tmp_path / "out", "saelens")
    assert export([run, run.path], tmp_path / "out", "saelens").is_dir()  # the same one, given twice


def test_coders_of_no_language_model_are_refused(tmp_path: Path) -> None:
    coder = random_coder("relu")
    coder.card = None
    with pytest.raises(MatryoshkaError, match="has no card, so nobody knows which model it is of"):
        export(saved(coder, tmp_path / "bare"), tmp_path / "out", "saelens")
    coder.card = card("0.mlp_out", "0.mlp_out").model_copy(
        update={"model": ModelCard(name="synthetic", synthetic={"features": 8})}
    )
    with pytest.raises(MatryoshkaError, match="is of synthetic features, which no other program has"):
        export(saved(coder, tmp_path / "synthetic"), tmp_path / "out", "saelens")
    assert not (tmp_path / "out").exists()


BIG = """
import sys
import matryoshka, torch
from matryoshka.interop.exporting import export

def memory(what):
    return int(next(line for line in open("/proc/self/status") if line.startswith(what)).split()[1]) * 1024

export(sys.argv[1] + "/small", sys.argv[1] + "/warm", sys.argv[2])  # what is imported is none of the coder's
before = memory("VmRSS")
export(sys.argv[1] + "/run", sys.argv[1] + "/out", sys.argv[2])
print(memory("VmHWM") - before)
"""


@pytest.mark.parametrize(("format", "kind"), [("saebench", "jumprelu"), ("sparsify", "topk")])
def test_a_large_coder_takes_little_beside_itself(format: str, kind: str, tmp_path: Path) -> None:
    """16k latents of 2,304 numbers: at most 1.5 times its bytes beyond itself."""
    coder = random_coder(kind, d_in=2304, widths=(4096, 16_384))
    with torch.no_grad():
        norms = coder.weights.W_dec.norm(dim=1, keepdim=True)
        coder.weights.W_dec.div_(norms if kind == "topk" else 2 * norms)
    saved(coder, tmp_path / "run")
    size = sum(tensor.numel() * tensor.element_size() for tensor in coder.state_dict().values())
    saved(random_coder(kind), tmp_path / "small")
    del coder
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    child = subprocess.run(
        [sys.executable, "-c", BIG, str(tmp_path), format], capture_output=True, text=True, env=environment, timeout=250
    )
    assert child.returncode == 0, child.stderr
    print(f"{int(child.stdout) / size:.3f} times its bytes, itself among them")
    assert size <= int(child.stdout) <= 2.5 * size
