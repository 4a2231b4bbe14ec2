"""Edges at which sparse coders have failed in silence: damaged folders, empty batches, low precision, large means."""

import json

import pytest
import torch

from matryoshka.coder.architecture import CoderConfig
from matryoshka.coder.coder import SparseCoder
from matryoshka.coder.latents import from_mask
from matryoshka.coder.metrics import Meter
from matryoshka.coder.nonlinearity import BatchTopK, JumpReLU
from matryoshka.errors import MatryoshkaError

BASE = {"reads": (5,), "writes": (3,), "d_sae": 16, "widths": (4, 16), "activation": {"kind": "batchtopk", "k": 3}}


def make(activation="batchtopk", **changes):
    return SparseCoder(CoderConfig(**BASE | {"activation": {"kind": activation, "k": 3}} | changes)).initialise(
        0, False
    )


def edited(folder, **changes):
    make().save(folder)
    content = json.loads((folder / "config.json").read_text())
    content["coder"] |= changes
    (folder / "config.json").write_text(json.dumps(content))


def test_a_json_list_is_no_config(tmp_path):
    make().save(tmp_path / "c")
    (tmp_path / "c" / "config.json").write_text("[1]")
    with pytest.raises(MatryoshkaError, match=r"config\.json"):
        SparseCoder.load(tmp_path / "c")


@pytest.mark.parametrize(
    "changes",
    [
        {"reads": [-1]},
        {"reads": []},
        {"reads": 5},
        {"writes": [3, 0]},
        {"widths": [16, 4]},
        {"widths": [4]},
        {"widths": []},
        {"activation": {"kind": "topk", "k": 0}},
        {"activation": {"kind": "topk", "k": 99}},
        {"activation": {"kind": "topk"}},
        {"activation": {"kind": "topk", "k": 3, "bandwidth": 0.1}},
        {"activation": {"kind": "relu", "k": 3}},
        {"activation": {"kind": "jumprelu", "k": 3, "bandwidth": 0.0}},
        {"activation": {"k": 3}},
        {"activation": "topk"},
    ],
)
def test_impossible_config_values_are_refused_on_load(tmp_path, changes):
    edited(tmp_path / "c", **changes)
    with pytest.raises(MatryoshkaError, match=r"config\.json"):
        SparseCoder.load(tmp_path / "c")


@pytest.mark.parametrize("card", [5, ["ab"], {}])
def test_something_other_than_a_card_is_refused_on_load(tmp_path, card):
    make().save(tmp_path / "c")
    content = json.loads((tmp_path / "c" / "config.json").read_text()) | {"card": card}
    (tmp_path / "c" / "config.json").write_text(json.dumps(content))
    with pytest.raises(MatryoshkaError, match=r"config\.json: card"):
        SparseCoder.load(tmp_path / "c")


def test_saving_over_a_run_does_not_delete_the_run(tmp_path):
    run = tmp_path / "run"
    make().save(run / "coder")
    (run / "checkpoints").mkdir()
    with pytest.raises(MatryoshkaError):
        SparseCoder.load(run).save(run)
    assert (run / "checkpoints").is_dir()


def test_the_first_latents_alone_can_be_decoded():
    coder = make().eval()
    latents = coder.encode(torch.randn(7, 5))
    assert torch.allclose(coder.decode(latents, widths=(4,)), coder.decode(latents)[:1])


@pytest.mark.parametrize("widths", [(16, 4), (4, 4), (0,), (17,)])
def test_widths_that_do_not_fit_are_refused_by_decode(widths):
    coder = make().eval()
    with pytest.raises(MatryoshkaError, match="ascend strictly"):
        coder.decode(coder.encode(torch.randn(2, 5)), widths=widths)


@pytest.mark.parametrize("activation", ["topk", "batchtopk", "jumprelu"])
def test_no_rows_decode_to_no_rows(activation):
    coder = make(activation=activation).eval()
    assert coder.decode(coder.encode(torch.zeros(0, 5))).shape == (2, 0, 3)


def test_an_empty_batch_changes_no_measure():
    config = CoderConfig(reads=(2,), writes=(2,), d_sae=4, widths=(4,), activation={"kind": "relu"})
    meter, y = Meter(config), torch.tensor([[0.0, 1.0], [2.0, 3.0]])
    meter.update(y, y[None] * 0.5, from_mask(torch.ones(2, 4), torch.arange(8)))
    before = meter.fvu()
    meter.update(y[:0], y[None, :0], from_mask(torch.ones(0, 4), torch.arange(0)))
    assert meter.fvu() == before


def test_the_threshold_stays_float32_in_a_bfloat16_coder():
    assert BatchTopK(3).bfloat16().threshold.dtype == torch.float32


def test_jumprelu_calibrates_to_k_even_with_a_large_mean():
    x = torch.randn(500, 5, generator=torch.Generator().manual_seed(0)) + 100
    coder = make(activation="jumprelu", writes=(5,)).calibrate(x, x.mean(0)).eval()
    assert len(coder.encode(x).values) / 500 == pytest.approx(3, abs=0.1)


def test_jumprelu_calibrates_without_a_positive_entry():
    JumpReLU(3, 8, 0.1).calibrate(-torch.ones(4, 8))


def test_jumprelu_thresholds_below_half_a_bandwidth_learn_from_both_sides():
    activation = JumpReLU(k=1, d_sae=1, bandwidth=0.4)
    with torch.no_grad():
        activation.log_growth.fill_(0.1).log_()  # θ = 0.1, so z = −0.05 lies within ε/2
    activation(torch.tensor([[-0.05]])).dense().sum().backward()
    assert activation.log_growth.grad.item() == pytest.approx(-0.1 / 0.4 * 0.1)
