"""What others call models and sites. TransformerLens' names of models are not the hub's; sites are of raw models.

In Gemma-2 and 3 a norm follows attention and MLP: what these modules return is not what is added to the residual there,
and no site (`norm_follows`).
"""

import re

from matryoshka.lm.sites import Family, Site

HOOKS = {
    "hook_resid_pre": "resid_pre",
    "hook_attn_out": "attn_out",
    "hook_resid_mid": "resid_mid",
    "hook_mlp_in": "resid_mid",  # PRE-norm there
    "ln2.hook_normalized": "ln2_normalized",
    "mlp.hook_in": "mlp_in",
    "hook_mlp_out": "mlp_out",
    "mlp.hook_out": "mlp_out",
    "hook_resid_post": "resid_post",
}
"""TransformerLens' names within a block, and ours."""

MODULES: dict[str, tuple[str | None, str | None]] = {
    "": ("resid_pre", "resid_post"),
    "ln_1": ("resid_pre", "attn_in"),
    "input_layernorm": ("resid_pre", "attn_in"),
    "attn": ("attn_in", "attn_out"),
    "self_attn": ("attn_in", "attn_out"),
    "attention": ("attn_in", "attn_out"),
    "ln_2": ("resid_mid", "mlp_in"),
    "post_attention_layernorm": ("resid_mid", "mlp_in"),
    "mlp": ("mlp_in", "mlp_out"),
}
"""Hugging Face's names of modules within a block ("" is the block), and the sites that they read and return."""

MODULES_OF_GEMMA: dict[str, tuple[str | None, str | None]] = {
    "": ("resid_pre", "resid_post"),
    "input_layernorm": ("resid_pre", "attn_in"),
    "self_attn": ("attn_in", None),
    "post_attention_layernorm": (None, "attn_out"),
    "pre_feedforward_layernorm": ("resid_mid", "mlp_in"),
    "mlp": ("mlp_in", None),
    "post_feedforward_layernorm": (None, "mlp_out"),
}
"""Where a norm follows attention and MLP."""

MODELS = {
    "gpt2-small": "openai-community/gpt2",
    "gpt2": "openai-community/gpt2",
    "gpt2-medium": "openai-community/gpt2-medium",
    "gpt2-large": "openai-community/gpt2-large",
    "gpt2-xl": "openai-community/gpt2-xl",
    "gemma-2-2b": "google/gemma-2-2b",
    "gemma-2-2b-it": "google/gemma-2-2b-it",
    "gemma-2-9b": "google/gemma-2-9b",
    "gemma-2-9b-it": "google/gemma-2-9b-it",
    "gemma-2-27b": "google/gemma-2-27b",
    "pythia-70m-deduped": "EleutherAI/pythia-70m-deduped",
    "pythia-160m-deduped": "EleutherAI/pythia-160m-deduped",
    "llama-3.1-8b": "meta-llama/Llama-3.1-8B",
    "meta-llama/Llama-3.1-8B": "meta-llama/Llama-3.1-8B",
    "smollm2-135m": "HuggingFaceTB/SmolLM2-135M",
}
"""TransformerLens' short names, and the hub's."""


def model_of(name: str | None) -> str | None:
    """A model's name as `--model` takes it, whichever of the two it is given by."""
    if match := re.fullmatch(r"gemma-v3-(\w+)-(pt|it)", name or ""):  # Gemma Scope 2
        return f"google/gemma-3-{match[1]}" + ("" if match[0].endswith("270m-pt") else f"-{match[2]}")
    return None if name is None else MODELS.get(name, name)


def short_name(model: str) -> str:
    """TransformerLens' name of a model of the hub, where it has one; otherwise the hub's."""
    return next((short for short, hub in MODELS.items() if hub == model), model)


def site_of_hook(hook: str | None, model: str | None) -> Site | None:
    """The site that TransformerLens calls `blocks.8.hook_resid_post` in this model; None where it is none of ours."""
    match = re.fullmatch(r"blocks\.(\d{1,6})\.(.+)", hook or "")
    if match is None or match[2] not in HOOKS:
        return None
    if match[2] == "mlp.hook_out" and norm_follows(model):
        return None  # before the norm that follows the MLP there
    return Site(HOOKS[match[2]], int(match[1]))


def hook_of_site(site: Site) -> str | None:
    """TransformerLens' name of a site; None where it has no hook."""
    names = {kind: hook for hook, kind in reversed(HOOKS.items())}
    names["resid_mid"] = "hook_resid_mid"
    return f"blocks.{site.layer}.{names[site.kind]}" if site.kind in names else None


def norm_follows(model: str | None) -> bool:
    """Whether a norm follows attention and MLP in this model, as far as its name says."""
    return re.search(r"gemma-v?[23]", model or "", re.IGNORECASE) is not None


def sites_of_module(path: str, model: str | None) -> tuple[Site | None, Site | None]:
    """What the module `model.layers.8.mlp` reads and returns; None where that is no site of ours. Of a model that is
    not known it is taken that no norm follows; `depends_on_model` says whether that matters."""
    name, layer = _within_block(path)
    names = MODULES_OF_GEMMA if norm_follows(model) else MODULES
    read, write = (None if kind is None else Site(kind, layer) for kind in names.get(name, (None, None)))
    return read, write


def depends_on_model(path: str) -> bool:
    """Whether a module of this name is something else where a norm follows attention and MLP."""
    name, _ = _within_block(path)
    return MODULES.get(name) != MODULES_OF_GEMMA.get(name) and ".h." not in f".{path}"


def _within_block(path: str) -> tuple[str, int]:
    """(a module's name within its block, the block); a name that no module has where it is in none."""
    match = re.fullmatch(r"(?:\w+\.)*?(?:layers|h)\.(\d{1,6})(?:\.(.+))?", path)
    return (match[2] or "", int(match[1])) if match else ("?", 0)


def returned_by(site: Site, family: Family) -> str | None:
    """The path from the model of the module that returns what is at a site; None where none does."""
    match site.kind:
        case "resid_post":
            return f"{family.blocks}.{site.layer}"
        case "resid_pre" if site.layer > 0:
            return f"{family.blocks}.{site.layer - 1}"
    within = {
        "attn_in": family.attn_norm,
        "attn_out": _adding(family.attention, family.attn_added),
        "mlp_in": family.mlp_norm,
        "mlp_out": _adding(family.mlp, family.mlp_added),
    }
    return f"{family.blocks}.{site.layer}.{within[site.kind]}" if site.kind in within else None


def computed_by(read: Site, write: Site, family: Family) -> str | None:
    """The path from the model of the module that reads what is at one site and returns what is at the other; None where
    none does."""
    parts = {
        ("resid_pre", "resid_post"): ("", ""),
        ("attn_in", "attn_out"): (family.attention, _adding(family.attention, family.attn_added)),
        ("mlp_in", "mlp_out"): (family.mlp, _adding(family.mlp, family.mlp_added)),
    }
    module, adding = parts.get((read.kind, write.kind), ("", None))
    if read.layer != write.layer or module != adding:
        return None
    return f"{family.blocks}.{read.layer}.{module}".removesuffix(".")


def _adding(module: str, added: str) -> str:
    """Which module returns what is added to the residual: a dropout does nothing outside training."""
    return module if added.endswith("dropout") else added
