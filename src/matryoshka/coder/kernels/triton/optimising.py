"""A step of learning in two passes over the weights: one measures their gradients, one does all the rest.

(1) Σ g² of each block of numbers. Of rows on the unit sphere ⟨g, p⟩ as well: a row p learns from g − ⟨g, p⟩ p only, and
sums in float64 tell the norm of that in one reading, however much of g is parallel to p.
(2) One program adds these sums up in a fixed order: no atomics, the same bits every time. It counts the step and writes
what all numbers of a weight share.
(3) p, g and both moments are read once; p and the moments are written once. A row on the sphere stays in registers
until its norm is known; one that is too wide is read again, from the cache.

The weights without unit rows share their launches, however many they are.
"""

import math
from collections.abc import Sequence
from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from matryoshka.coder.kernels import ADAM_EPSILON, Taught, reference
from matryoshka.coder.kernels.triton import launch

MEASURED = 4096  # numbers of a program: eight loads of 16 bytes in flight for each of 128 threads
MEASURED_ROWS, MEASURED_COLUMNS = 4, 256  # a warp a row: two loads of 16 bytes from both places for each thread
LEARNED = 1024  # numbers of a program: two loads of 16 bytes from each of four places for each of 128 threads
ROW_COLUMNS, THREAD_COLUMNS = 4096, 16  # of a row in registers at once, and of it in a thread's
SUMMED = 4096  # sums that are added at once


@triton.jit
@no_type_check
def _measure(sums, gradients, numels, NUMBERS: tl.constexpr):
    program = tl.program_id(0)
    first = 0
    for i in tl.static_range(len(gradients)):
        after = first + tl.cdiv(numels[i], NUMBERS)
        if (program >= first) & (program < after):
            at = (program - first).to(tl.int64) * NUMBERS + tl.arange(0, NUMBERS)
            gradient = tl.load(gradients[i] + at, mask=at < numels[i], other=0).to(tl.float32)
            tl.store(sums + program, tl.sum(gradient * gradient))
        first = after


