"""Which precision selects, on the processor or GPU that this is."""

import logging

import pytest
import torch

from matryoshka.coder.architecture import CoderConfig
from matryoshka.coder.coder import SparseCoder
from matryoshka.coder.kernels import cpu
from matryoshka.data.stream import Batch
from matryoshka.lm.sites import Site, Wiring
from matryoshka.training import precision
from matryoshka.training.plan import Plan
from matryoshka.training.recipe import CoderSection, TrainingSection
from matryoshka.training.trainee import Trainee

SITE = Site.parse("0.mlp_out")
GPU = torch.device("cuda")


def trainee(select: str) -> Trainee:
    section = CoderSection(read=str(SITE), d_sae=64, k=4)
    config = CoderConfig(reads=(16,), writes=(16,), d_sae=64, widths=(16, 64), activation={"kind": "batchtopk", "k": 4})
    coder = SparseCoder(config).initialise(0, tied=True)
    plan = Plan("coder", section, Wiring.of([SITE], [SITE]), config)
    return Trainee(plan, coder, TrainingSection(select=select), 10)


def test_bfloat16_is_taken_where_the_processor_has_it_and_float32_with_one_line_elsewhere(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, "matryoshka"):
        low = trainee("bfloat16")
    has = cpu.has_bfloat16_product()
    assert low.coder.precision == ("bfloat16" if has else "float32")
    assert low.autocast._enabled == has, "the other dense products follow"
    assert [record.message for record in caplog.records] == (
        [] if has else ["training.select bfloat16: this processor has no such product; float32 is used"]
    )
    batch = Batch({SITE: torch.randn(32, 16, generator=torch.Generator().manual_seed(0))}, torch.arange(32))
    low.step(batch, 0, measure=True)
    assert low.bad_step.item() < 0
    assert low.report(1)["short"] >= 0


def test_auto_takes_bfloat16_where_it_is_the_faster_one() -> None:
    assert trainee("auto").coder.precision == ("bfloat16" if cpu.has_native_bfloat16() else "float32")
    exact = trainee("float32")
    assert exact.coder.precision == "float32"
    assert not exact.autocast._enabled


@pytest.mark.parametrize(
    ("capability", "d_sae", "chosen"),
    [((9, 0), 65_536, "fp8"), ((8, 9), 65_536, "fp8"), ((8, 0), 65_536, "bfloat16"), ((9, 0), 4096, "bfloat16"),
     ((9, 0), 65_537, "bfloat16")],
)  # fmt: skip
def test_auto_takes_fp8_for_large_products_of_gpus_that_have_it(
    capability: tuple[int, int], d_sae: int, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "has_triton", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert precision.choose("auto", 2304, d_sae, GPU) == chosen


@pytest.mark.parametrize(
    ("device", "capability", "d_in", "triton", "line"),
    [(GPU, (9, 0), 2304, True, None),
     (GPU, (8, 0), 2304, True, "training.select fp8: cuda has no such product; bfloat16 is used"),
     (GPU, (9, 0), 2300, True,
      "training.select fp8: it takes multiples of 16, not 2300 activations and 65536 latents; bfloat16 is used"),
     (GPU, (9, 0), 2304, False, "training.select fp8: it takes Triton; bfloat16 is used"),
     (torch.device("cpu"), (9, 0), 2304, True, "training.select fp8: cpu has no such product; bfloat16 is used")],
)  # fmt: skip
def test_fp8_is_replaced_with_one_line_that_says_why(
    device: torch.device,
    capability: tuple[int, int],
    d_in: int,
    triton: bool,
    line: str | None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(precision, "has_triton", lambda: triton)
    monkeypatch.setattr(precision, "has_bfloat16_product", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    with caplog.at_level(logging.WARNING, "matryoshka"):
        chosen = precision.choose("fp8", d_in, 65_536, device)
    assert chosen == ("bfloat16" if line else "fp8")
    assert [record.message for record in caplog.records] == ([line] if line else [])
