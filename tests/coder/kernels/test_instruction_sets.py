"""On processors with fewer instructions than this one: they are masked, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
TESTS = ["tests/coder/kernels/test_cpu.py", "tests/coder/test_nonlinearity.py", "tests/training/test_precision.py"]


def test_all_of_it_holds_on_a_processor_with_avx2_alone() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "0", *TESTS],
        cwd=ROOT, env=os.environ | AVX2, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-3000:]


@pytest.mark.parametrize(("masked", "has_product"), [(AVX2, False), ({"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}, None)])
def test_the_processor_is_asked(masked: dict[str, str], has_product: bool | None) -> None:
    """With AVX2 alone there is no bfloat16 product; with AVX-512 there is one where this processor has AVX-512."""
    program = "from matryoshka.coder.kernels import cpu; print(cpu.has_bfloat16_product(), cpu.has_native_bfloat16())"
    run = subprocess.run([sys.executable, "-c", program], env=os.environ | masked, capture_output=True, text=True)
    product, native = run.stdout.split()
    if has_product is not None:
        assert product == str(has_product)
    assert product == "True" or native == "False", "no product is faster than one that is not there"