@triton.jit
@no_type_check
def _measure_rows(sums, parameters, gradients, products, rows, d, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    gg = tl.zeros([ROWS, COLUMNS], tl.float64)
    gp = tl.zeros([ROWS, COLUMNS], tl.float64)
    pp = tl.zeros([ROWS, COLUMNS], tl.float64)
    for start in range(0, d, COLUMNS):
        column = start + tl.arange(0, COLUMNS)[None, :]
        at, mask = row[:, None] * d + column, (row < rows)[:, None] & (column < d)
        g = tl.load(gradients + at, mask=mask, other=0).to(tl.float64)
        p = tl.load(parameters + at, mask=mask, other=0).to(tl.float64)
        gg += g * g
        gp += g * p
        pp += p * p
    product = tl.sum(gp, 1)
    tl.store(products + row, product, mask=row < rows)
    # ‖g − ⟨g, p⟩ p‖², also where rounding left ‖p‖ a little off 1
    left = tl.sum(gg, 1) - product * product * (2 - tl.sum(pp, 1))
    tl.store(sums + tl.program_id(0), tl.sum(tl.maximum(left, 0.0, propagate_nan=tl.PropagateNan.ALL)))


@triton.jit
@no_type_check
def _settle(
    sums, lr, norm, scales, steps, count, largest_norm,
    LOG_BETA1: tl.constexpr, LOG_BETA2: tl.constexpr, SUMMED: tl.constexpr,
):  # fmt: skip
    """`scales` become what divides gradients, inverted, and for each weight the rate over the bias of the first moment,
    and the root of that of the second, inverted. In float64, for 1 − β^step cancels in the first steps."""
    total = tl.zeros([SUMMED], tl.float64)
    for start in tl.range(0, count, SUMMED, loop_unroll_factor=4):  # four loads in flight
        at = start + tl.arange(0, SUMMED)
        total += tl.load(sums + at, mask=at < count, other=0).to(tl.float64)
    length = tl.sqrt(tl.sum(total))
    tl.store(norm, length)
    # NaN stays, so that it is seen
    tl.store(scales, 1 / tl.maximum(length / largest_norm, 1.0, propagate_nan=tl.PropagateNan.ALL))
    rate = tl.load(lr).to(tl.float64)
    for i in tl.static_range(len(steps)):
        step = tl.load(steps[i]) + 1
        tl.store(steps[i], step)
        step = step.to(tl.float64)
        tl.store(scales + 1 + 2 * i, rate / (1 - tl.exp(step * tl.full([], LOG_BETA1, tl.float64))))
        tl.store(scales + 2 + 2 * i, 1 / tl.sqrt(1 - tl.exp(step * tl.full([], LOG_BETA2, tl.float64))))


@triton.jit
@no_type_check
def _moved(
    weight, i, forgetful, scales, product, at, mask,
    BETA1: tl.constexpr, BETA2: tl.constexpr, EPSILON: tl.constexpr,
):  # fmt: skip
    """Where Adam moves the numbers `at` of weight `i`; their moments are written."""
    parameters, gradients, means, squares = weight
    parameter = tl.load(parameters + at, mask=mask, other=0).to(tl.float32)
    gradient = tl.load(gradients + at, mask=mask, other=0).to(tl.float32)
    mean = tl.load(means + at, mask=mask, other=0).to(tl.float32)
    mean = tl.where((gradient == 0) & (forgetful != 0), 0.0, mean)
    square = tl.load(squares + at, mask=mask, other=0).to(tl.float32)
    gradient = (gradient - product * parameter) * tl.load(scales)
    mean = BETA1 * mean + (1 - BETA1) * gradient
    square = BETA2 * square + (1 - BETA2) * (gradient * gradient)
    tl.store(means + at, mean, mask=mask)
    tl.store(squares + at, square, mask=mask)
    rate, root = tl.load(scales + 1 + 2 * i), tl.load(scales + 2 + 2 * i)
    return parameter - rate * mean / (tl.sqrt(square) * root + EPSILON)


@triton.jit
@no_type_check
def _learn(
    scales, weights, numels, forgetful,
    BETA1: tl.constexpr, BETA2: tl.constexpr, EPSILON: tl.constexpr, NUMBERS: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    first = 0
    for i in tl.static_range(len(weights)):
        after = first + tl.cdiv(numels[i], NUMBERS)
        if (program >= first) & (program < after):
            at = (program - first).to(tl.int64) * NUMBERS + tl.arange(0, NUMBERS)
            mask = at < numels[i]
            moved = _moved(weights[i], i, forgetful[i], scales, 0.0, at, mask, BETA1, BETA2, EPSILON)
            tl.store(weights[i][0] + at, moved, mask=mask)
        first = after


@triton.jit
@no_type_check
def _learn_rows(
    scales, weight, i, forgetful, products, d,
    BETA1: tl.constexpr, BETA2: tl.constexpr, EPSILON: tl.constexpr, TINY: tl.constexpr,
    COLUMNS: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    parameters, product, column = weight[0] + row * d, tl.load(products + row), tl.arange(0, COLUMNS)
    if WHOLE:
        moved = _moved(weight, i, forgetful, scales, product, row * d + column, column < d, BETA1, BETA2, EPSILON)
        norm = tl.maximum(tl.sqrt_rn(tl.sum(moved * moved)), TINY)
        tl.store(parameters + column, moved / norm, mask=column < d)
    else:
        total = tl.zeros([COLUMNS], tl.float32)
        for start in range(0, d, COLUMNS):
            mask = start + column < d
            moved = _moved(weight, i, forgetful, scales, product, row * d + start + column, mask, BETA1, BETA2, EPSILON)
            tl.store(parameters + start + column, moved, mask=mask)
            total += moved * moved
        norm = tl.maximum(tl.sqrt_rn(tl.sum(total)), TINY)
        tl.debug_barrier()
        for start in range(0, d, COLUMNS):
            mask = start + column < d
            moved = tl.load(parameters + start + column, mask=mask).to(tl.float32)
            tl.store(parameters + start + column, moved / norm, mask=mask)


def adam_(
    taught: Sequence[Taught], lr: float | Float[Tensor, ""], betas: tuple[float, float], largest_norm: float
) -> Float[Tensor, ""]:
    if any(one.parameter.dtype == torch.float64 for one in taught):
        return reference.adam_(taught, lr, betas, largest_norm)
    for one in taught:
        for tensor in one[:4]:
            launch.check_contiguous(tensor)
    on_sphere, free = ([one for one in taught if one.unit_rows is unit] for unit in (True, False))
    scales = torch.empty(1 + 2 * len(taught), dtype=torch.float32, device=taught[0].parameter.device)
    sums, products = _measured(free, on_sphere)
    norm = torch.empty_like(scales[0])
    lr = lr if isinstance(lr, Tensor) else torch.full_like(norm, lr)
    steps = tuple(one.step for one in (*free, *on_sphere))
    logs = {f"LOG_BETA{i}": math.log(beta) if beta else -math.inf for i, beta in enumerate(betas, 1)}
    sizes = {"SUMMED": SUMMED, "num_warps": 16}
    launch.run(_settle, (1,), sums, lr, norm, scales, steps, len(sums), largest_norm, **logs, **sizes)
    _learn_all(free, on_sphere, products, scales, betas)
    return norm


def _measured(free: Sequence[Taught], on_sphere: Sequence[Taught]) -> tuple[Float[Tensor, " programs"], list[Tensor]]:
    """(sums whose own sum is the squared norm of all gradients, ⟨g, p⟩ of the rows of each weight on the sphere)"""
    numels = tuple(one.parameter.numel() for one in free)
    programs = [sum(triton.cdiv(numel, MEASURED) for numel in numels)]
    programs += [triton.cdiv(len(one.parameter), MEASURED_ROWS) for one in on_sphere]
    sums = torch.empty(sum(programs), dtype=torch.float32, device=(*free, *on_sphere)[0].parameter.device)
    of_free, *of_sphere = sums.split(programs)
    products = [one.parameter.new_empty(len(one.parameter), dtype=torch.float32) for one in on_sphere]
    gradients = tuple(one.gradient for one in free)
    launch.run(_measure, (programs[0],), of_free, gradients, numels, NUMBERS=MEASURED)
    for one, part, product in zip(on_sphere, of_sphere, products, strict=True):
        matrices, size = (one.parameter, one.gradient), one.parameter.shape
        sizes = {"ROWS": MEASURED_ROWS, "COLUMNS": MEASURED_COLUMNS}
        launch.run(_measure_rows, (len(part),), part, *matrices, product, *size, **sizes)
    return sums, products


def _learn_all(
    free: Sequence[Taught],
    on_sphere: Sequence[Taught],
    products: Sequence[Tensor],
    scales: Float[Tensor, " scales"],
    betas: tuple[float, float],
) -> None:
    rates = {"BETA1": betas[0], "BETA2": betas[1], "EPSILON": ADAM_EPSILON}
    numels = tuple(one.parameter.numel() for one in free)
    programs = sum(triton.cdiv(numel, LEARNED) for numel in numels)
    weights, forgetful = tuple(one[:4] for one in free), tuple(int(one.forgetful) for one in free)
    launch.run(_learn, (programs,), scales, weights, numels, forgetful, NUMBERS=LEARNED, **rates)
    for i, (one, product) in enumerate(zip(on_sphere, products, strict=True), len(free)):
        rows, d = one.parameter.shape
        columns = min(ROW_COLUMNS, triton.next_power_of_2(d))
        sizes = {"COLUMNS": columns, "WHOLE": d <= columns, "TINY": torch.finfo(torch.float32).tiny}
        warps = max(1, columns // (32 * THREAD_COLUMNS))
        which = i, int(one.forgetful)
        launch.run(_learn_rows, (rows,), scales, one[:4], *which, product, d, **rates, **sizes, num_warps=warps)
