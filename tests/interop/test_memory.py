"""Reading a coder of a size that people have takes hardly more memory than the coder and its file's tensors."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from foreign_files import GOLDEN

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


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_a_coder_of_300_megabytes_takes_no_more_than_half_of_that_beside_what_it_is_made_of(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((64, D_SAE), dtype=np.float32)
    t = {"W_enc": np.tile(rows, (D_MODEL // 64, 1)), "b_enc": rows[0], "threshold": np.abs(rows[1])}
    np.savez(tmp_path / "params.npz", **t, W_dec=t["W_enc"].reshape(D_SAE, D_MODEL), b_dec=rows[2, :D_MODEL])
    small = GOLDEN / "gemma_scope/gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82"
    child = [sys.executable, "-c", CHILD, str(small), str(tmp_path)]
    done = subprocess.run(child, capture_output=True, text=True, timeout=120)
    (tmp_path / "params.npz").unlink()
    assert done.returncode == 0, done.stderr
    assert 0.9 < float(done.stdout) <= 1.5
