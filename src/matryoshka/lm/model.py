"""A language model whose activations can be read and replaced at any `Site`.

lm = load("openai-community/gpt2")
x = lm.read(tokens, [Site("mlp_in", 8)])[Site("mlp_in", 8)]      # stops after layer 8's norm
with lm.replace(Site("mlp_out", 8), lambda mlp_out: reconstruction):
    logits = lm.logits(tokens)
with lm.resumed(8, resid_pre):                                    # what comes before is known
    logits = lm.logits(tokens)
slopes = lm.gradient(tokens, [Site("mlp_out", 8)], lambda logits: logits[..., 262].sum())
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cached_property, partial
from threading import RLock
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from matryoshka.distributed import World
from matryoshka.errors import MatryoshkaError, did_you_mean
from matryoshka.lm import hooks
from matryoshka.lm.info import ModelInfo, describe, unavailable
from matryoshka.lm.selfcheck import self_check
from matryoshka.lm.sites import Site
from matryoshka.lm.vocabulary import token_bytes, tokenisable

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class _Stop(Exception):
    """Raised by the hook of the last site read: the rest of the forward pass is not needed."""


class Vocabulary(NamedTuple):
    """A model's tokenizer, and the ids that frame its texts: `bos` begins every window (None if this model wants none),
    `separator` stands between documents."""

    tokenizer: Any
    bos: int | None
    separator: int | None


class LanguageModel:
    """A causal language model of one of the known families, in evaluation mode and with fixed weights."""

    def __init__(self, model: Any, vocabulary: Vocabulary, info: ModelInfo) -> None:
        self.model = model.eval().requires_grad_(False)
        self.vocabulary = vocabulary
        self.tokenizer, self.bos, self.separator = vocabulary
        self.info = info
        self.device: torch.device = model.device
        self.dtype: torch.dtype = model.dtype
        self.final_norm: nn.Module = model.get_submodule(info.family.final_norm)
        self._blocks = model.get_submodule(info.family.blocks)
        # hooks act on whoever runs the model: a thread that reads ahead waits while another replaces
        self._lock = RLock()
        config = model.config.get_text_config()
        config.use_cache = False
        config.pad_token_id = None  # windows hold no padding; transformers would look for it in every batch

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """The bytes that each id of the vocabulary stands for."""
        return token_bytes(self.tokenizer)

    # no_grad and not inference_mode: coders are trained on these tensors
    @torch.no_grad()
    def read(
        self, tokens: Integer[Tensor, "batch position"], sites: Iterable[Site]
    ) -> dict[Site, Float[Tensor, "batch position d"]]:
        """The activations of `tokens` at `sites`, in that order.

        The forward pass ends at the last site: later layers and logits are not computed. Within `replace`,
        sites show what the model goes on with, but a replaced ln2_normalized shows what it was before.
        """
        wanted = list(dict.fromkeys(sites))
        activations: dict[Site, Tensor] = {}

        def keep(site: Site, x: Tensor) -> None:
            activations[site] = x
            if len(activations) == len(wanted):
                raise _Stop

        for site in wanted:
            self.info.check(site)
        with self._lock, ExitStack() as attached:
            for site in wanted:
                block = self._blocks[site.layer]
                attached.enter_context(hooks.watch(block, self.info.family, site.kind, partial(keep, site)))
            if wanted:
                with suppress(_Stop):
                    self._forward(tokens)
        return {site: activations[site] for site in wanted}

    @contextmanager
    def replace(self, site: Site, fn: Callable[[Tensor], Tensor]) -> Iterator[None]:
        """Within the block, everything downstream of `site` gets `fn(activation)` instead of the activation. `fn`:
        [batch, position, d] → the same shape; cast to the activation's dtype. At resid_mid the residual stream itself
        changes, not only what the MLP reads."""
        self.info.check(site)

        def replacement(x: Tensor) -> Tensor:
            new = fn(x)
            if new.shape != x.shape:
                raise MatryoshkaError(
                    f"replacing {site}: got activations of shape {list(new.shape)}, expected {list(x.shape)}"
                )
            return new.to(x.dtype)

        with self._lock, ExitStack() as attached:
            block = self._blocks[site.layer]
            for handle in hooks.substitute(block, self.info.family, site.kind, replacement):
                attached.enter_context(handle)
            yield

    @contextmanager
    def resumed(self, layer: int, resid_pre: Float[Tensor, "batch position d_model"]) -> Iterator[None]:
        """Within the block, forward passes go on from `resid_pre` at `layer`: the layers before it are not run.

        `resid_pre`: what `read` gives there, of the tokens that are run within the block (or of the one window that
        all rows of a batch are). Sites of earlier layers are not there.
        """
        self.info.check(Site("resid_pre", layer))
        with self._lock, ExitStack() as attached:
            for block in self._blocks[:layer]:
                attached.enter_context(hooks.left_out(block))
            # a replacement at this very site, whichever was asked for first, is of what stands here
            attached.enter_context(hooks.on_input(self._blocks[layer], resid_pre.expand_as, first=True))
            yield

    @torch.no_grad()
    def logits(self, tokens: Integer[Tensor, "batch position"]) -> Float[Tensor, "batch position vocab"]:
        """Next-token logits at every position."""
        with self._lock:
            return self._forward(tokens).logits

    @torch.enable_grad()
    def gradient(
        self, tokens: Integer[Tensor, "batch position"], sites: Iterable[Site], metric: Callable[[Tensor], Tensor]
    ) -> dict[Site, Float[Tensor, "batch position d"]]:
        """∂ metric / ∂ activation at each of `sites`, from one backward pass: to first order, what a small change there
        does to the metric (logits, [batch, position, vocab] → one number). Within `replace`, of the model so changed.
        """
        leaves: dict[Site, Tensor] = {}

        def shifted(site: Site, x: Tensor) -> Tensor:
            leaves[site] = torch.zeros_like(x, requires_grad=True)
            return x + leaves[site]

        with ExitStack() as stack:
            for site in sites:
                stack.enter_context(self.replace(site, partial(shifted, site)))
            slopes = torch.autograd.grad(metric(self._forward(tokens).logits), list(leaves.values()))
        return dict(zip(leaves, slopes, strict=True))

    @property
    def precision(self) -> Any:
        """Its dtype by the name that configurations and cards have for it: float32, bfloat16, float16."""
        return str(self.dtype).removeprefix("torch.")

    def tokens(self, text: str) -> Int[Tensor, "1 position"]:
        """`text` as it stands at the head of a window: after BOS, if this model wants one."""
        ids = self.tokenizer(tokenisable(text), add_special_tokens=False, verbose=False)["input_ids"]
        ids = ids if self.bos is None else [self.bos, *ids]
        return torch.tensor([ids], dtype=torch.long, device=self.device)

    def _forward(self, tokens: Integer[Tensor, "batch position"]) -> Any:
        if tokens.ndim != 2 or tokens.shape[1] > self.info.context:
            raise MatryoshkaError(
                f"{self.info.name}: got tokens of shape {list(tokens.shape)}, expected [batch, position]"
                f" with at most {self.info.context} positions"
            )
        return self.model(input_ids=tokens.to(self.device, torch.long), use_cache=False)


def load(
    name: str,
    revision: str | None = None,
    dtype: str | torch.dtype = "auto",
    device: str = "auto",
    prepend_bos: bool | None = None,
) -> LanguageModel:
    """The model `name` (what names mean: `describe`), proven to be laid out as the table of families says.

    `dtype` auto: float32 on a CPU, the checkpoint's own on an accelerator. `device` auto: as `resolve_device` finds it.
    `prepend_bos`: whether texts begin with BOS; None: as this model is used.
    Weights are read from safetensors only; code from the hub is never run.
    """
    target = resolve_device(device)
    number_type = _dtype(dtype, target)
    info = describe(name, revision)
    model = _weights(info, number_type).to(target)
    lm = LanguageModel(model, load_vocabulary(info, prepend_bos), info)
    _refuse_ids_beyond(lm, model.get_input_embeddings().num_embeddings)
    self_check(info, model.get_submodule(info.family.blocks), lm.read)
    return lm


def _refuse_ids_beyond(lm: LanguageModel, rows: int) -> None:
    """Raise MatryoshkaError if a text may hold an id that the model does not embed. Special tokens but BOS never occur
    in one, so models whose padding was added later are whole."""
    tokenizer = lm.tokenizer
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special} - {lm.bos}
    highest = max(i for i in tokenizer.get_vocab().values() if i not in special)
    if highest >= rows:
        raise MatryoshkaError(
            f"{lm.info.name}: its tokenizer has ids up to {highest:,}, but the model embeds {rows:,} tokens"
        )


def resolve_device(name: str) -> torch.device:
    """`auto` is a GPU where there is one (under torchrun another one for each process of a node), otherwise the CPU; a
    device that is not there is an error."""
    if name == "auto":
        gpus, process = torch.cuda.device_count(), World.current().local_rank
        return torch.device(f"cuda:{process % gpus}" if gpus else "cpu")
    try:
        made = torch.zeros(1, device=name)
        made.item()  # a meta device has no numbers
        return made.device
    except (RuntimeError, AssertionError) as error:  # a torch without CUDA asserts
        here = ", ".join(["auto", "cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))])
        said = str(error).splitlines()[0]
        why = "" if said.startswith("Expected one of") else f" ({said})"  # not all that torch has heard of
        raise MatryoshkaError(
            f"device {name!r} cannot be used here{why}: expected {here} (--device; of train and resume model.device)"
        ) from error


def _dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype | str:
    """What transformers takes: a dtype, or "auto" for the checkpoint's own."""
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else "auto"
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in DTYPES:
        raise MatryoshkaError(f"unknown dtype {dtype!r}{did_you_mean(dtype, ['auto', *DTYPES])}")
    return DTYPES[dtype]


