"""The latents that are a concept's own: one after another, as long as the F1 of a probe of them grows by more than
F1_JUMP on training rows of CHILDREN that neither they nor the probe were chosen by."""

from collections.abc import Sequence
from itertools import islice

import numpy as np
import scipy.sparse as sp
from jaxtyping import Bool, Int

from matryoshka.evaluation.shared.probes import Step, f1_left_out, fit, folds, forward, take

F1_JUMP = 0.03
MAX_MAIN = 10


def main_latents(
    latents: sp.csr_array, labels: Bool[np.ndarray, " n"], children: Sequence[str]
) -> Int[np.ndarray, " main"]:
    """The latents of a concept, best first, from training rows alone: as many as help on children left out.

    `children`: what each row is in particular, be it of the concept or not. Empty if no latent fires more with the
    concept than without.
    """
    parts, main, best = folds(children, labels), np.empty(0, dtype=np.int64), np.full(2, -np.inf)
    every = forward(latents, labels)
    others = zip(*(forward(latents[~part], labels[~part]) for part in parts), strict=False)
    for step, without in islice(zip(every, others, strict=False), MAX_MAIN):
        # the first says whether as many latents help that were chosen without the children they are to help on, the
        # second whether these very latents do: that of a left-out child would not
        same = [Step(step.latents, fit(take(latents[~part], step.latents), labels[~part])) for part in parts]
        reached = np.array([f1_left_out(latents, labels, parts, steps) for steps in (without, same)])
        if (reached <= best + F1_JUMP).any():
            break
        main, best = step.latents, reached
    return main
