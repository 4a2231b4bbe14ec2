"""sparsify's folders of our TopK coders."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from written_coders import close, inputs, ours, random_coder, saved, sparsify

from matryoshka.coder.coder import SparseCoder
from matryoshka.errors import MatryoshkaError
from matryoshka.interop.exporting import export
from matryoshka.interop.importing import import_coder
from matryoshka.interop.names import computed_by, returned_by
from matryoshka.lm.sites import FAMILIES, Site
from matryoshka.run import Run


@pytest.mark.parametrize(
    ("kind", "hookpoint"), [("topk sae", "h.2"), ("topk transcoder", "h.1.mlp"), ("topk skip transcoder", "h.1.mlp")]
)
def test_a_trained_coder_is_the_same_function_there(
    kind: str, hookpoint: str, kinds: dict[str, Run], tmp_path: Path
) -> None:
    folder = export(kinds[kind], tmp_path / "out", "sparsify")
    coder, x = SparseCoder.load(kinds[kind].path), inputs(192)
    close(sparsify(folder / hookpoint, x), ours(coder, x), 1e-5)
    config = json.loads((folder / hookpoint / "cfg.json").read_text())
    assert config == {
        "activation": "topk",
        "expansion_factor": 1,
        "normalize_decoder": True,  # trained rows have unit norm
        "num_latents": 256,
        "k": 6,
        "multi_topk": False,
        "skip_connection": "skip" in kind,
        "transcode": "transcoder" in kind,
        "d_in": 192,
    }
    # it takes every folder there for a coder
    assert {path.name for path in folder.iterdir()} == {"config.json", hookpoint}
    about = json.loads((folder / "config.json").read_text())
    assert (about["model"], about["ctx_len"], about["hookpoints"]) == ("bundled", 64, [hookpoint])


@settings(max_examples=40)
@given(transcodes=st.booleans(), skip=st.booleans(), seed=st.integers(0, 10_000))
def test_any_coder_is_the_same_function_there(transcodes: bool, skip: bool, seed: int) -> None:
    sites = ("1.mlp_in", "1.mlp_out") if transcodes else ("1.mlp_out", None)
    coder = random_coder("topk", *sites, skip=skip, seed=seed)
    with TemporaryDirectory() as parent:
        folder = export(saved(coder, Path(parent) / "run"), Path(parent) / "out", "sparsify") / "h.1.mlp"
        close(sparsify(folder, inputs(6)), ours(coder, inputs(6)), 3e-6)
        back = import_coder(folder)
        close(ours(back, inputs(6)), ours(coder, inputs(6)), 3e-6)
        assert back.card is not None
        assert coder.card is not None
        assert (back.card.model.name, back.card.sources) == ("bundled", coder.card.sources)
        assert json.loads((folder / "cfg.json").read_text())["normalize_decoder"] is False


def test_several_coders_lie_side_by_side(kinds: dict[str, Run], tmp_path: Path) -> None:
    folder = export([kinds["topk sae"], kinds["topk transcoder"]], tmp_path / "out", "sparsify")
    assert {path.name for path in folder.iterdir()} == {"config.json", "h.2", "h.1.mlp"}
    export(kinds["topk sae"], folder, "sparsify", overwrite=True)
    assert {path.name for path in folder.iterdir()} == {"config.json", "h.2"}


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("sae", "sparsify has no batchtopk, only the k largest of each row.*nearest: --format saelens"),
        ("jumprelu skip transcoder", "sparsify has no jumprelu"),
        ("crosscoder", "a crosscoder"),
    ],
)
def test_what_it_cannot_hold_is_refused(kind: str, said: str, kinds: dict[str, Run], tmp_path: Path) -> None:
    with pytest.raises(MatryoshkaError, match=said):
        export(kinds[kind], tmp_path / "out", "sparsify")
    assert not (tmp_path / "out").exists()


def test_sites_of_no_module_and_prefixes_are_refused(tmp_path: Path) -> None:
    for n, (read, write, said) in enumerate(
        [
            ("1.resid_mid", None, "expects what a module returns"),
            ("0.resid_pre", None, "expects what a module returns"),
            ("1.resid_mid", "1.mlp_out", "expects a transcoder from what one module reads to what it returns"),
            ("1.mlp_in", "2.mlp_out", "expects a transcoder"),
        ]
    ):
        run = saved(random_coder("topk", read, write), tmp_path / f"run {n}")
        with pytest.raises(MatryoshkaError, match=said):
            export(run, tmp_path / "out", "sparsify")
    run = saved(random_coder("topk"), tmp_path / "whole")
    with pytest.raises(MatryoshkaError, match="the first 5 latents of a TopK are no TopK"):
        export(run, tmp_path / "out", "sparsify", prefix=5)
    assert export(run, tmp_path / "out", "sparsify", prefix=16).is_dir()


@pytest.mark.parametrize(
    ("family", "site", "path"),
    [
        ("llama", "8.resid_post", "model.layers.8"),
        ("llama", "8.resid_pre", "model.layers.7"),
        ("llama", "8.mlp_out", "model.layers.8.mlp"),
        ("llama", "8.mlp_in", "model.layers.8.post_attention_layernorm"),
        ("gpt2", "0.attn_out", "transformer.h.0.attn"),
        ("gemma2", "3.mlp_out", "model.layers.3.post_feedforward_layernorm"),
        ("gpt_neox", "3.mlp_out", "gpt_neox.layers.3.mlp"),
        ("llama", "8.resid_mid", None),
        ("llama", "8.ln2_normalized", None),
    ],
)
def test_modules_of_sites(family: str, site: str, path: str | None) -> None:
    assert returned_by(Site.parse(site), FAMILIES[family]) == path


def test_modules_of_transcoders() -> None:
    sites = Site("mlp_in", 3), Site("mlp_out", 3)
    assert computed_by(*sites, FAMILIES["llama"]) == "model.layers.3.mlp"
    assert computed_by(*sites, FAMILIES["gpt_neox"]) == "gpt_neox.layers.3.mlp"
    assert computed_by(*sites, FAMILIES["gemma2"]) is None  # a norm comes after
    assert computed_by(Site("resid_pre", 3), Site("resid_post", 3), FAMILIES["gemma2"]) == "model.layers.3"
    assert computed_by(Site("mlp_in", 3), Site("mlp_out", 4), FAMILIES["llama"]) is None
