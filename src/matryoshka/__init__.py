"""Train and study Matryoshka sparse autoencoders and transcoders of language models.

    import matryoshka

    config = matryoshka.Config.build({"coder": {"read": "2.mlp_in", "write": "2.mlp_out", "d_sae": 3072, "k": 24}})
    run = matryoshka.train(config)                    # the bundled model and text: no network needed
    matryoshka.results(run).values("FVU")             # of each prefix, on held-out text

    coder = matryoshka.SparseCoder.load(run.path)
    lm = matryoshka.load("bundled")
    latents = coder.encode(x)                         # sparse: indices, values, row offsets
    y_hat = coder.decode(latents)                     # [prefix, batch, d_out]

Everything is imported when it is first used, so that `import matryoshka` itself is instant.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matryoshka.api import feature, results, store
    from matryoshka.coder.coder import CoderConfig, SparseCoder
    from matryoshka.coder.latents import Latents
    from matryoshka.commands import resume, tokenise, train
    from matryoshka.data.activations import ActivationStream, Batch
    from matryoshka.errors import MatryoshkaError
    from matryoshka.lm.model import LanguageModel, describe, load
    from matryoshka.lm.sites import Site
    from matryoshka.run import Run
    from matryoshka.suite import evaluate
    from matryoshka.training.config import Config

__version__ = "0.1.0"

_WHERE = {
    "ActivationStream": "data.activations",
    "Batch": "data.activations",
    "CoderConfig": "coder.coder",
    "Config": "training.config",
    "LanguageModel": "lm.model",
    "Latents": "coder.latents",
    "MatryoshkaError": "errors",
    "Run": "run",
    "Site": "lm.sites",
    "SparseCoder": "coder.coder",
    "describe": "lm.model",
    "evaluate": "suite",
    "feature": "api",
    "load": "lm.model",
    "results": "api",
    "resume": "commands",
    "store": "api",
    "tokenise": "commands",
    "train": "commands",
}

__all__ = [
    "ActivationStream",
    "Batch",
    "CoderConfig",
    "Config",
    "LanguageModel",
    "Latents",
    "MatryoshkaError",
    "Run",
    "Site",
    "SparseCoder",
    "describe",
    "evaluate",
    "feature",
    "load",
    "results",
    "resume",
    "store",
    "tokenise",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'matryoshka' has no attribute {name!r}")
    return getattr(import_module(f"matryoshka.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
