"""What others call models and sites. TransformerLens' names of models are not the hub's; sites are of raw models."""

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
    return None if name is None else MODELS.get(name, name)


def short_name(model: str) -> str:
    """TransformerLens' name of a model of the hub, where it has one; otherwise the hub's."""
    return next((short for short, hub in MODELS.items() if hub == model), model)


def site_of_hook(hook: str | None, model: str | None) -> Site | None:
    """The site that TransformerLens calls `blocks.8.hook_resid_post` in this model; None where it is none of ours."""
    match = re.fullmatch(r"blocks\.(\d{1,6})\.(.+)", hook or "")
    if match is None or match[2] not in HOOKS:
        return None
    if match[2] == "mlp.hook_out" and re.search(r"gemma-[23]", model or ""):
        return None  # before the norm that follows the MLP there
    return Site(HOOKS[match[2]], int(match[1]))


def hook_of_site(site: Site) -> str | None:
    """TransformerLens' name of a site; None where it has no hook."""
    names = {kind: hook for hook, kind in reversed(HOOKS.items())}
    names["resid_mid"] = "hook_resid_mid"
    return f"blocks.{site.layer}.{names[site.kind]}" if site.kind in names else None


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
