"""Something else in the place of what coders write: reconstructions, ablations; and which coders share such a pass."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

from jaxtyping import Bool, Float
from torch import Tensor

from matryoshka.lm.model import LanguageModel
from matryoshka.lm.sites import Site
from matryoshka.study.hooked import HookedCoder


@contextmanager
def spliced(
    lm: LanguageModel, kept: Bool[Tensor, "batch position"], values: Mapping[Site, Float[Tensor, "*rows d"]]
) -> Iterator[None]:
    """Within the block these values stand at the `kept` positions of their sites; others keep their own activations.

    A value is one vector for all, or one for each kept position in their order.
    """

    def put(value: Tensor, y: Tensor) -> Tensor:
        y = y.clone()
        y[kept] = value.to(y.dtype)
        return y

    with ExitStack() as stack:
        for site, value in values.items():
            stack.enter_context(lm.replace(site, lambda y, value=value: put(value, y)))
        yield


def by_site(sites: Sequence[Site], values: Float[Tensor, "*rows d_out"]) -> dict[Site, Float[Tensor, "*rows d"]]:
    """The columns of each written site, which lie side by side in this order and are equally many."""
    return dict(zip(sites, values.chunk(len(sites), dim=-1), strict=True))


def of_one_target(coders: Sequence[HookedCoder]) -> list[list[HookedCoder]]:
    """The coders in groups that write the same sites at the same positions: what is done there in place of their
    reconstructions (zeros, the mean) is the same for all of a group, and is run once."""
    groups: dict[tuple, list[HookedCoder]] = {}
    for hooked in coders:
        keep = hooked.keep
        groups.setdefault((hooked.wiring.writes, keep.bos, frozenset(keep.largest.items())), []).append(hooked)
    return list(groups.values())
