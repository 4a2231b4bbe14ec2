"""The catalogue of analyses of one coder's features: name → module. A new one is a file, and a line here.

Every module has the same face: its docstring defines what it finds, with the paper or formula; `VERSION`, raised
whenever it would find something else of the same coder, so that no result of before is taken for one of now;
`analyse(observed, corpus, progress) → Result`, whose scores have intervals and nulls, and which raises NotMeasurable
where it says nothing of a coder. The recording answers most questions; the corpus is read again only for the rest.
"""

from importlib import import_module
from types import ModuleType

ANALYSES = {
    "clusters": "matryoshka.analysis.clusters",
    "map": "matryoshka.analysis.embedding",
    "patterns": "matryoshka.analysis.activation_patterns",
    "hierarchy": "matryoshka.analysis.hierarchy",
}
"""By name, in the order in which they are run and shown. Modules are imported when they run."""


def module_of(name: str) -> ModuleType:
    """The module of the analysis `name`."""
    return import_module(ANALYSES[name])
