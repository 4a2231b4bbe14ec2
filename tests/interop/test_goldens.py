"""Every file that another program wrote is read as that program reads it, or refused for what it is."""

from pathlib import Path

import numpy as np
import pytest
import torch
from foreign_files import GOLDEN, compare, numbers

from matryoshka.coder.architecture import BatchTopKConfig, JumpReLUConfig, ReLUConfig, TopKConfig
from matryoshka.errors import MatryoshkaError
from matryoshka.interop.importing import foreign_coders, import_coder

GPT2, GEMMA, GEMMA3 = "openai-community/gpt2", "google/gemma-2-2b", "google/gemma-3-270m"
PRE, POST, LN2, MLP = "8.resid_pre", "12.resid_post", "8.ln2_normalized", "8.mlp_out"
RINGS = (4, 8, 16, 32, 64)

READ = {
    "saelens/standard": (ReLUConfig, GPT2, PRE),
    "saelens/standard_no_b_dec_input": (ReLUConfig, GPT2, PRE),
    "saelens/standard_expected_average_only_in": (ReLUConfig, GPT2, PRE),
    "saelens/gated": (JumpReLUConfig, GPT2, PRE),
    "saelens/gated_trained": (JumpReLUConfig, GPT2, PRE),
    "saelens/topk": (TopKConfig, GPT2, PRE),
    "saelens/topk_trained": (TopKConfig, GPT2, PRE),
    "saelens/topk_rescale_by_decoder_norm": (TopKConfig, GPT2, PRE),
    "saelens/jumprelu": (JumpReLUConfig, GEMMA, POST),
    "saelens/jumprelu_negative_threshold": (JumpReLUConfig, GEMMA, POST),
    "saelens/jumprelu_bfloat16": (JumpReLUConfig, GEMMA, POST),
    "saelens/jumprelu_trained": (JumpReLUConfig, GPT2, PRE),
    "saelens/batchtopk_trained": (JumpReLUConfig, GPT2, PRE),
    "saelens/matryoshka_batchtopk_trained": (JumpReLUConfig, GEMMA, POST),
    "saelens/transcoder": (ReLUConfig, GEMMA, "8.mlp_in", MLP),
    "saelens/transcoder_square": (ReLUConfig, GEMMA, LN2, MLP),
    "saelens/skip_transcoder": (ReLUConfig, GEMMA, LN2, MLP),
    "saelens/jumprelu_transcoder": (JumpReLUConfig, GEMMA, LN2, MLP),
    "hub_saelens/blocks.12.hook_resid_post": (JumpReLUConfig, GEMMA, POST),
    "hub_saelens/blocks.8.ln2.hook_normalized": (JumpReLUConfig, GEMMA, LN2, MLP),
    "sparsify/sae/layers.8": (TopKConfig, None, "8.resid_post"),
    "sparsify/sae/layers.8.mlp": (TopKConfig, None, MLP),
    "sparsify/transcoder/layers.8.mlp": (TopKConfig, None, "8.mlp_in", MLP),
    "sparsify/skip_transcoder/layers.8.mlp": (TopKConfig, None, "8.mlp_in", MLP),
    "dictionary_learning/AutoEncoder": (ReLUConfig, GEMMA, POST),
    "dictionary_learning/GatedAutoEncoder": (JumpReLUConfig, GEMMA, POST),
    "dictionary_learning/AutoEncoderTopK": (TopKConfig, GEMMA, POST),
    "dictionary_learning/BatchTopKSAE": (BatchTopKConfig, GEMMA, POST),
    "dictionary_learning/MatryoshkaBatchTopKSAE": (BatchTopKConfig, GEMMA, POST),
    "dictionary_learning/JumpReluAutoEncoder": (JumpReLUConfig, GEMMA, POST),
    "openmoss/sae_relu": (ReLUConfig, None, "8.resid_post"),
    "openmoss/sae_relu_inference": (ReLUConfig, None, "8.resid_post"),
    "openmoss/sae_jumprelu": (JumpReLUConfig, None, "8.resid_post"),
    "openmoss/transcoder_jumprelu": (JumpReLUConfig, None, LN2, MLP),
    "gemma_scope/gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82": (JumpReLUConfig, GEMMA, POST),
    "gemma_scope/gemma-scope-2b-pt-transcoders/layer_8/width_16k/average_l0_76": (JumpReLUConfig, GEMMA, LN2, MLP),
    "gemma_scope/gemma-scope-2-270m-pt/resid_post/layer_12_width_16k_l0_medium": (JumpReLUConfig, GEMMA3, POST),
    "gemma_scope/gemma-scope-2-270m-pt/transcoder/layer_12_width_16k_l0_medium": (
        *(JumpReLUConfig, GEMMA3),
        *("12.mlp_in", "12.mlp_out"),
    ),
    "gemma_scope/gemma-scope-2-270m-pt/transcoder/layer_12_width_16k_l0_medium_affine": (
        *(JumpReLUConfig, GEMMA3),
        *("12.mlp_in", "12.mlp_out"),
    ),
}
"""Activation, model, and the sites that are read and written."""

SETS = {
    "circuit_tracer/transcoder_set_jumprelu": (JumpReLUConfig, GEMMA, "ln2_normalized", "mlp_out"),
    "circuit_tracer/transcoder_set_jumprelu_skip": (JumpReLUConfig, GEMMA3, "mlp_in", "mlp_out"),
    "circuit_tracer/transcoder_set_relu": (ReLUConfig, "Qwen/Qwen3-0.6B", "mlp_in", "mlp_out"),
}

