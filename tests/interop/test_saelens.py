"""SAELens: options that no golden has."""

import json
from pathlib import Path

import numpy as np
import pytest
from foreign_files import GOLDEN, D, F, compare, draw, inputs, numbers
from safetensors.numpy import load_file, save_file

from matryoshka.errors import MatryoshkaError
from matryoshka.interop.importing import foreign_coders, import_coder


def write(folder: Path, tensors: dict[str, np.ndarray], **config: object) -> Path:
    fields = {"d_in": D, "d_sae": F, "apply_b_dec_to_input": False, "metadata": {"sae_lens_version": "6.0.0"}}
    folder.mkdir(exist_ok=True)
    (folder / "cfg.json").write_text(json.dumps({**fields, **config}))
    save_file(tensors, folder / "sae_weights.safetensors")
    return folder


def tensors(d_out: int = D) -> dict[str, np.ndarray]:
    b_enc, b_dec = draw(F, seed=2) * 0.3, draw(d_out, seed=4) * 0.5
    return {"W_enc": draw(D, F, seed=1), "b_enc": b_enc, "W_dec": draw(F, d_out, seed=3), "b_dec": b_dec}


@pytest.mark.parametrize("jumps", [False, True])
@pytest.mark.parametrize("skips", [False, True])
def test_transcoders(tmp_path: Path, jumps: bool, skips: bool) -> None:
    t, x = tensors(d_out=4), inputs()
    if jumps:
        t["threshold"] = np.abs(draw(F, seed=5))
    if skips:
        t["W_skip"] = draw(4, D, seed=6)
    name = f"{'jumprelu_' if jumps else ''}{'skip_' if skips else ''}transcoder"
    pre = x @ t["W_enc"] + t["b_enc"]
    latents = np.maximum(pre, 0) * (pre > t.get("threshold", 0))
    out = latents @ t["W_dec"] + t["b_dec"] + (x @ t["W_skip"].T if skips else 0)
    compare(import_coder(write(tmp_path, t, architecture=name, d_out=4)), x, latents, out)


def test_a_checkpoint_of_a_jumprelu_in_training(tmp_path: Path) -> None:
    t, x = tensors(), inputs()
    t["log_threshold"] = draw(F, seed=5)
    pre = x @ t["W_enc"] + t["b_enc"]
    latents = np.maximum(pre, 0) * (pre > np.exp(t["log_threshold"]))
    coder = import_coder(write(tmp_path, t, architecture="jumprelu"))
    compare(coder, x, latents, latents @ t["W_dec"] + t["b_dec"])


@pytest.mark.parametrize("subtracts", [False, True])
def test_a_gated_coder_is_open_where_both_of_its_parts_are(tmp_path: Path, subtracts: bool) -> None:
    t, x = tensors(), inputs()
    t["b_mag"], t["b_gate"], t["r_mag"] = t.pop("b_enc"), draw(F, seed=5) * 0.3, draw(F, seed=6) * 0.4
    u = x - t["b_dec"] * subtracts
    gate, magnitude = u @ t["W_enc"] + t["b_gate"], u @ t["W_enc"] * np.exp(t["r_mag"]) + t["b_mag"]
    latents = (gate > 0) * np.maximum(magnitude, 0)
    coder = import_coder(write(tmp_path, t, architecture="gated", apply_b_dec_to_input=subtracts))
    compare(coder, x, latents, latents @ t["W_dec"] + t["b_dec"])


@pytest.mark.parametrize("ranks_by_norm", [False, True])
def test_topk_of_decoder_norms_or_not(tmp_path: Path, ranks_by_norm: bool) -> None:
    t, x = tensors(), inputs()
    norms = np.linalg.norm(t["W_dec"], axis=1) if ranks_by_norm else np.ones(F, np.float32)
    pre = (x @ t["W_enc"] + t["b_enc"]) * norms
    latents = np.maximum(pre, 0) * (pre >= np.sort(pre, axis=1)[:, -3][:, None])
    folder = write(tmp_path, t, architecture="topk", k=3, rescale_acts_by_decoder_norm=ranks_by_norm)
    compare(import_coder(folder), x, latents, (latents / norms) @ t["W_dec"] + t["b_dec"])


def test_a_config_of_before_6(tmp_path: Path) -> None:
    """It names neither architecture nor what is subtracted: b_dec is."""
    old = {"model_name": "gpt2-small", "hook_point": "blocks.8.hook_resid_pre", "context_size": 128, "d_in": 16}
    old |= {"d_sae": 64, "dtype": "torch.float32", "dead_feature_threshold": 1e-08, "is_dataset_tokenized": False}
    t, theirs = load_file(GOLDEN / "saelens/standard/sae_weights.safetensors"), numbers(GOLDEN / "saelens/standard")
    save_file(t, tmp_path / "sae_weights.safetensors")
    (tmp_path / "cfg.json").write_text(json.dumps(old))
    (foreign,) = foreign_coders(tmp_path)
    compare(foreign.coder, theirs["x"], theirs["latents"], theirs["out"])
    assert foreign.facts.model == "openai-community/gpt2"
    assert (str(foreign.facts.read), foreign.facts.context) == ("8.resid_pre", 128)
    assert foreign.origin == "sae-lens before 6.0"


def test_heads_outputs_are_no_site(tmp_path: Path) -> None:
    folder = write(tmp_path, tensors(), architecture="standard", reshape_activations="hook_z")
    with pytest.raises(MatryoshkaError, match=r"cfg.json: reshape_activations is 'hook_z'.*heads"):
        import_coder(folder)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"architecture": "topk", "k": F + 1}, "k is 17: expected a whole number from 1 to 16"),
        ({"architecture": "topk", "k": 2**40}, "expected a whole number from 1 to 16"),
        ({"architecture": "topk", "k": 0}, "k is 0: expected"),
        ({"matryoshka_widths": [8, 4, F]}, "matryoshka_widths [8, 4, 16] do not ascend"),
        ({"matryoshka_widths": [0.5, 1.0]}, "matryoshka_widths is a list: expected whole numbers"),
        ({"d_sae": F + 1}, "W_enc has shape [6, 16], expected [6, 17]"),
        ({"metadata": {"context_size": 0}}, "context_size is 0: expected"),
        ({"metadata": [1]}, "metadata is a list: expected Mapping"),
        ({"normalize_activations": ["none"]}, "normalize_activations is a list"),
    ],
)
def test_a_config_that_lies(tmp_path: Path, config: dict[str, object], said: str) -> None:
    with pytest.raises(MatryoshkaError) as refused:
        import_coder(write(tmp_path, tensors(), **config))
    assert str(tmp_path) in str(refused.value)
    assert said in str(refused.value)