def _weights(info: ModelInfo, dtype: torch.dtype | str) -> Any:
    forced = info.family.attention_implementation
    attention = {"attn_implementation": forced} if forced else {}
    logging.disable_progress_bar()  # reading weights from a disk is no news
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            **info.location, dtype=dtype, use_safetensors=True, output_loading_info=True, **attention
        )
    except Exception as error:  # OSError, SafetensorError, RuntimeError for sizes …
        raise unavailable(info.name, info.folder, error) from error
    model, report = loaded
    if missing := sorted(report["missing_keys"]):
        # transformers would go on with random numbers in their place
        raise MatryoshkaError(f"{info.name}: the weights lack {len(missing)} tensors, the first is {missing[0]}")
    return model


def load_vocabulary(info: ModelInfo, prepend_bos: bool | None = None) -> Vocabulary:
    """The tokenizer of the model that `info` describes; loads no weights. `prepend_bos` as in `load`."""
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(**info.location)
    except Exception as error:  # a missing file, an unknown class, a missing package: its text says which
        raise unavailable(f"tokenizer of {info.name}", info.folder, error) from error
    bos = tokenizer.bos_token_id
    if prepend_bos and bos is None:
        raise MatryoshkaError(f"tokenizer of {info.name}: has no BOS token, with which texts are to begin")
    # texts begin with BOS if the tokenizer puts it there, or the family is used so nonetheless
    usual = bos if info.family.prepend_bos or tokenizer("text")["input_ids"][:1] == [bos] else None
    separator = tokenizer.eos_token_id if usual is None else usual
    begins_with = {None: usual, True: bos, False: None}[prepend_bos]
    return Vocabulary(tokenizer, begins_with, separator)
