"""What a run takes where nothing is said: rules of its length, numbers before anything starts."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from matryoshka import api
from matryoshka.lm.info import describe, shape
from matryoshka.training import automatic, supply
from matryoshka.training.plan import check, resolve
from matryoshka.training.preview import preview
from matryoshka.training.recipe import Config

CODER = {"read": "2.resid_post", "d_sae": 3072, "k": 24}


def build(lm_batch: int | str = "auto", **training: Any) -> Config:
    return Config.build({"coder": CODER, "training": training, "activations": {"lm_batch": lm_batch}})


@pytest.mark.parametrize(("tokens", "batch"), [(1, 128), (60_000, 128), (250_000, 256), (10**6, 512), (10**10, 4096)])
def test_batches_grow_as_the_root_of_the_tokens(tokens: int, batch: int) -> None:
    assert automatic.batch(tokens) == build(tokens=tokens).training.batch == batch


def test_the_rate_falls_with_width_and_steps_and_rises_with_the_batch() -> None:
    rate = automatic.learning_rate(256, 256, 900)
    assert rate == pytest.approx(2 * 4 / (64 * 30), rel=0.02)
    assert automatic.learning_rate(16 * 256, 256, 900) == pytest.approx(rate / 8, rel=0.05)
    assert automatic.learning_rate(256, 16 * 256, 900) == pytest.approx(2 * rate, rel=0.05)
    assert automatic.learning_rate(256, 256, 4 * 900) == pytest.approx(rate / 2, rel=0.05)
    assert automatic.learning_rate(256, 256, 1) == automatic.learning_rate(256, 256, automatic.LEAST_STEPS)


@given(st.integers(2, 2**15), st.integers(1, 2**24), st.integers(-(2**36), 2**40))
def test_a_forward_pass_fits_its_share_of_a_gpu_and_is_no_smaller_than_it_need_be(
    context: int, a: int, left: int
) -> None:
    windows = automatic.gpu_windows(context, a, left)
    assert windows.bit_count() == 1, "a power of two"
    if windows > 1:
        assert windows * context <= automatic.GPU_TOKENS
        assert windows * context * a * automatic.FORWARD_SHARE <= left
    assert 2 * windows * context > automatic.GPU_TOKENS or 2 * windows * context * a * automatic.FORWARD_SHARE > left


@pytest.mark.parametrize(("gigabytes", "windows"), [(80, 512), (0.5, 64), (0.05, 4), (0.001, 1)])
def test_windows_in_a_forward_pass_go_by_the_memory_of_a_gpu(
    gigabytes: float, windows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supply, "resolve_device", lambda name: torch.device("cuda:0"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(gigabytes * 1e9), 80_000_000_000))
    config = build()
    info, plans = check(config)
    assert resolve(config, info, plans).activations.lm_batch == windows
    assert resolve(build(lm_batch=24), info, plans).activations.lm_batch == 24


def test_only_attention_that_holds_its_scores_makes_long_windows_cost_more() -> None:
    bundled = shape(describe("bundled"))
    assert bundled.bytes_a_token(128, 2) == bundled.bytes_a_token(4096, 2)
    eager = bundled._replace(scores=True)
    assert eager.bytes_a_token(4096, 2) - eager.bytes_a_token(128, 2) == 2 * 4 * eager.n_heads * (4096 - 128)


def test_what_is_set_stays_and_auto_is_nothing_set() -> None:
    spelt = build(tokens=10**6, batch="auto", lr="auto", dead_after_tokens="auto")
    assert spelt == build(tokens=10**6)
    assert spelt.training.dead_after_tokens == 15_625
    section = build(tokens=10**6, batch=64, lr=0.5, dead_after_tokens=7).training
    assert (section.batch, section.lr, section.dead_after_tokens) == (64, 0.5, 7)


def test_a_resolved_configuration_has_numbers_and_keeps_them() -> None:
    config = build(tokens=10**6)
    info, plans = check(config)
    resolved = resolve(config, info, plans)
    assert resolved.training.lr == automatic.learning_rate(info.d_model, 512, config.steps)
    saved = yaml.safe_load(resolved.to_yaml())["training"]
    assert {name: saved[name] for name in ("batch", "lr", "dead_after_tokens")} == {
        "batch": 512,
        "lr": resolved.training.lr,
        "dead_after_tokens": 15_625,
    }
    assert yaml.safe_load(resolved.to_yaml())["activations"]["lm_batch"] == automatic.CPU_WINDOWS
    assert resolve(resolved, info, plans) == resolved
    forward = next(item for item in preview(config).memory if item.name == "its forward pass")
    assert forward.detail.startswith(f"{automatic.CPU_WINDOWS} windows, 2,048 tokens")


def test_a_coder_that_ends_worse_than_the_mean_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = Config.build(
        {
            "text": {"context": 64},
            "coder": {"read": "1.mlp_in", "write": "1.mlp_out", "d_sae": 64, "k": 4},
            "training": {"tokens": 2048, "lr": 30.0},
            "evaluation": {"tokens": 1024},
        }
    )
    with caplog.at_level(logging.WARNING, "matryoshka"):
        run = api.train(config, tmp_path / "run")
    assert api.results(run).values("FVU")[-1] > 1
    [line] = [record.message for record in caplog.records if "FVU" in record.message]
    assert "the mean alone would do better" in line
    assert "another learning rate than 30" in line
