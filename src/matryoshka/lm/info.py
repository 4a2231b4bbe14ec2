"""Where a model's name leads, and what its config alone says: no weights are read here.

A model's shape is that of one built on torch's meta device, which allocates nothing.
"""

import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils.hub import cached_file, extract_commit_hash

from matryoshka.errors import MatryoshkaError
from matryoshka.files import cache_dir, replaced_folder
from matryoshka.lm.sites import FAMILIES, Family, Site

BUNDLED = Path(__file__).parent / "bundled"


@dataclass(frozen=True)
class ModelInfo:
    """What a model's config says, and where its files are."""

    name: str
    """As it was asked for."""
    folder: Path | None
    """Where its files lie; None for a model from the hub."""
    revision: str | None
    """The commit's hash of a model from the hub."""
    model_type: str
    family: Family
    n_layers: int
    d_model: int
    d_vocab: int
    context: int
    """The most positions that the model can read."""
    parallel: bool
    """Attention and MLP both read resid_pre: there is no resid_mid."""

    @property
    def location(self) -> dict[str, Any]:
        """What transformers' `from_pretrained` is given, whatever it loads; code from the hub is never run."""
        return {
            "pretrained_model_name_or_path": str(self.folder or self.name),
            "revision": self.revision or "main",
            "trust_remote_code": False,
        }

    def check(self, site: Site) -> int:
        """Width of the activations at `site`; an error if the model has no such place."""
        if site.layer >= self.n_layers:
            raise MatryoshkaError(f"site {site}: {self.name} has {self.n_layers} layers, 0 to {self.n_layers - 1}")
        if self.parallel and site.kind == "resid_mid":
            raise MatryoshkaError(
                f"site {site}: {self.name} adds attention and MLP in parallel, so there is no resid_mid"
                f" (its MLP reads {site.layer}.resid_pre through a norm: {site.layer}.mlp_in)"
            )
        return self.d_model


def describe(name: str, revision: str | None = None) -> ModelInfo:
    """What the config of `name` says, without its weights.

    `name`: "bundled", a local folder, a GGUF file (converted into the cache first), or a hub id; what looks
    like a path is never sought on the hub. `revision`: branch, tag or commit of a hub id.
    """
    folder = _local_folder(name)
    if folder is not None and revision is not None:
        raise MatryoshkaError(f"{name} is a local model: revision {revision!r} applies to models from the hub only")
    source, wanted = str(folder or name), revision or "main"
    try:
        config: Any = AutoConfig.from_pretrained(source, revision=wanted, trust_remote_code=False)
    except Exception as error:  # transformers raises OSError, ValueError, KeyError … for what a config may hold
        raise unavailable(name, folder, error) from error
    if config.model_type not in FAMILIES:
        raise MatryoshkaError(
            f"{name}: models of type {config.model_type!r} are not supported (supported: {', '.join(FAMILIES)})"
        )
    text = config.get_text_config()
    if folder is None:  # the commit is the name of the folder in the local cache where its config now lies
        revision = extract_commit_hash(cached_file(source, "config.json", revision=wanted), None)
    return ModelInfo(
        name=name,
        folder=folder,
        revision=revision,
        model_type=config.model_type,
        family=FAMILIES[config.model_type],
        n_layers=text.num_hidden_layers,
        d_model=text.hidden_size,
        d_vocab=text.vocab_size,
        context=text.max_position_embeddings,
        parallel=getattr(text, "use_parallel_residual", False),
    )


class Shape(NamedTuple):
    """What memory depends on: tied parameters count once, the MLP is as wide as its widest layer, bytes are those of
    the checkpoint's own dtype."""

    parameters: int
    n_heads: int
    d_model: int
    d_mlp: int
    bytes_a_parameter: int
    scores: bool
    """Attention's scores of a whole window are held: this family's kernel does not do without them."""

    def bytes_a_token(self, context: int, itemsize: int) -> int:
        """What a forward pass over windows of `context` tokens holds for each at most, logits apart: the tensors of one
        block, of numbers of `itemsize` bytes, and scores in float32 before and after their softmax."""
        scores = 2 * self.n_heads * context * torch.float32.itemsize if self.scores else 0
        return (6 * self.d_model + 3 * self.d_mlp) * itemsize + scores


