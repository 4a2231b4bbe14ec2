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

import os
import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

from matryoshka.version import __version__

warnings.filterwarnings("ignore", message="IProgress not found")  # tqdm's, in every notebook without widgets
# before torch is imported: threads that wait for one another spin, and on a machine that is busy with something else
# they take the processors that the others need. So they sleep sooner than libgomp's own do (benchmarks/busy.py)
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "8000")

if TYPE_CHECKING:
    from matryoshka.api import (
        analyze,
        compare,
        evaluate,
        explain,
        export,
        export_page,
        feature,
        figures,
        import_coder,
        import_run,
        preview,
        pull,
        push,
        releases,
        results,
        resume,
        scaling,
        serve,
        steer,
        store,
        tokenise,
        train,
    )
    from matryoshka.coder.architecture import CoderConfig
    from matryoshka.coder.coder import SparseCoder
    from matryoshka.coder.latents import Latents
    from matryoshka.data.stream import ActivationStream, Batch
    from matryoshka.errors import MatryoshkaError
    from matryoshka.lm.model import LanguageModel, describe, load
    from matryoshka.lm.sites import Site
    from matryoshka.run import Run
    from matryoshka.training.recipe import Config

_ELSEWHERE = {
    "ActivationStream": "data.stream",
    "Batch": "data.stream",
    "CoderConfig": "coder.architecture",
    "Config": "training.recipe",
    "LanguageModel": "lm.model",
    "Latents": "coder.latents",
    "MatryoshkaError": "errors",
    "Run": "run",
    "Site": "lm.sites",
    "SparseCoder": "interop.importing",  # the same class, together with what its `from_pretrained` asks
    "describe": "lm.model",
    "load": "lm.model",
}
"""Where those names are that are no verbs of the api."""

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
    "__version__",
    "analyze",
    "compare",
    "describe",
    "evaluate",
    "explain",
    "export",
    "export_page",
    "feature",
    "figures",
    "import_coder",
    "import_run",
    "load",
    "preview",
    "pull",
    "push",
    "releases",
    "results",
    "resume",
    "scaling",
    "serve",
    "steer",
    "store",
    "tokenise",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'matryoshka' has no attribute {name!r}")
    return getattr(import_module(f"matryoshka.{_ELSEWHERE.get(name, 'api')}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
