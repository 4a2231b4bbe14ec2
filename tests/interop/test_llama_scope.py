"""Llama Scope: OpenMOSS' coders as it stored them in 2024."""

import json
from pathlib import Path

import numpy as np
import pytest
from foreign_files import D, F, compare, draw, inputs, top
from safetensors.numpy import save_file

from matryoshka.errors import MatryoshkaError
from matryoshka.interop.importing import foreign_coders, import_coder

NAME = "Llama3_1-8B-Base-L8R-8x"
CONFIG = {
    **{
        "hook_point_in": "blocks.8.hook_resid_post",
        "hook_point_out": "blocks.8.hook_resid_post",
        "use_decoder_bias": True,
    },
    **{"d_model": D, "d_sae": F, "act_fn": "jumprelu", "jump_relu_threshold": 0.7, "norm_activation": "dataset-wise"},
    **{"dataset_average_activation_norm": {"in": 9.0, "out": 3.0}, "sparsity_include_decoder_norm": True, "top_k": 4},
    **{"apply_decoder_bias_to_pre_encoder": False, "use_glu_encoder": False},
}


def write(folder: Path, **config: object) -> dict[str, np.ndarray]:
    t = {"encoder.weight": draw(F, D, seed=1), "encoder.bias": draw(F, seed=2), "decoder.weight": draw(D, F, seed=3)}
    t["decoder.bias"] = draw(D, seed=4)
    (folder / "checkpoints").mkdir(parents=True)
    save_file(t, folder / "checkpoints" / "final.safetensors")
    (folder / "hyperparams.json").write_text(json.dumps({**CONFIG, **config}))
    return t


@pytest.mark.parametrize("normalises", ["dataset-wise", "inference"])
@pytest.mark.parametrize("by_norm", [False, True])
@pytest.mark.parametrize("activation", [("jumprelu", 0.7), ("topk", 0.7), ("topk", 0.0), ("relu", 0.0)])
def test_every_combination(tmp_path: Path, activation: tuple[str, float], by_norm: bool, normalises: str) -> None:
    """Trained, a TopK with a threshold is a JumpReLU. The threshold is one of latents in raw units."""
    (name, threshold), x = activation, inputs()
    options = {"sparsity_include_decoder_norm": by_norm, "norm_activation": normalises}
    t = write(tmp_path, act_fn=name, jump_relu_threshold=threshold, **options)
    into, out = (D**0.5 / norm if normalises == "dataset-wise" else 1.0 for norm in (9.0, 3.0))
    W_dec = t["decoder.weight"].T * into / out
    norms = np.linalg.norm(W_dec, axis=1) if by_norm else np.ones(F)
    pre = (x @ t["encoder.weight"].T + t["encoder.bias"] / into) * norms
    latents = top(pre, 4) if activation == ("topk", 0.0) else np.maximum(pre, 0) * (pre > threshold)
    y = latents @ (W_dec / norms[:, None]) + t["decoder.bias"] / out
    compare(import_coder(tmp_path), x, latents, y)


@pytest.mark.parametrize("given", ["", "checkpoints", "checkpoints/final.safetensors", "hyperparams.json"])
def test_facts(tmp_path: Path, given: str) -> None:
    write(tmp_path / NAME)
    (foreign,) = foreign_coders(tmp_path / NAME / given)
    assert (foreign.facts.model, str(foreign.facts.read)) == ("meta-llama/Llama-3.1-8B", "8.resid_post")
    assert foreign.facts.write is None


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"jump_relu_threshold": -1}, "jump_relu_threshold is -1: expected a positive number"),
        ({"jump_relu_threshold": None}, "jump_relu_threshold is None: expected a positive number"),
        ({"dataset_average_activation_norm": None}, "in is None: expected a positive number"),
        ({"norm_activation": "token-wise"}, "norm_activation is 'token-wise'"),
        ({"apply_decoder_bias_to_pre_encoder": True}, "apply_decoder_bias_to_pre_encoder is True"),
        ({"use_glu_encoder": True}, "use_glu_encoder is True"),
        ({"act_fn": "batchtopk"}, "act_fn is 'batchtopk'"),
        ({"d_sae": 2 * F}, "encoder.weight has shape [16, 6], expected [32, 6]"),
    ],
)
def test_what_is_not_read(tmp_path: Path, config: dict[str, object], said: str) -> None:
    write(tmp_path, **config)
    with pytest.raises(MatryoshkaError) as refused:
        import_coder(tmp_path)
    assert str(tmp_path) in str(refused.value)
    assert said in str(refused.value)
