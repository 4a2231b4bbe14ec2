"""A coder of ours on its way into a foreign file: what its card says is checked before its weights are read."""

from collections.abc import Iterable
from typing import NamedTuple

import torch

from matryoshka.coder import io
from matryoshka.coder.architecture import CoderConfig
from matryoshka.coder.card import Card
from matryoshka.coder.coder import SparseCoder
from matryoshka.coder.weights import Weights
from matryoshka.errors import MatryoshkaError
from matryoshka.features.store import FeatureStore
from matryoshka.interop.names import hook_of_site
from matryoshka.lm.sites import Site
from matryoshka.run import Run
from matryoshka.study.opening import read_card


class Ours(NamedTuple):
    """One coder of a run, of one read and one written site of a language model."""

    run: Run
    card: Card
    config: CoderConfig
    """Of the whole coder."""
    read: Site
    write: Site
    prefix: int | None = None
    """How many of its first latents are written; None: all."""

    @classmethod
    def of(cls, run: Run, prefix: int | None = None) -> "Ours":
        """The coder of a run that has one. Raises MatryoshkaError for one without a card, of synthetic features, or
        of several sites side by side, which no foreign format holds."""
        card, (config, _) = read_card(run.coder), io.load_card(run.coder)
        if card.model.synthetic is not None:
            raise MatryoshkaError(
                f"{run.path}: is of synthetic features, which no other program has; only coders of language models are"
                " exported"
            )
        sites = [(source.reads, source.writes) for source in card.sources]
        if len(sites) > 1 or max(map(len, sites[0])) > 1:
            wired = "; ".join(f"{' + '.join(reads)} → {' + '.join(writes)}" for reads, writes in sites)
            raise MatryoshkaError(
                f"{run.path}: a crosscoder ({wired}), which no foreign format holds; coders of one read and one written"
                " site are exported"
            )
        (read,), (write,) = sites[0]
        return cls(run, card, config, Site.parse(read), Site.parse(write), prefix)

    @property
    def transcodes(self) -> bool:
        """Whether it writes another site than it reads."""
        return self.read != self.write

    @property
    def sites(self) -> str:
        """As a message names them."""
        return f"{self.read} → {self.write}" if self.transcodes else str(self.read)

    def load(self) -> SparseCoder:
        """The coder, or its prefix, in float32. Raises MatryoshkaError where it is damaged or has no such prefix."""
        coder = SparseCoder.load(self.run.coder).float()
        if self.prefix is None:
            return coder
        try:
            return coder.prefix(self.prefix)
        except MatryoshkaError as error:
            raise MatryoshkaError(f"{self.run.path}: {error}") from None

    def weights(self, coder: SparseCoder) -> Weights:
        """Of the loaded `coder`, with a threshold for each latent of a BatchTopK: what it does at inference. Raises
        MatryoshkaError where that is not positive, as it is before training."""
        weights = coder.weights
        if (threshold := weights.threshold) is None or threshold.dim() == 1:
            return weights
        if not threshold > 0:
            raise MatryoshkaError(
                f"{self.run.path}: the threshold of its BatchTopK is {threshold.item():g}, so it was never trained;"
                " expected more than 0: it is what a JumpReLU makes of it elsewhere"
            )
        return weights._replace(threshold=torch.full((weights.d_sae,), threshold.item()))

    def hooks(self) -> tuple[str, str]:
        """TransformerLens' names of what it reads and writes. Raises MatryoshkaError where one has none."""
        names = [hook_of_site(site) for site in (self.read, self.write)]
        for site, name in zip((self.read, self.write), names, strict=True):
            if name is None:
                raise MatryoshkaError(
                    f"{self.run.path}: {site} has no hook in TransformerLens, by whose names this format calls sites;"
                    " nearest: resid_pre, mlp_in"
                )
        return str(names[0]), str(names[1])

    def features(self) -> FeatureStore:
        """The store of its features. Raises MatryoshkaError where there is none, or one of another coder."""
        store = FeatureStore(self.run.features_file)
        if store.about.coder != io.fingerprint(self.run.coder):
            store.close()
            raise MatryoshkaError(
                f"{self.run.path}: its coder is not the one whose features were collected; collect them anew with:"
                f" matryoshka features {self.run.path} --overwrite"
            )
        return store


def distinct(named: Iterable[tuple[str, Ours]]) -> dict[str, Ours]:
    """Coders by name. Raises MatryoshkaError where two have one."""
    arranged: dict[str, Ours] = {}
    for name, ours in named:
        if name in arranged:
            raise MatryoshkaError(
                f"{arranged[name].run.path} and {ours.run.path} would both be {name}; export one of them at a time"
            )
        arranged[name] = ours
    return arranged
