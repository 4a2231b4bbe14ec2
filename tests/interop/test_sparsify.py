"""sparsify: options that no golden has, and what the names of folders say."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from foreign_files import D, F, compare, draw, inputs, top
from safetensors.torch import save_file

from matryoshka.errors import MatryoshkaError
from matryoshka.interop.importing import foreign_coders, import_coder
from matryoshka.lm.sites import Site

K = 4


def write(
    folder: Path, skips: bool = False, dtype: torch.dtype = torch.float32, **config: object
) -> dict[str, np.ndarray]:
    """The file's tensors, as they are stored."""
    t = {"encoder.weight": draw(F, D, seed=1), "encoder.bias": draw(F, seed=2), "W_dec": draw(F, D, seed=3)}
    t["b_dec"] = draw(D, seed=4)
    if skips:
        t["W_skip"] = draw(D, D, seed=5)
    stored = {name: torch.from_numpy(array).to(dtype) for name, array in t.items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(stored, folder / "sae.safetensors")
    fields = {"expansion_factor": 32, "normalize_decoder": True, "num_latents": F, "k": K, "d_in": D, **config}
    (folder / "cfg.json").write_text(json.dumps({name: value for name, value in fields.items() if value is not None}))
    return {name: tensor.float().numpy() for name, tensor in stored.items()}


def theirs(t: dict[str, np.ndarray], x: np.ndarray, transcodes: bool) -> tuple[np.ndarray, np.ndarray]:
    """What it computes: latents and output."""
    pre = np.maximum((x if transcodes else x - t["b_dec"]) @ t["encoder.weight"].T + t["encoder.bias"], 0)
    latents = top(pre, K)
    out = latents @ t["W_dec"] + t["b_dec"]
    return latents, out + x @ t["W_skip"].T if "W_skip" in t else out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("skips", [False, True])
@pytest.mark.parametrize("transcodes", [False, True])
def test_every_combination(tmp_path: Path, transcodes: bool, skips: bool, dtype: torch.dtype) -> None:
    options = {"activation": "topk", "multi_topk": True, "skip_connection": skips, "transcode": transcodes}
    t, x = write(tmp_path, skips, dtype, **options), inputs()
    compare(import_coder(tmp_path), x, *theirs(t, x, transcodes))


@pytest.mark.parametrize("latents", [0, None])
def test_no_number_of_latents_is_so_many_times_d_in(tmp_path: Path, latents: int | None) -> None:
    t, x = write(tmp_path, num_latents=latents, expansion_factor=2), inputs()
    with pytest.raises(MatryoshkaError, match=r"encoder.weight has shape \[16, 6\], expected \[12, 6\]"):
        import_coder(tmp_path)
    cut = {name: array[:12] if name != "b_dec" else array for name, array in t.items()}
    save_file({name: torch.from_numpy(array).contiguous() for name, array in cut.items()}, tmp_path / "sae.safetensors")
    compare(import_coder(tmp_path), x, *theirs(cut, x, False))


def test_a_config_of_2024_has_fewer_fields(tmp_path: Path) -> None:
    t, x = write(tmp_path, signed=False), inputs()
    compare(import_coder(tmp_path), x, *theirs(t, x, False))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"signed": True}, "signed is True: its latents may be negative"),
        ({"activation": "groupmax"}, "activation is 'groupmax'"),
        ({"skip_connection": True}, "skip_connection is True: sae.safetensors holds no W_skip"),
        ({"k": F + 1}, "k is 17: expected a whole number from 1 to 16"),
        ({"k": None}, "k is None: expected"),
        ({"k": True}, "k is True: expected int"),
        ({"num_latents": -1}, "num_latents is -1: expected"),
        ({"d_in": "6"}, "d_in is '6': expected int"),
        ({"transcode": "yes"}, "transcode is 'yes': expected bool"),
    ],
)
def test_what_is_not_read(tmp_path: Path, config: dict[str, object], said: str) -> None:
    write(tmp_path, **config)
    with pytest.raises(MatryoshkaError) as refused:
        import_coder(tmp_path)
    assert f"{tmp_path / 'cfg.json'}: {said}" in str(refused.value)


SITES = {
    "layers.8": ("8.resid_post", None),
    "layers.8.mlp": ("8.mlp_out", ("8.mlp_in", "8.mlp_out")),
    "model.layers.8.mlp": ("8.mlp_out", ("8.mlp_in", "8.mlp_out")),
    "gpt_neox.layers.3.attention": ("3.attn_out", ("3.attn_in", "3.attn_out")),
    "h.0.attn": ("0.attn_out", ("0.attn_in", "0.attn_out")),
    "layers.2.self_attn": ("2.attn_out", ("2.attn_in", "2.attn_out")),
    "layers.2.mlp.down_proj": (None, None),
    "embed_tokens": (None, None),
}
"""What the output of a module is, and what a transcoder of it reads and writes."""


@pytest.mark.parametrize("module", SITES)
def test_a_folder_is_called_as_its_module(tmp_path: Path, module: str) -> None:
    written, both = SITES[module]
    write(tmp_path / module)
    (sae,) = foreign_coders(tmp_path / module)
    assert (sae.facts.read, sae.facts.write) == (written and Site.parse(written), None)
    assert sae.facts.called == module
    if both is not None:
        write(tmp_path / module, transcode=True)
        (transcoder,) = foreign_coders(tmp_path / module)
        assert (str(transcoder.facts.read), str(transcoder.facts.write)) == both


@pytest.mark.parametrize("seeds", [False, True])
def test_its_run_says_the_model(tmp_path: Path, seeds: bool) -> None:
    folder = tmp_path / "seed1" / "layers.8.mlp" if seeds else tmp_path / "layers.8.mlp"
    write(folder)
    run = {"model": "HuggingFaceTB/SmolLM2-135M", "dataset": "x", "ctx_len": 2048}
    (tmp_path / "config.json").write_text(json.dumps(run))
    card = import_coder(folder).card
    assert card is not None
    assert (card.model.name, card.context, card.sources[0].reads) == (run["model"], 2048, ("8.mlp_out",))


def test_where_a_norm_follows_a_module_its_output_is_no_site(tmp_path: Path) -> None:
    """Whether the run names such a model, or the user does."""
    write(tmp_path / "layers.8.mlp")
    assert import_coder(tmp_path / "layers.8.mlp", model="google/gemma-2-2b").card is None
    asked = import_coder(tmp_path / "layers.8.mlp", model="google/gemma-2-2b", read="8.mlp_out").card
    assert asked is not None
    assert asked.sources[0].reads == ("8.mlp_out",)
    (tmp_path / "config.json").write_text('{"model": "google/gemma-2-2b"}')
    assert import_coder(tmp_path / "layers.8.mlp").card is None
    write(tmp_path / "layers.8")
    assert import_coder(tmp_path / "layers.8").card is not None