PER_TOKEN = "a normalisation of each token by itself"
REFUSED = {
    "saelens/abstopk": "cfg.json: architecture 'abstopk'",
    "saelens/matching_pursuit": "cfg.json: architecture 'matching_pursuit'",
    "saelens/temporal": "cfg.json: architecture 'temporal'",
    "saelens/standard_layer_norm": PER_TOKEN,
    "saelens/standard_constant_norm_rescale": PER_TOKEN,
    "saelens/skip_transcoder_layer_norm": PER_TOKEN,
    "saelens/topk_layer_norm": PER_TOKEN,
    "saelens/pre6_topk_flat_cfg": PER_TOKEN,
    "sparsify/sae_groupmax/layers.8": "cfg.json: activation is 'groupmax'",
    "openmoss/clt_jumprelu": "config.json: sae_type is 'clt': a cross-layer transcoder",
    "circuit_tracer/clt_jumprelu": "a cross-layer transcoder, whose latents write to all later layers",
}
CHECKPOINT = "saelens/matryoshka_batchtopk_training_checkpoint"


def test_every_golden_is_held_against() -> None:
    there = {str(file.parent.relative_to(GOLDEN)) for file in GOLDEN.rglob("io.npz")}
    assert there == {*READ, *SETS, *REFUSED, CHECKPOINT}


@pytest.mark.parametrize("name", READ)
def test_a_coder_is_read_as_its_program_reads_it(name: str) -> None:
    activation, model, read, *write = READ[name]
    (foreign,) = foreign_coders(GOLDEN / name)
    theirs = numbers(GOLDEN / name)
    compare(foreign.coder, theirs["x"], theirs["latents"], theirs["out"], 1e-2 if "bfloat16" in name else 1e-5)
    assert isinstance(foreign.coder.config.activation, activation)
    assert (foreign.label, foreign.facts.model, str(foreign.facts.read)) == ("coder", model, read)
    assert [str(site) for site in (foreign.facts.write,) if site] == write


@pytest.mark.parametrize("name", SETS)
def test_a_set_of_transcoders_is_a_coder_for_each_layer(name: str) -> None:
    activation, model, read, write = SETS[name]
    theirs = numbers(GOLDEN / name)
    coders = list(foreign_coders(GOLDEN / name))
    assert [foreign.label for foreign in coders] == ["layer_0", "layer_1"]
    for layer, foreign in enumerate(coders):
        compare(foreign.coder, theirs["x"][layer], theirs["latents"][layer], theirs["out"][layer])
        assert isinstance(foreign.coder.config.activation, activation)
        facts = foreign.facts
        assert (facts.model, str(facts.read), str(facts.write)) == (model, f"{layer}.{read}", f"{layer}.{write}")


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_coder_of_ours_is_refused_for_what_it_is(name: str) -> None:
    with pytest.raises(MatryoshkaError) as refused:
        list(foreign_coders(GOLDEN / name))
    assert REFUSED[name] in str(refused.value)
    assert str(GOLDEN / name) in str(refused.value)


@pytest.mark.parametrize("name", ["saelens/matryoshka_batchtopk_trained", "hub_saelens/blocks.12.hook_resid_post"])
def test_prefixes_are_those_that_were_trained(name: str) -> None:
    coder, theirs = import_coder(GOLDEN / name), numbers(GOLDEN / name)
    x = torch.from_numpy(theirs["x"])
    assert coder.widths == tuple(theirs["widths"]) == RINGS
    with torch.no_grad():
        ours = coder.decode(coder.encode(x)).numpy()
    assert np.abs(ours - theirs["out_prefixes"]).max() <= 1e-5 * np.abs(theirs["out_prefixes"]).max()


def test_groups_of_dictionary_learning_are_prefixes() -> None:
    assert import_coder(GOLDEN / "dictionary_learning/MatryoshkaBatchTopKSAE").widths == RINGS


def test_a_checkpoint_of_training_is_read_by_its_threshold() -> None:
    """It was stored by the coder of matryoshka_batchtopk_trained; its own numbers are those of training mode, where the
    largest of all 8 rows are active."""
    coder, trained = import_coder(GOLDEN / CHECKPOINT), GOLDEN / "saelens/matryoshka_batchtopk_trained"
    inference, training = numbers(trained), numbers(GOLDEN / CHECKPOINT)
    compare(coder, inference["x"], inference["latents"], inference["out"])
    assert coder.widths == RINGS
    with torch.no_grad():
        latents = coder.train().encode(torch.from_numpy(training["x"])).dense().numpy()
    assert np.abs(latents - training["latents"]).max() <= 1e-5 * training["latents"].max()


@pytest.mark.parametrize("name", ["saelens/jumprelu", "saelens/jumprelu_bfloat16", "saelens/jumprelu_transcoder"])
def test_a_threshold_is_to_be_exceeded(name: str) -> None:
    """Latent 0 is at its threshold on every row, latent 1 just above."""
    latents = import_coder(GOLDEN / name).encode(torch.from_numpy(numbers(GOLDEN / name)["x"])).dense()
    assert not latents[:, 0].any()
    assert latents[:, 1].all()


def test_a_file_is_as_good_as_its_folder() -> None:
    folder = GOLDEN / "gemma_scope/gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82"
    coder = import_coder(folder / "params.npz")
    assert coder.card is not None
    assert (coder.card.model.name, coder.card.sources[0].reads) == (GEMMA, (POST,))


def test_a_coder_of_which_nothing_is_known_has_no_card(tmp_path: Path) -> None:
    params = GOLDEN / "gemma_scope/gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82/params.npz"
    (tmp_path / "params.npz").write_bytes(params.read_bytes())
    assert import_coder(tmp_path).card is None
    card = import_coder(tmp_path, model="bundled", read="1.resid_post").card
    assert card is not None
    assert card.model.name == "bundled"