def shape(info: ModelInfo) -> Shape:
    """The shape of the model that `info` describes."""
    config: Any = AutoConfig.from_pretrained(**info.location)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    text = config.get_text_config()
    blocks = model.get_submodule(info.family.blocks)
    widths = [max(p.shape) for p in blocks[0].get_submodule(info.family.mlp).parameters()]
    own = config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32
    count = sum(parameter.numel() for parameter in model.parameters())
    return Shape(
        parameters=count,
        n_heads=text.num_attention_heads,
        d_model=info.d_model,
        d_mlp=max(widths),
        bytes_a_parameter=own.itemsize,
        scores=info.family.attention_implementation == "eager",
    )


def _local_folder(name: str) -> Path | None:
    """The folder that `name` means, None if it is to be sought on the hub."""
    if name == "bundled":
        return BUNDLED
    path = Path(name).expanduser()
    if name.lower().endswith(".gguf"):
        return _converted(path)
    if (path / "config.json").is_file():
        return path
    if name.startswith(("/", ".", "~")) or not name:
        fault = "has no config.json" if path.is_dir() else "does not exist"
        raise MatryoshkaError(f"{name!r} {fault}; expected a model's folder, a .gguf file, a hub id or 'bundled'")
    return None


def _converted(file: Path) -> Path:
    """The folder in the cache with a GGUF file's model and tokenizer, named by its sha256; made if it is not there yet.

    transformers needs some 20 s for a small GGUF file and half a second for the same model as safetensors, so each file
    is converted once, to float32: exactly the numbers that it holds.
    """
    if not file.is_file():
        raise MatryoshkaError(f"{file}: there is no such GGUF file")
    with file.open("rb") as opened:
        if opened.read(4) != b"GGUF":
            raise MatryoshkaError(f"{file}: not a GGUF file (it does not begin with the bytes GGUF)")
        opened.seek(0)
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    folder = cache_dir() / "models" / digest
    if not (folder / "config.json").is_file():
        _convert(file, folder)
    return folder


def _convert(file: Path, folder: Path) -> None:
    missing = [package for package in ("gguf", "accelerate") if importlib.util.find_spec(package) is None]
    if missing:
        raise MatryoshkaError(f"{file}: reading GGUF needs {' and '.join(missing)}: pip install 'matryoshka-sae[gguf]'")
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
        tokenizer: Any = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    except Exception as error:  # a foreign architecture, a damaged file: whatever transformers and gguf raise
        raise MatryoshkaError(f"{file}: cannot be read as GGUF: {' '.join(str(error).split())}") from error
    # the weights are plain numbers now, but save_pretrained refuses a model that is marked as quantised
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    with replaced_folder(folder) as new:
        model.save_pretrained(new)
        tokenizer.save_pretrained(new)


def unavailable(name: str, folder: Path | None, error: Exception) -> MatryoshkaError:
    """One line for whatever transformers and the hub say when a model's file cannot be had."""
    said = " ".join(str(error).split())
    if folder is not None:
        return MatryoshkaError(f"{name}: cannot be read from {folder}: {said}")
    if isinstance(error.__cause__, LocalEntryNotFoundError):
        return MatryoshkaError(
            f"{name}: the Hugging Face hub cannot be reached and the model is not in the local cache"
            " (a folder, a .gguf file and 'bundled' need no network)"
        )
    if isinstance(error.__cause__, HFValidationError):
        return MatryoshkaError(f"{name!r} is neither a folder, a .gguf file, 'bundled' nor a valid hub id: {said}")
    return MatryoshkaError(f"{name}: cannot be fetched from the Hugging Face hub: {said}")
