"""What a run takes where nothing is said, by rules of its length: each is a number before anything starts, and is saved
as one.

    batch                0.65 √tokens, to a power of two from 128 to 4096: more tokens are more steps and larger ones
    learning rate        2 batch^¼ / (d^¾ √steps), for unit rows of d numbers and activations of E‖x‖² = d
    dead_after_tokens    tokens / 64, at least 1024, so that who dies early has time to come back
    lm_batch             16 windows on a CPU, where 4 to 32 are as fast; on a GPU as many as make 65,536 tokens, which
                         GPT-2 small reads 6.5 times as fast as 2048, or as memory allows; to a power of two

The rate's form is of theory: Adam moves every number by the rate, whatever the gradient, so that the steps of noise add
up as √steps, and larger batches have less of it. Its numbers, and the batch's, are of sweeps over batches of 128 to
2048, 48 to 1953 steps, d 192 and 576 and d_sae 1024 to 12,288, which did not matter: benchmarks/README.md, "The
defaults", has them.
"""

import math

LEAST_STEPS = 150
"""Shorter runs take the rate of so many: a larger one throws unit rows about."""
CPU_WINDOWS = 16
"""Windows in a forward pass on a CPU."""
GPU_TOKENS = 2**16
"""Tokens in a forward pass on a GPU, at most."""
FORWARD_SHARE = 8
"""The forward pass gets this part of the memory that the language model leaves: coders, their moments and two chunks of
activations need the rest."""


def batch(tokens: int) -> int:
    """Tokens in a step of a run of `tokens`."""
    return 2 ** min(12, max(7, round(math.log2(0.65 * math.sqrt(tokens)))))


def learning_rate(d: int, batch: int, steps: int) -> float:
    """Peak rate of Adam, to two digits, of a coder that reads `d` activations, for `steps` of `batch` tokens."""
    return float(f"{2 * batch**0.25 / (d**0.75 * math.sqrt(max(LEAST_STEPS, steps))):.1e}")


def dead_after_tokens(tokens: int) -> int:
    """Tokens without firing after which a latent is dead, in a run of `tokens`."""
    return min(10_000_000, max(1024, tokens // 64))


def gpu_windows(context: int, bytes_a_token: int, left: int) -> int:
    """Windows of `context` tokens in a forward pass on a GPU that holds `bytes_a_token` for each, where the language
    model leaves so many bytes: at least one."""
    tokens = min(GPU_TOKENS, left // FORWARD_SHARE // bytes_a_token)
    return 2 ** (max(1, tokens // context).bit_length() - 1)
