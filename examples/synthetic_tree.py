"""A forest of features that are known, and what a plain and a Matryoshka coder make of it.

Each parent feature has children that never fire without it, and at most one of them is on at a time. A
coder that may use fewer latents than there are features on saves one wherever a child is on: the child's
latent learns parent + child, and the parent's own falls silent there, although the parent is on. That is
*feature absorption* (Chanin et al. 2024, "A is for Absorption"). A Matryoshka coder's first latents have to
reconstruct without the later ones, so a parent's latent has to fire on all of its parent's tokens, whatever
the children do (Bussmann et al. 2025, "Learning Multi-Level Features with Matryoshka Sparse Autoencoders",
which shows it on a similar toy).

    1. Tree      directions, and tokens with the truth behind them
    2. train     one BatchTopK SAE by the library's own training step; `widths` is all that differs
    3. measure   the coder against the truth, on fresh tokens

What to look at: both coders have a latent along each parent, so cosines with the parents do not tell them
apart; but the plain one's is silent on some 40 % of the tokens that have a child on too, and its children's
latents point at the parent as well. The price is reconstruction: the Matryoshka coder's FVU is higher.

    python examples/synthetic_tree.py        # under a minute on two CPU cores; needs no language model
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Bool, Float
from rich.console import Console
from rich.table import Table
from torch import Tensor

from matryoshka.coder.architecture import CoderConfig
from matryoshka.coder.coder import SparseCoder
from matryoshka.coder.metrics import Meter
from matryoshka.data.stream import Batch
from matryoshka.lm.sites import Site, Wiring
from matryoshka.training.plan import Plan
from matryoshka.training.recipe import CoderSection, TrainingSection
from matryoshka.training.trainee import Trainee

SITE = Site("resid_pre", 0)
"""A coder reads and writes sites; the tokens here pretend to be of this one."""
PLAIN = (40,)
MATRYOSHKA = (12, 40)
"""The dictionary has one latent for each of the 40 features; the first prefix has room for the 8 parents and
a few more. With (8, 40) one parent was left to the later latents in each of three seeds; little else changed."""


class Truth(NamedTuple):
    """Which features are on, for each token."""

    parents: Bool[Tensor, "n parents"]
    children: Bool[Tensor, "n parents children"]


@dataclass(frozen=True)
class Tree:
    """Parents with children and a unit direction for each; all are orthogonal, so no cosine is chance."""

    parents: Float[Tensor, "parents d"]
    children: Float[Tensor, "parents children d"]
    p_parent: float = 0.1875
    """Each parent is on with this probability, independently of the others."""
    p_child: float = 0.6
    """Where a parent is on, one of its children is too with this probability, each equally likely."""
    child_magnitude: float = 0.7
    """Mean magnitude of a child that is on; a parent's is 1. Details are smaller than their topic."""
    spread: float = 0.2
    """Magnitudes are uniform within this share of their mean, drawn for each token and feature."""
    noise: float = 0.02
    """Standard deviation of the noise in each dimension."""

    @classmethod
    def grow(cls, parents: int = 8, children: int = 4, d: int = 48, seed: int = 0) -> Self:
        """A forest of random orthogonal directions. ValueError if `d` dimensions cannot hold them all."""
        features = parents * (1 + children)
        if features > d:
            raise ValueError(f"{features} orthogonal features do not fit into {d} dimensions")
        generator = torch.Generator().manual_seed(seed)
        directions = torch.linalg.qr(torch.randn(d, features, generator=generator)).Q.T
        return cls(directions[:parents], directions[parents:].reshape(parents, children, d))

    @property
    def l0(self) -> float:
        """Features on in a token, on average."""
        return len(self.parents) * self.p_parent * (1 + self.p_child)

    def sample(self, n: int, generator: torch.Generator) -> tuple[Float[Tensor, "n d"], Truth]:
        """`n` tokens, each the sum of magnitude × direction over the features that are on, plus noise."""
        parents, children, d = self.children.shape
        on = torch.rand(n, parents, generator=generator) < self.p_parent
        with_child = on & (torch.rand(n, parents, generator=generator) < self.p_child)
        which = torch.randint(children, (n, parents), generator=generator)
        child_on = with_child[..., None] & (which[..., None] == torch.arange(children))

        magnitudes = torch.cat([on, self.child_magnitude * child_on.flatten(1)], dim=1)
        magnitudes *= 1 + self.spread * (2 * torch.rand(magnitudes.shape, generator=generator) - 1)
        directions = torch.cat([self.parents, self.children.flatten(0, 1)])
        x = magnitudes @ directions + self.noise * torch.randn(n, d, generator=generator)
        return x, Truth(on, child_on)


