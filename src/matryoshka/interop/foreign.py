"""What a foreign file gives: a coder in our convention, and what it says of where the coder belongs."""

from typing import NamedTuple

from matryoshka.coder.card import Card, ModelCard, SourceCard
from matryoshka.coder.coder import SparseCoder
from matryoshka.errors import MatryoshkaError
from matryoshka.interop.names import norm_follows
from matryoshka.lm.sites import Site

CONTEXT = 1024
"""Tokens in a window to study coders on whose files do not say; a model that reads fewer is asked for as many as it
reads."""


class Facts(NamedTuple):
    """What is known of where a coder belongs; None: nothing."""

    model: str | None = None
    """As `--model` takes it: a hub's id, a folder."""
    read: Site | None = None
    write: Site | None = None
    """None beside a `read`: the same site, an SAE's."""
    context: int | None = None
    prepend_bos: bool | None = None
    called: str | None = None
    """What its file calls its sites, in words of its own."""
    unless_norm_follows: bool | None = None
    """True of sites that hold unless a norm follows attention and MLP, in a model that is not known yet."""

    def overlaid(self, other: "Facts") -> "Facts":
        """With what `other` knows in place of it."""
        known = self._replace(**{name: value for name, value in other._asdict().items() if value is not None})
        if self.unless_norm_follows and norm_follows(known.model):
            return known._replace(read=other.read, write=other.write)
        return known

    def refuse_unknown(self, where: object) -> None:
        """Raise MatryoshkaError, with the flags that would say it, where too little is known for a card."""
        if missing := [f"--{name}" for name in ("model", "read") if getattr(self, name) is None]:
            called = f" (it says {self.called!r})" if self.called else ""
            of = (
                "where in a model it belongs"
                if len(missing) == 2
                else {"--model": "its model", "--read": "its site"}[missing[0]]
            )
            raise MatryoshkaError(
                f"{where}: does not say {of} in words known here{called}: give {' and '.join(missing)}"
            )

    def card(self, origin: str) -> Card | None:
        """The card of a coder that `origin` made; None where too little is known."""
        if self.model is None or self.read is None:
            return None
        sites = SourceCard(reads=(str(self.read),), writes=(str(self.write or self.read),))
        return Card(
            model=ModelCard(name=self.model),
            sources=(sites,),
            context=self.context or CONTEXT,
            prepend_bos=self.prepend_bos is not False,
            origin=origin,
        )


def sites(read: Site | None, write: Site | None) -> tuple[Site | None, Site | None]:
    """Both, as facts: nothing where one of them is no site of ours, and the first alone where they are the same."""
    if read is None or write is None:
        return None, None
    return read, None if read == write else write


class Foreign(NamedTuple):
    """One coder of a foreign file, in eval mode."""

    label: str
    """What tells it from the others of its file or folder; `coder` of the only one."""
    coder: SparseCoder
    facts: Facts
    origin: str
    """The program that made it, and its version where that is known."""
