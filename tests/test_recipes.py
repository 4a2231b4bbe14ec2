"""Every recipe in the repository can be run: its configuration resolves and its shapes fit its language model."""

import json
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch

from matryoshka.cli import main
from matryoshka.coder.coder import SparseCoder
from matryoshka.training.plan import check, resolve
from matryoshka.training.preview import needed, upstream
from matryoshka.training.recipe import Config

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))

GEMMA_2 = {
    "model_type": "gemma2", "architectures": ["Gemma2ForCausalLM"], "vocab_size": 256_000, "dtype": "bfloat16",
    "max_position_embeddings": 8192,
}  # fmt: skip
CONFIGS = {
    "openai-community/gpt2": {"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12},
    "openai-community/gpt2-medium": {"model_type": "gpt2", "n_embd": 1024, "n_layer": 24, "n_head": 16},
    "google/gemma-2-2b": {
        **GEMMA_2, "hidden_size": 2304, "num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4,
        "head_dim": 256, "intermediate_size": 9216,
    },
    "google/gemma-2-9b": {
        **GEMMA_2, "hidden_size": 3584, "num_hidden_layers": 42, "num_attention_heads": 16, "num_key_value_heads": 8,
        "head_dim": 256, "intermediate_size": 14336,
    },
    "google/gemma-2-27b": {
        **GEMMA_2, "hidden_size": 4608, "num_hidden_layers": 46, "num_attention_heads": 32, "num_key_value_heads": 16,
        "head_dim": 128, "intermediate_size": 36864,
    },
    "HuggingFaceTB/SmolLM2-135M-Instruct": {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 49_152, "hidden_size": 576,
        "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "intermediate_size": 1536,
        "max_position_embeddings": 8192, "tie_word_embeddings": True,
    },
}  # fmt: skip
"""The published configurations of these models, as far as shapes depend on them."""
PARAMETERS = {
    "openai-community/gpt2": 124e6,
    "openai-community/gpt2-medium": 355e6,
    "google/gemma-2-2b": 2.61e9,
    "google/gemma-2-9b": 9.24e9,
    "google/gemma-2-27b": 27.2e9,
    "HuggingFaceTB/SmolLM2-135M-Instruct": 134.5e6,
}


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub cache that holds these configurations and nothing else, as a download would have left it."""
    for name, values in CONFIGS.items():
        folder = tmp_path / f"models--{name.replace('/', '--')}"
        snapshot = folder / "snapshots" / ("c" * 40)
        snapshot.mkdir(parents=True)
        (snapshot / "config.json").write_text(json.dumps(values))
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text("c" * 40)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def test_the_reference_experiments_are_all_there() -> None:
    models = {Config.load(recipe).model.name for recipe in RECIPES}
    assert models == {*CONFIGS, "bundled"}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_a_recipe_builds_on_the_meta_device(recipe: Path) -> None:
    config = Config.load(recipe)
    info, plans = check(config)
    for plan in plans:
        width = info.check(plan.wiring.reads[0])
        assert (plan.coder.d_in, plan.coder.d_out) == (width, width)
        with torch.device("meta"):
            coder = SparseCoder(plan.coder)
        assert coder.W_enc.shape == (width, plan.section.d_sae)
        assert coder.config.widths[-1] == plan.section.d_sae
    if config.model.name == "bundled":
        return
    resolved = resolve(config, info, plans)
    assert resolved.model.revision == "c" * 40, "pinned"
    if config.text.source != "bundled":
        assert resolved.text.limit is not None
        assert resolved.text.limit >= config.training.tokens, "the hub is read no further than needed, but as far"


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_its_memory_is_stated_from_shapes(recipe: Path) -> None:
    config = Config.load(recipe)
    info, plans = check(config)
    items = {item.name: item for item in needed(config, info, plans, upstream(config, info, plans))}
    if config.model.name in PARAMETERS:
        parameters = items["language model"].bytes / (2 if config.model.dtype == "bfloat16" else 4)  # on a CPU
        assert parameters == pytest.approx(PARAMETERS[config.model.name], rel=0.01)
    assert items["optimiser"].bytes == 2 * items["coders"].bytes


def test_a_dry_run_prints_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as exit_:
        main(["train", str(ROOT / "recipes" / "bundled-transcoder.yaml"), "--dry-run"])
    assert exit_.value.code == 0
    shown = capsys.readouterr().out
    for word in ("language model", "coders", "optimiser", "activations", "step buffers", "in all"):
        assert word in shown
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(("name", "content"), [("empty.jsonl", b""), ("binary.jsonl", bytes(range(256)))])
def test_a_dry_run_reads_the_first_documents(
    name: str, content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SystemExit) as exit_:
        main(["train", "--read", "1.mlp_in", "--d-sae", "64", "--text", str(tmp_path / name), "--dry-run"])
    assert exit_.value.code == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert name in shown.err


def test_a_dry_run_refuses_a_data_set_that_cannot_be_reached(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["train", str(ROOT / "recipes" / "gemma-2-2b-transcoders.yaml"), "--dry-run"])
    assert exit_.value.code == 2
    assert "not readable on the hub" in capsys.readouterr().err