def train(widths: Sequence[int], seed: int, tree: Tree, k: int = 2, steps: int = 1200, batch: int = 512) -> SparseCoder:
    """A BatchTopK SAE of `tree` with nested prefixes `widths`, folded: of raw tokens; (d_sae,) makes it a plain one.

    A `k` below `tree.l0` makes latents scarce: where every feature may have its own, absorption saves little.
    `seed` fixes the initial weights and the tokens, so coders of one seed start alike and see the same data.
    """
    d, d_sae = tree.parents.shape[1], widths[-1]
    config = CoderConfig(
        reads=(d,), writes=(d,), d_sae=d_sae, widths=tuple(widths), activation={"kind": "batchtopk", "k": k}
    )
    section = CoderSection(read=str(SITE), d_sae=d_sae, widths=tuple(widths), k=k, seed=seed)
    # rate and patience for a thousand small steps; the defaults are for dictionaries of many thousands
    training = TrainingSection(tokens=steps * batch, batch=batch, lr=4e-3, dead_after_tokens=20_000)
    generator = torch.Generator().manual_seed(1_000_003 + seed)  # never the seed that `measure` draws with

    plan = Plan("coder", section, Wiring.of([SITE], [SITE]), config)
    trainee = Trainee(plan, SparseCoder(config).initialise(seed, tied=True), training, steps)
    first, _ = tree.sample(2048, generator)
    trainee.calibrate(Batch({SITE: first}, torch.arange(2048)))
    for step in range(steps):
        x, _ = tree.sample(batch, generator)
        trainee.step(Batch({SITE: x}, torch.arange(batch)), step, measure=False)
    return trainee.folded()


@torch.no_grad()
def measure(coder: SparseCoder, tree: Tree, widths: Sequence[int] | None = None) -> dict[str, float]:
    """`coder` against the truth on 20,000 fresh tokens, at its inference threshold.

    A feature's latent is the one whose decoder row has the largest cosine with its direction, anywhere in the
    dictionary. Firing is counted over pairs of token and parent. `widths`: prefixes to report, by default the
    coder's own.
    """
    widths = tuple(widths or coder.widths)
    x, truth = tree.sample(20_000, torch.Generator().manual_seed(0))
    latents = coder.encode(x)
    meter = Meter(coder.config.model_copy(update={"widths": widths}))
    meter.update(x, coder.decode(latents, widths=widths), latents)

    rows = F.normalize(coder.decoder_rows(), dim=1)
    parent_cosine, parent_latent = (tree.parents @ rows.T).max(dim=-1)
    child_cosine, child_latent = (tree.children @ rows.T).max(dim=-1)
    fires = latents.dense()[:, parent_latent] > 0
    on, with_child = truth.parents, truth.children.any(dim=-1)
    values = {
        "parent_cosine": parent_cosine.mean(),
        "child_cosine": child_cosine.mean(),
        "child_to_parent": (rows[child_latent] * tree.parents[:, None]).sum(dim=-1).mean(),
        "in_first": (parent_latent < widths[0]).float().mean(),
        "absorption": 1 - fires[with_child].float().mean(),
        "recall": fires[on].float().mean(),
        "false_firing": fires[~on].float().mean(),
    }
    fvu = {f"fvu_{width}": value for width, value in zip(widths, meter.fvu(), strict=True)}
    return {name: value.item() for name, value in values.items()} | {"l0": meter.l0()} | fvu


ROWS = {
    "parent_cosine": "cosine: parent and its latent",
    "child_cosine": "cosine: child and its latent",
    "child_to_parent": "cosine: parent and its child's latent",
    "in_first": f"parents' latents among the first {MATRYOSHKA[0]}",
    "absorption": "parent and child on, parent's latent silent (absorption)",
    "recall": "parent on, its latent fires (recall)",
    "false_firing": "parent off, its latent fires",
    "l0": "active latents a token",
} | {f"fvu_{width}": f"FVU of the first {width} latents" for width in MATRYOSHKA}


def main(seeds: Sequence[int] = (0, 1, 2)) -> None:
    """Train both kinds for each seed and print their measures, mean ± standard deviation over the seeds."""
    torch.set_num_threads(1)  # the products are too small to be worth sharing among threads
    tree, console = Tree.grow(), Console()
    found: dict[str, list[dict[str, float]]] = {}
    for name, widths in {"plain": PLAIN, "Matryoshka": MATRYOSHKA}.items():
        with console.status(f"training {len(seeds)} {name} coders"):
            found[name] = [measure(train(widths, seed, tree), tree, MATRYOSHKA) for seed in seeds]

    parents, children, _ = tree.children.shape
    table = Table(title=f"{parents} parents × {children} children, {len(seeds)} seeds")
    table.add_column("on fresh tokens")
    for name in found:
        table.add_column(name, justify="right")
    for key, label in ROWS.items():
        table.add_row(label, *(_spread([each[key] for each in runs]) for runs in found.values()))
    console.print(table)


def _spread(values: Sequence[float]) -> str:
    return f"{mean(values):.3f} ± {stdev(values):.3f}" if len(values) > 1 else f"{values[0]:.3f}"


if __name__ == "__main__":
    main()
