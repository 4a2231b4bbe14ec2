"""Which precision selects, on the processor that this is."""

import logging

import pytest
import torch

from matryoshka.coder.architecture import CoderConfig
from matryoshka.coder.coder import SparseCoder
from matryoshka.coder.kernels import cpu
from matryoshka.data.stream import Batch
from matryoshka.lm.sites import Site, Wiring
from matryoshka.training.plan import Plan
from matryoshka.training.recipe import CoderSection, TrainingSection
from matryoshka.training.trainee import Trainee

SITE = Site.parse("0.mlp_out")


def trainee(autocast: str) -> Trainee:
    section = CoderSection(read=str(SITE), d_sae=64, k=4)
    config = CoderConfig(reads=(16,), writes=(16,), d_sae=64, widths=(16, 64), activation={"kind": "batchtopk", "k": 4})
    coder = SparseCoder(config).initialise(0, tied=True)
    plan = Plan("coder", section, Wiring.of([SITE], [SITE]), config)
    return Trainee(plan, coder, TrainingSection(autocast=autocast), 10)


def test_bfloat16_is_taken_where_the_processor_has_it_and_float32_with_one_line_elsewhere(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, "matryoshka"):
        low = trainee("bfloat16")
    has = cpu.has_bfloat16_product()
    assert low.autocast._enabled == has
    assert [record.message for record in caplog.records] == (
        [] if has else ["training.autocast bfloat16: this processor has no such product; float32 is used"]
    )
    batch = Batch({SITE: torch.randn(32, 16, generator=torch.Generator().manual_seed(0))}, torch.arange(32))
    low.step(batch, 0, measure=True)
    assert low.bad_step.item() < 0


def test_auto_takes_bfloat16_where_it_is_the_faster_one() -> None:
    assert trainee("auto").autocast._enabled == cpu.has_native_bfloat16()
    assert not trainee("off").autocast._enabled
