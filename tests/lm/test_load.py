"""Finding a model by its name, and what is refused on the way."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_models import CONFIGS, GPT2, VOCABULARY, save_tiny, tiny_tokenizer
from tokenizers.processors import TemplateProcessing

from matryoshka.errors import MatryoshkaError
from matryoshka.lm.model import LanguageModel, describe, load, resolve_device
from matryoshka.lm.sites import FAMILIES, Site


def test_describe_says_what_the_config_says(tiny: LanguageModel, folders: dict):
    assert describe(tiny.info.name) == tiny.info
    assert (tiny.info.n_layers, tiny.info.d_model, tiny.info.d_vocab, tiny.info.context) == (
        3,
        16,
        VOCABULARY,
        32,
    )
    assert tiny.info.revision is None
    assert describe(str(folders["gpt_neox"])).parallel
    assert not describe(str(folders["gpt_neox_sequential"])).parallel


def test_sizes_come_from_the_config_never_from_the_name(tmp_path: Path):
    folder = save_tiny(transformers.GPT2Config(**GPT2 | {"n_embd": 32}), tmp_path / "gpt2-medium")
    assert describe(str(folder)).d_model == 32
    assert describe(str(folder)).check(Site("mlp_in", 0)) == 32


def test_describe_needs_no_weights(folders: dict, tmp_path: Path):
    shutil.copy(folders["llama"] / "config.json", tmp_path)
    assert describe(str(tmp_path)).model_type == "llama"


def test_a_loaded_model_is_frozen_and_in_evaluation_mode(tiny: LanguageModel):
    assert not tiny.model.training
    assert not any(parameter.requires_grad for parameter in tiny.model.parameters())
    assert tiny.dtype == torch.float32
    assert tiny.device == torch.device("cpu")


def test_auto_dtype_on_a_cpu_is_float32_whatever_the_checkpoint_has(tmp_path: Path):
    config = transformers.GPT2Config(**GPT2)
    folder = save_tiny(config, tmp_path)
    transformers.AutoModelForCausalLM.from_pretrained(folder).to(torch.bfloat16).save_pretrained(folder)
    assert load(str(folder), device="cpu").dtype == torch.float32
    assert load(str(folder), device="cpu", dtype="bfloat16").dtype == torch.bfloat16


def test_bos_is_the_tokenizers_or_the_familys(folders: dict, tmp_path: Path):
    assert load(str(next(iter(folders.values()))), device="cpu").bos == 0  # nothing adds it, the family wants it
    llama = load(str(folders["llama"]), device="cpu")
    assert (llama.bos, llama.separator) == (None, 1)
    folder = shutil.copytree(folders["llama"], tmp_path / "adds_bos")
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])
    tokenizer.save_pretrained(folder)
    adds = load(str(folder), device="cpu")
    assert (adds.bos, adds.separator) == (0, 0)


def one_line(caught: pytest.ExceptionInfo[MatryoshkaError]) -> str:
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["/no/such/folder", "./nothing", "~/no_such_model", "../gone", "", "/tmp"])
def test_a_missing_folder_is_said_and_never_sought_on_the_hub(name: str, monkeypatch: pytest.MonkeyPatch):
    def network(*_: object, **__: object) -> None:
        raise AssertionError("sought on the hub")

    monkeypatch.setattr("matryoshka.lm.info.AutoConfig.from_pretrained", network)
    with pytest.raises(MatryoshkaError, match=r"does not exist|has no config.json") as caught:
        describe(name)
    one_line(caught)


@pytest.mark.parametrize("name", ["nobody/nothing", "a/b/c", "we ird"])
def test_a_hub_id_that_cannot_be_had_is_one_line(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(MatryoshkaError, match=r"cannot be reached|valid hub id") as caught:
        load(name, device="cpu")
    assert name in one_line(caught)


def test_a_revision_of_a_local_folder_is_refused(folders: dict):
    with pytest.raises(MatryoshkaError, match="hub only"):
        describe(str(folders["gpt2"]), revision="main")


def test_an_unsupported_family_is_refused_with_the_supported(tmp_path: Path):
    transformers.BertConfig(hidden_size=16, num_attention_heads=2, num_hidden_layers=1).save_pretrained(tmp_path)
    with pytest.raises(MatryoshkaError, match=r"'bert' are not supported .*gpt2, gemma2") as caught:
        load(str(tmp_path), device="cpu")
    one_line(caught)


def damaged(folder: Path, how: str) -> None:
    weights = folder / "model.safetensors"
    match how:
        case "truncated":
            weights.write_bytes(weights.read_bytes()[:1000])
        case "pickled":
            torch.save(load_file(weights), folder / "pytorch_model.bin")
            weights.unlink()
        case "a tensor short":
            tensors = load_file(weights)
            tensors.pop("model.layers.1.mlp.up_proj.weight")
            save_file(tensors, weights, {"format": "pt"})
        case "of another size":
            config = json.loads((folder / "config.json").read_text())
            (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 40}))
        case "no JSON":
            (folder / "config.json").write_text("{")
        case "without tokenizer":
            for file in folder.glob("tokenizer*"):
                file.unlink()


@pytest.mark.parametrize(
    "how", ["truncated", "pickled", "a tensor short", "of another size", "no JSON", "without tokenizer"]
)
def test_a_damaged_folder_is_refused_by_name(folders: dict, tmp_path: Path, how: str):
    folder = shutil.copytree(folders["llama"], tmp_path / "damaged-model")
    damaged(folder, how)
    with pytest.raises(MatryoshkaError, match="damaged-model") as caught:
        load(str(folder), device="cpu")
    one_line(caught)


@pytest.mark.parametrize(
    ("gpus", "process", "device"), [(0, "1", "cpu"), (1, None, "cuda:0"), (1, "1", "cuda:0"), (4, "3", "cuda:3")]
)
def test_auto_gives_each_process_of_a_node_a_gpu(
    gpus: int, process: str | None, device: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if process is not None:
        monkeypatch.setenv("LOCAL_RANK", process)
    assert resolve_device("auto") == torch.device(device)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"dtype": "float23"}, "float32"),
        ({"device": "gpu"}, r"device 'gpu' cannot be used here: expected auto, cpu"),
        ({"device": "cuda:99"}, r"device 'cuda:99' cannot be used here \(.+\): expected auto, cpu"),
    ],
)
def test_a_wrong_option_is_refused(folders: dict, option: dict[str, str], said: str):
    with pytest.raises(MatryoshkaError, match=said) as caught:
        load(str(folders["llama"]), **{"device": "cpu"} | option)
    one_line(caught)


def test_all_tiny_families_are_covered():
    assert {CONFIGS[name]().model_type for name in CONFIGS} == set(FAMILIES)


# --- GGUF


def test_what_is_not_gguf_is_refused(tmp_path: Path):
    with pytest.raises(MatryoshkaError, match="no such GGUF file"):
        describe(str(tmp_path / "missing.gguf"))
    (tmp_path / "text.gguf").write_text("hello")
    with pytest.raises(MatryoshkaError, match="not a GGUF file"):
        describe(str(tmp_path / "text.gguf"))
    (tmp_path / "short.gguf").write_bytes(b"GGUF\x03\x00\x00")
    with pytest.raises(MatryoshkaError, match="cannot be read as GGUF") as caught:
        describe(str(tmp_path / "short.gguf"))
    one_line(caught)


def test_missing_packages_for_gguf_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MatryoshkaError, match=r"gguf and accelerate: pip install 'matryoshka-sae\[gguf\]'"):
        describe(str(tmp_path / "x.gguf"))


def test_a_converted_gguf_comes_from_the_cache(folders: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MATRYOSHKA_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "x.gguf"
    file.write_bytes(b"GGUF and more")
    shutil.copytree(folders["llama"], tmp_path / "cache" / "models" / hashlib.sha256(file.read_bytes()).hexdigest())
    assert load(str(file), device="cpu").info.name == str(file)


def test_endings_ignore_case(tmp_path: Path):
    (tmp_path / "Model.GGUF").write_bytes(b"nothing")
    with pytest.raises(MatryoshkaError, match="not a GGUF file"):
        describe(str(tmp_path / "Model.GGUF"))


def test_a_tokenizer_with_more_ids_than_the_model_embeds_is_refused(folders: dict, tmp_path: Path):
    folder = Path(shutil.copytree(folders["gpt2"], tmp_path / "model"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"another{i}" for i in range(2000)])
    tokenizer.save_pretrained(folder)
    with pytest.raises(MatryoshkaError, match=r"its tokenizer has ids up to [\d,]+, but the model embeds"):
        load(str(folder))


def test_a_device_without_numbers_is_refused():
    with pytest.raises(MatryoshkaError, match="device 'meta' cannot be used here"):
        resolve_device("meta")


def test_lone_surrogates_in_a_prompt_are_read_as_texts_are(tiny: LanguageModel):
    assert tiny.tokens("caf\udce9").equal(tiny.tokens("caf?"))
