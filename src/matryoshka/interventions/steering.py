"""What the language model writes while a feature is held at a level, beside what it writes by itself.

    y' = y + (α − a_f) W_dec[f] at every position but BOS and attention sinks,   α = strength · the feature's maximum

The unit of strength is the feature's own maximum on held-out text. Each token costs two passes over the text so far,
one of them up to the coder's sites only: no keys and values are kept.
"""

import math
from collections.abc import Callable
from operator import index
from typing import NamedTuple, SupportsIndex

import torch
from jaxtyping import Float, Int
from torch import Tensor

from matryoshka.data.tokens import Windows
from matryoshka.errors import MatryoshkaError
from matryoshka.interventions.changes import Change, activations, changed, check_features
from matryoshka.lm.model import LanguageModel
from matryoshka.lm.vocabulary import pieces
from matryoshka.progress import Progress, silent
from matryoshka.study.hooked import HookedCoder
from matryoshka.study.reader import batches, read, read_batch, spread_windows

RARE = 16
"""So many times the text is read for a feature that does not fire at first."""

Logits = Callable[[Int[Tensor, "1 position"]], Float[Tensor, "1 position vocab"]]

COLDEST = 1e-3
"""Of a temperature that is not 0: below it logits divided by it overflow."""


class Unit(NamedTuple):
    """What strength 1 is."""

    maximum: float
    """The feature's greatest activation, in raw units of what is written."""
    tokens: int
    """Of held-out text, that it was sought in."""


class Steered(NamedTuple):
    """Two continuations of one prompt."""

    feature: int
    strength: int | float
    unit: Unit
    prompt: str
    plain: str
    steered: str
    kl: list[float]
    """KL(unsteered ‖ steered) in nats, of each next-token distribution that the steered continuation was taken from."""


@torch.no_grad()
def measure_unit(
    lm: LanguageModel,
    windows: Windows,
    hooked: HookedCoder,
    feature: SupportsIndex,
    tokens: int,
    progress: Progress = silent,
) -> Unit:
    """The feature's maximum on windows that hold `tokens` tokens, spread evenly over the split; if it does not fire
    there, on RARE times as many.

    Raises MatryoshkaError for a feature that the coder does not have, or that never fires.
    """
    chosen, sought = check_features(hooked.coder, [feature]), 0
    for count in (tokens, RARE * tokens):
        numbers = spread_windows(windows, count)
        maximum, done, sought = 0, 0, len(numbers) * windows.context
        for rows in read(lm, batches(windows, numbers, read_batch(lm.device, windows.context)), [hooked]):
            maximum = max([maximum, *activations(rows.latents(hooked), chosen)[:, 0].tolist()])
            progress(done := done + len(rows.tokens), len(numbers))
        if maximum > 0:
            return Unit(maximum, sought)
    never = f"feature {feature} never fires on {sought:,} held-out tokens"
    raise MatryoshkaError(f"{never}, so there is no unit for the strength of steering it")


def steer(
    lm: LanguageModel,
    hooked: HookedCoder,
    feature: SupportsIndex,
    unit: Unit,
    strength: int | float,
    prompt: str,
    tokens: int,
    temperature: int | float = 0,
    seed: int = 0,
) -> Steered:
    """Go on after `prompt` for `tokens` tokens, or to the end of the text: by itself, and with the feature held at
    `strength` units.

    `temperature`: 0 takes the likeliest token each time; above 0, tokens are drawn by a generator of `seed`, anew for
    each of the two. Raises MatryoshkaError for a prompt that is empty, or with its continuation longer than the model
    reads.
    """
    if not (math.isfinite(strength) and (temperature == 0 or COLDEST <= temperature < math.inf)):
        raise MatryoshkaError(
            f"strength {strength}, temperature {temperature}: expected numbers, the second 0 or from {COLDEST} on"
        )
    change = Change(feature, level=strength * unit.maximum)
    ids = _prompt(lm, prompt, tokens)

    def steered_logits(ids: Int[Tensor, "1 position"]) -> Float[Tensor, "1 position vocab"]:
        kept = hooked.keep(ids, lm.read(ids, hooked.wiring.sites))
        with changed(lm, hooked, ids, kept, [change]):
            logits = lm.logits(ids)
        if not logits.isfinite().all():
            raise MatryoshkaError(f"strength {strength}: the model's predictions are not finite any more; give less")
        return logits

    both: tuple[Logits, Logits] = (lm.logits, steered_logits)
    texts, start = [_continue(lm, logits, ids, tokens, temperature, seed) for logits in both], ids.shape[1]
    p, q = (logits(texts[1])[0, start - 1 : start - 1 + tokens].float().log_softmax(-1) for logits in both)
    plain, steered = ("".join(pieces(text[0, start:].tolist(), lm.token_bytes)) for text in texts)
    return Steered(index(feature), strength, unit, prompt, plain, steered, (p.exp() * (p - q)).sum(-1).tolist())


def _prompt(lm: LanguageModel, prompt: str, tokens: int) -> Int[Tensor, "1 position"]:
    ids = lm.tokens(prompt)
    if ids.shape[1] < 2:
        raise MatryoshkaError(f"prompt {prompt!r}: too short, since the first position is never steered")
    length, context = ids.shape[1], lm.info.context
    if length + tokens > context:
        raise MatryoshkaError(f"a prompt of {length} tokens and {tokens} more: {lm.info.name} reads {context} at most")
    return ids


def _continue(
    lm: LanguageModel, logits: Logits, ids: Int[Tensor, "1 position"], tokens: int, temperature: int | float, seed: int
) -> Int[Tensor, "1 longer"]:
    generator = torch.Generator().manual_seed(seed)  # on the CPU: the same draws whatever the device
    ends = {lm.separator, lm.tokenizer.eos_token_id}
    for _ in range(tokens):
        last = logits(ids)[0, -1].float()
        if temperature > 0:
            token = torch.multinomial((last / temperature).softmax(-1).cpu(), 1, generator=generator).to(ids.device)
        else:
            token = last.argmax()[None]
        if token.item() in ends:
            break
        ids = torch.cat([ids, token[None]], 1)
    return ids
