"""Reading a coder of a size that people have takes hardly more memory than the coder and its file's tensors."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from foreign_files import GOLDEN
from safetensors.torch import save_file

WEIGHTS = "sae_weights.safetensors"
D_MODEL, D_SAE = 2304, 16384
"""Of Gemma Scope's smallest."""
CHILD = """
import sys
from pathlib import Path
from matryoshka.interop.importing import import_coder
peak = lambda: int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
import_coder(sys.argv[1])  # all that is imported is
before = peak()
coder = import_coder(sys.argv[2])
size = sum(tensor.nbytes for tensor in coder.state_dict().values())
print((peak() - before - size) / size)
"""


def half_as_precise(folder: Path) -> None:
    """SAELens' files in bfloat16, which become float32 as they are read."""
    W_enc = torch.randn(64, D_SAE).repeat(D_MODEL // 64, 1).bfloat16()
    t = {"W_enc": W_enc, "b_enc": W_enc[0].clone(), "threshold": W_enc[1].abs()}
    save_file({**t, "W_dec": W_enc.view(D_SAE, D_MODEL).clone(), "b_dec": W_enc[2, :D_MODEL].clone()}, folder / WEIGHTS)
    fields = {"architecture": "jumprelu", "d_in": D_MODEL, "d_sae": D_SAE, "apply_b_dec_to_input": True}
    (folder / "cfg.json").write_text(json.dumps({**fields, "metadata": {"sae_lens_version": "6.0.0"}}))


def compressed_by_nobody(folder: Path) -> None:
    """Gemma Scope's."""
    rows = np.random.default_rng(0).standard_normal((64, D_SAE), dtype=np.float32)
    t = {"W_enc": np.tile(rows, (D_MODEL // 64, 1)), "b_enc": rows[0], "threshold": np.abs(rows[1])}
    np.savez(folder / "params.npz", **t, W_dec=t["W_enc"].reshape(D_SAE, D_MODEL), b_dec=rows[2, :D_MODEL])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize("write", [compressed_by_nobody, half_as_precise])
def test_a_coder_of_300_megabytes_takes_no_more_than_half_of_that_beside_what_it_is_made_of(write, tmp_path) -> None:
    write(tmp_path)
    small = {
        compressed_by_nobody: GOLDEN / "gemma_scope/gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82",
        half_as_precise: GOLDEN / "saelens/jumprelu_bfloat16",
    }
    child = [sys.executable, "-c", CHILD, str(small[write]), str(tmp_path)]
    done = subprocess.run(child, capture_output=True, text=True, timeout=120)
    shutil.rmtree(tmp_path)
    assert done.returncode == 0, done.stderr
    assert 0.9 < float(done.stdout) <= 1.5
