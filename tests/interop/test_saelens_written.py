"""SAELens' files of ours: the same function there, and read back here."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file
from written_coders import close, inputs, ours, random_coder, saelens, saved

from matryoshka.coder.coder import SparseCoder
from matryoshka.errors import MatryoshkaError
from matryoshka.features.store import FeatureStore
from matryoshka.interop.exporting import export
from matryoshka.interop.importing import import_coder
from matryoshka.run import Run

TRAINED = ["sae", "topk sae", "jumprelu sae", "layer 1", "jumprelu skip transcoder"]


@pytest.mark.parametrize("kind", TRAINED)
def test_a_trained_coder_is_the_same_function_there_and_back(kind: str, kinds: dict[str, Run], tmp_path: Path) -> None:
    folder = export(kinds[kind], tmp_path / "out", "saelens")
    coder, back, x = SparseCoder.load(kinds[kind].path), import_coder(folder), inputs(192)
    close(saelens(folder, x), ours(coder, x), 1e-5)
    close(ours(back, x), ours(coder, x), 0)
    assert back.widths == coder.widths == (32, 96, 256)
    assert back.config.k == 6
    assert back.card is not None
    assert coder.card is not None
    assert (back.card.model.name, back.card.sources) == ("bundled", coder.card.sources)
    assert (back.card.context, back.card.prepend_bos) == (64, True)


@settings(max_examples=60)
@given(
    kind=st.sampled_from(["relu", "topk", "batchtopk", "jumprelu"]),
    transcodes=st.booleans(),
    skip=st.booleans(),
    prefix=st.sampled_from([None, 2, 5, 16]),
    seed=st.integers(0, 10_000),
)
def test_any_coder_comes_back(kind: str, transcodes: bool, skip: bool, prefix: int | None, seed: int) -> None:
    sites = {"read": "1.mlp_in", "write": "2.mlp_out", "d_out": 4} if transcodes else {"read": "1.resid_pre"}
    coder = random_coder(kind, **sites, skip=skip, seed=seed)
    with TemporaryDirectory() as parent:
        run = saved(coder, Path(parent) / "run")
        if kind == "topk" and (transcodes or skip or prefix in (2, 5)):
            with pytest.raises(MatryoshkaError, match="no TopK"):
                export(run, Path(parent) / "out", "saelens", prefix)
            assert not (Path(parent) / "out").exists()
            return
        folder = export(run, Path(parent) / "out", "saelens", prefix)
        back, want, x = import_coder(folder), coder if prefix is None else coder.prefix(prefix), inputs(6)
        if not ours(want, x)[0].any():
            return
        close(ours(back, x), ours(want, x))
        close(saelens(folder, x), ours(want, x))
        assert back.widths == want.widths


def test_every_prefix_of_the_file_is_a_prefix_of_ours(kinds: dict[str, Run], tmp_path: Path) -> None:
    coder, x = SparseCoder.load(kinds["sae"].path), inputs(192)
    back = import_coder(export(kinds["sae"], tmp_path / "out", "saelens"))
    with torch.no_grad():
        torch.testing.assert_close(back.decode(back.encode(x)), coder.decode(coder.encode(x)), rtol=0, atol=0)


def test_the_config_says_where_it_belongs(kinds: dict[str, Run], tmp_path: Path) -> None:
    folder = export(kinds["layer 2"], tmp_path / "out", "saelens")
    config = json.loads((folder / "cfg.json").read_text())
    metadata = config.pop("metadata")
    assert config == {
        "architecture": "jumprelu_transcoder",
        "d_in": 192,
        "d_out": 192,
        "d_sae": 256,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
    }
    dataset = metadata.pop("dataset_path")
    assert dataset
    assert isinstance(dataset, str)
    assert metadata == {
        "sae_lens_version": "6.54.12",
        "model_name": "bundled",
        "model_class_name": "HookedTransformer",
        "model_from_pretrained_kwargs": {
            "fold_ln": False,
            "center_writing_weights": False,
            "center_unembed": False,
        },
        "hook_name": "blocks.2.mlp.hook_in",
        "hook_name_out": "blocks.2.hook_mlp_out",
        "hook_head_index": None,
        "hook_head_index_out": None,
        "hf_hook_name": "transformer.h.2.ln_2.output",
        "hf_hook_name_out": "transformer.h.2.mlp.output",
        "context_size": 64,
        "prepend_bos": True,
        "training_architecture": "matryoshka_batchtopk",
        "training_architecture_details": {"k": 6, "matryoshka_widths": [32, 96, 256]},
    }


def test_models_have_their_short_names_and_need_not_be_at_hand(tmp_path: Path) -> None:
    run = saved(random_coder("relu", model="openai-community/gpt2"), tmp_path / "run")
    metadata = json.loads((export(run, tmp_path / "out", "saelens") / "cfg.json").read_text())["metadata"]
    assert metadata["model_name"] == "gpt2-small"
    assert metadata["hook_name"] == "blocks.1.hook_resid_post"
    assert "dataset_path" in metadata  # nobody knows it
    assert metadata["dataset_path"] is None


def test_firing_frequencies_come_from_the_features(featured: Run, tmp_path: Path) -> None:
    densities = np.array(FeatureStore(featured.features_file).columns()["density"])
    whole = load_file(export(featured, tmp_path / "out", "saelens") / "sparsity.safetensors")
    assert whole.keys() == {"sparsity"}
    assert (whole["sparsity"] <= 0).all()
    np.testing.assert_allclose(10.0 ** whole["sparsity"], densities, atol=1e-6)
    assert densities.max() > 0.01
    inner = load_file(export(featured, tmp_path / "inner", "saelens", 96) / "sparsity.safetensors")
    np.testing.assert_array_equal(inner["sparsity"], whole["sparsity"][:96])


def test_features_of_another_coder_are_refused(featured: Run, kinds: dict[str, Run], tmp_path: Path) -> None:
    run = saved(SparseCoder.load(kinds["layer 1"].path), tmp_path / "run")
    run.features_file.write_bytes(featured.features_file.read_bytes())
    with pytest.raises(MatryoshkaError, match="not the one whose features were collected"):
        export(run, tmp_path / "out", "saelens")
    assert not (tmp_path / "out").exists()


def test_several_coders_are_called_by_their_hooks(kinds: dict[str, Run], tmp_path: Path) -> None:
    runs = [kinds["layer 0"], kinds["layer 3"], kinds["sae"]]
    folder = export(runs, tmp_path / "out", "saelens")
    names = {"blocks.0.mlp.hook_in", "blocks.3.mlp.hook_in", "blocks.2.hook_resid_post"}
    assert {file.name for file in folder.iterdir()} == names
    x = inputs(192)
    for run, name in zip(
        runs, ["blocks.0.mlp.hook_in", "blocks.3.mlp.hook_in", "blocks.2.hook_resid_post"], strict=True
    ):
        close(saelens(folder / name, x), ours(SparseCoder.load(run.path), x), 1e-5)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("topk transcoder", "SAELens has no TopK transcoder.*nearest: --format sparsify"),
        ("topk skip transcoder", "SAELens has no TopK transcoder"),
        ("attention", r"1\.attn_in has no hook in TransformerLens"),
        ("crosscoder", r"a crosscoder \(1\.mlp_in \+ 2\.mlp_in → 1\.mlp_out \+ 2\.mlp_out\)"),
    ],
)
def test_what_it_cannot_hold_is_refused(kind: str, said: str, kinds: dict[str, Run], tmp_path: Path) -> None:
    with pytest.raises(MatryoshkaError, match=said):
        export(kinds[kind], tmp_path / "new" / "out", "saelens")
    assert not (tmp_path / "new").exists()


def test_a_coder_that_was_never_trained_is_refused(tmp_path: Path) -> None:
    coder = random_coder("batchtopk")
    coder.activation.threshold.zero_()
    run = saved(coder, tmp_path / "run")
    with pytest.raises(MatryoshkaError, match="the threshold of its BatchTopK is 0, so it was never trained"):
        export(run, tmp_path / "out", "saelens")
    assert {path.name for path in tmp_path.iterdir()} == {"run"}
