"""What a run takes where nothing is said, by rules of its length: each is a number before anything starts, and is saved
as one.

    batch                √tokens · 0.65, to a power of two         more tokens: more steps and larger batches alike
    learning rate        2.8 / √(d · steps)                        a step turns a unit row of d numbers by lr · √d
    dead_after_tokens    tokens / 64                               so that who dies early still comes back

The exponents are of theory (Adam moves every number by lr; gradients that are noise add up as √steps), the constants of
sweeps: benchmarks/README.md, "The defaults", has them, and the commands that repeat them.
"""

import math


def batch(tokens: int) -> int:
    """Tokens in a step of a run of `tokens`."""
    return 2 ** min(12, max(7, round(math.log2(0.65 * math.sqrt(tokens)))))


def learning_rate(d: int, steps: int) -> float:
    """Peak rate of Adam, to two digits, for unit rows of `d` numbers and activations scaled so that E‖x‖² = d."""
    return float(f"{min(0.25 / math.sqrt(d), 2.8 / math.sqrt(d * steps)):.1e}")


def dead_after_tokens(tokens: int) -> int:
    """Tokens without firing after which a latent is dead, in a run of `tokens`."""
    return min(10_000_000, max(1, tokens // 64))
