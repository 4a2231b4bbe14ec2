"""The Triton kernels against the reference: interpreted on CPU tensors, or compiled where there is a GPU.

Blocks are made small so that small inputs fill several of them.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from interpreted import DEVICE, GPU, fast, interpret
from nested import nested

from matryoshka.coder import kernels
from matryoshka.coder.kernels import Taught, reference
from matryoshka.coder.latents import Pattern, from_mask
from matryoshka.coder.sparse import nested_errors

if fast is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

from matryoshka.coder.kernels.triton import (
    bookkeeping,
    launch,
    optimising,
    patterns,
    prefixes,
    quantising,
    selection,
    sums,
)

pytestmark = pytest.mark.timeout(900)  # the interpreter takes minutes on a machine that is busy
BLOCKS = [
    (selection, {"TOPK_ROUNDS": 4, "TOPK_MAX_GROUPS": 8, "BLOCK": 64, "PROGRAMS": 4, "TILE": 128}),
    (sums, {"DOTS_COLUMNS": 16, "PIECE": 4, "BAG_ROWS": 2, "BAG_COLUMNS": 16}),
    (
        optimising,
        {"MEASURED": 32, "MEASURED_ROWS": 2, "MEASURED_COLUMNS": 8, "LEARNED": 16, "ROW_COLUMNS": 16, "SUMMED": 4},
    ),
    (prefixes, {"ROWS": 2, "COLUMNS": 16, "ERRORS": 64, "PAIRS": 2, "PAIR_COLUMNS": 32, "ENTRIES": 32, "LATENTS": 4}),
    (patterns, {"SIZE": 16, "COMPARISONS": 16}),
    (bookkeeping, {"SIZE": 8, "LATENTS": 4, "ENTRIES": 2}),
]
REAL_BLOCKS = [(module, {name: getattr(module, name) for name in blocks}) for module, blocks in BLOCKS]
TABLES = st.sampled_from([torch.float32, torch.bfloat16])
SIZES = st.integers(1, 40)


def examples(n):
    phases = [Phase.generate]  # a failure is shown as found: shrinking it takes the interpreter minutes
    return settings(max_examples=n, database=None, phases=phases)


def set_blocks(patch, sizes):
    for module, blocks in sizes:
        for name, value in blocks.items():
            patch.setattr(module, name, value)


@pytest.fixture(autouse=True, scope="module")
def small_blocks():
    with pytest.MonkeyPatch.context() as patch:
        interpret(patch)
        set_blocks(patch, BLOCKS)
        yield


@st.composite
def random_tensors(draw, *shape, dtype=torch.float32):
    """Standard normal numbers; in half of the cases the rows are not adjacent."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    x = torch.randn(*shape[:-1], draw(st.sampled_from([1, 2])) * shape[-1], generator=generator)
    return x.to(dtype).to(DEVICE)[..., : shape[-1]]


@st.composite
def pre_activations(draw):
    """Normal, without positive entries, with ties, neighbouring codes, at the ends of rows only, at the very end
    only, of a few special values, or with few finite ones; contiguous or not."""
    batch, d_sae = draw(st.integers(1, 6)), draw(st.integers(1, 70))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    noise = torch.randn(batch, d_sae, generator=generator)
    levels = torch.tensor([-torch.inf, -1, -0.0, 0.0, 1e-30, 1, 1 + 2**-7, 1 + 2**-23, 3, torch.inf])
    pre = draw(
        st.sampled_from(
            [
                noise,
                -noise.abs(),
                (2 * noise).round(),
                1 + noise * 1e-5,
                torch.zeros_like(noise).index_fill_(1, torch.tensor([d_sae - 1]), 1),
                torch.zeros(batch * d_sae).index_fill_(0, torch.tensor([batch * d_sae - 1]), 1).view(batch, d_sae),
                levels[torch.randint(len(levels), noise.shape, generator=generator)],
                torch.where(noise > 1.5, noise, -torch.inf),
            ]
        )
    )
    pre = pre.to(draw(st.sampled_from([torch.bfloat16, torch.float32, torch.float16]))).to(DEVICE)
    return pre if draw(st.booleans()) else pre.t().contiguous().t()


@st.composite
def bag_lengths(draw):
    """Empty bags, bags that end on the border of a piece or next to it, and now and then a very long one."""
    return draw(st.lists(st.sampled_from([0, 0, 1, 2, 3, 4, 5, 7, 8, 9, 12, 29]), min_size=1, max_size=9))


def offsets_of(lengths):
    return torch.tensor([0, *lengths]).cumsum(0).to(DEVICE)


def transposed(lengths, data, rows=6):
    """(order, rows, indices, offsets) of so many entries of each latent."""
    entries = sum(lengths)
    order = data.draw(st.permutations(range(entries)))
    latents = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    order = torch.tensor(order, dtype=torch.int64, device=DEVICE)
    return order, data.draw(integers(rows, entries)), latents.to(DEVICE), offsets_of(lengths)


def integers(n, size):
    return st.integers(0, 2**32 - 1).map(
        lambda seed: torch.randint(n, (size,), generator=torch.Generator().manual_seed(seed)).to(DEVICE)
    )


@examples(40)
@given(pre_activations(), st.data())
def test_topk_finds_the_largest_positive_of_each_row_and_k_distinct_ones(pre, data):
    k = data.draw(st.sampled_from(sorted({1, min(3, pre.shape[1]), (pre.shape[1] + 1) // 2, pre.shape[1]})))
    indices = fast.topk(pre, k)
    assert indices.shape == (len(pre), k)
    assert all(len(set(row)) == k and min(row) >= 0 and max(row) < pre.shape[1] for row in indices.tolist())
    assert (indices.diff(dim=1) > 0).all(), "ascending"
    got, expected = (pre.gather(1, i).relu().sort(dim=1).values for i in (indices, reference.topk(pre, k)))
    assert got.equal(expected)


@examples(40)
@given(pre_activations(), st.data())
def test_batch_topk_finds_the_first_of_the_largest_and_fills_up_to_n(pre, data):
    n = data.draw(st.integers(0, pre.numel()) | st.just(pre.numel()) | st.just(min(5, pre.numel())))
    positions = fast.batch_topk(pre, n)
    assert len(positions) == n
    assert (positions.diff() > 0).all()
    assert all(0 <= p < pre.numel() for p in positions.tolist())
    assert positions[pre.flatten()[positions] > 0].equal(reference.batch_topk(pre, n))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("every", [1, 2, 9, 400])
def test_batch_topk_in_groups_of_any_size(dtype, every):
    """Of few and of many entries a group: ties, and positive entries in the last group only among them."""
    generator = torch.Generator().manual_seed(every)
    pre = (4 * torch.randn(3, 700, generator=generator)).round().to(dtype).to(DEVICE)
    for x in pre, torch.where(torch.arange(700, device=DEVICE) > 690, pre, -1):
        n = x.numel() // every
        positions = fast.batch_topk(x, n)
        assert len(positions) == n
        assert (positions.diff() > 0).all()
        assert positions[x.flatten()[positions] > 0].equal(reference.batch_topk(x, n))


@pytest.mark.parametrize("d_sae", [40, 4096])
def test_selecting_candidates_and_cutting_them_is_few_launches(d_sae, monkeypatch):
    """In bfloat16 the candidates, in float32 the cut; each launches one `zeros` besides at most."""
    names, run = [], launch.run
    monkeypatch.setattr(
        launch, "run", lambda kernel, grid, *a, **k: (names.append(kernel.fn.__name__), run(kernel, grid, *a, **k))
    )
    pre = torch.randn(4, d_sae, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    positions = fast.batch_topk(pre.bfloat16(), 40)
    exact = pre.flatten()[positions][None]
    cut = fast.batch_topk(exact, 32)
    assert pre.flatten()[positions[cut]].sort().values.equal(exact.flatten().sort().values[-32:])
    search = [*["_batch_topk_level"] * 2, "_batch_topk_write"]
    proposing = search if d_sae == 40 else ["_batch_topk_maxima", *search, *search]
    assert names == [*proposing, *["_batch_topk_level"] * 3, "_batch_topk_write"]


def equal(ours, theirs):
    return all(equal(a, b) if isinstance(a, tuple) else a.equal(b) for a, b in zip(ours, theirs, strict=True))


@examples(40)
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([0.0, 0.1, 0.9, 1.0]), st.data())
def test_entries_are_located_transposed_and_kept(batch, d_sae, share, data):
    """None, some and all of them; rows and latents without any; long runs of what is dropped and of what is kept."""
    chosen = data.draw(random_tensors(batch * d_sae)).abs() < 2 * share
    chosen[: data.draw(st.integers(0, batch * d_sae))] &= data.draw(st.booleans())
    located = fast.locate(reference.nonzero(chosen[None]), batch, d_sae)
    assert equal(located, reference.locate(reference.nonzero(chosen[None]), batch, d_sae))
    by = fast.transpose(*located[:2], d_sae)
    assert equal(by, reference.transpose(*located[:2], d_sae))
    values = data.draw(random_tensors(len(located[0])))
    mask = data.draw(integers(8, len(values))) < data.draw(st.integers(0, 8))
    mask[: data.draw(st.integers(0, len(mask)))] = data.draw(st.booleans())
    places = reference.nonzero(mask[None])
    assert equal(fast.keep(places, located, values, by), reference.keep(places, located, values, by))


@examples(20)
@given(TABLES, st.integers(1, 5), SIZES, st.data())
def test_rows_are_quantised_and_zeros_stay(dtype, n, d, data):
    rows = data.draw(random_tensors(n, d, dtype=dtype))
    rows[0] = 0
    rows[-1] *= 1e4
    if data.draw(st.booleans()):
        rows = rows.t().contiguous().t()
    quantised, scales = fast.quantise_rows(rows)
    expected, expected_scales = reference.quantise_rows(rows)
    assert quantised.dtype == torch.float8_e4m3fn
    torch.testing.assert_close(scales, expected_scales)
    ours, theirs = quantised.float(), expected.float()
    if not GPU:  # the interpreter loses what is carried into the exponent
        carried = (theirs.frexp().mantissa.abs() == 0.5) & (theirs.abs() > (rows.float() / scales).abs())
        ours = torch.where(carried, theirs, ours)
    # a number that is halfway between two may go either way
    torch.testing.assert_close(ours, theirs, rtol=0.13, atol=2**-8)
    assert (ours != theirs).float().mean() <= 0.1
    assert not ours[0].any() or n == 1


@examples(20)
@given(st.sampled_from([1, 5, 300, 40000, 70000]), st.integers(0, 200), st.data())
def test_group_is_the_stable_order(n, entries, data):
    """Of keys that fit into 16 bits, and of larger ones, whose programs have more entries, as there are so many."""
    keys = data.draw(integers(n, entries))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(patterns, "SIZE", 16 if n <= 300 else 1024)
        order, offsets = fast.group(keys, n)
    expected_order, expected_offsets = reference.group(keys, n)
    assert order.equal(expected_order)
    assert offsets.equal(expected_offsets)


@examples(20)
@given(TABLES, TABLES, st.integers(0, 20), SIZES, st.data())
def test_dots(a_dtype, b_dtype, entries, d, data):
    a, b = data.draw(random_tensors(7, d, dtype=a_dtype)), data.draw(random_tensors(5, d, dtype=b_dtype))
    if data.draw(st.booleans()):
        a = a.t().contiguous().t()  # columns apart
    i, j = data.draw(integers(7, entries)), data.draw(integers(5, entries))
    torch.testing.assert_close(fast.dots(a, b, i, j), reference.dots(a.float(), b.float(), i, j))


@examples(40)
@given(TABLES, TABLES, bag_lengths(), SIZES, st.data())
def test_bags(table_dtype, weight_dtype, lengths, d, data):
    table = data.draw(random_tensors(6, d, dtype=table_dtype))
    if data.draw(st.booleans()):
        table = table.t().contiguous().t()
    rows = data.draw(integers(6, sum(lengths)))
    weights = data.draw(random_tensors(sum(lengths), dtype=weight_dtype))
    found = fast.bags(table, rows, weights, offsets_of(lengths))
    expected = reference.bags(table.float(), rows, weights.float(), offsets_of(lengths))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)


@examples(30)
@given(TABLES, TABLES, bag_lengths(), SIZES, st.data())
def test_exact_values_and_their_gradients(x_dtype, W_dtype, lengths, d, data):
    by = transposed(lengths, data)
    x, W = data.draw(random_tensors(6, d, dtype=x_dtype)), data.draw(random_tensors(len(lengths), d, dtype=W_dtype))
    biases, gradient = data.draw(random_tensors(len(lengths))), data.draw(random_tensors(sum(lengths)))
    torch.testing.assert_close(fast.exact(x, W, biases, by), reference.exact(x.float(), W.float(), biases, by))
    found = fast.encoder_gradients(x, gradient, by)
    torch.testing.assert_close(found, reference.encoder_gradients(x.float(), gradient, by))
    assert equal(found, fast.encoder_gradients(x, gradient, by))


def test_bags_of_no_entries_are_zeros():
    none = torch.zeros(0, dtype=torch.int64, device=DEVICE)
    found = fast.bags(torch.ones(3, 5, device=DEVICE), none, none.float(), offsets_of([0, 0]))
    assert found.equal(torch.zeros(2, 5, device=DEVICE))


def test_bags_share_a_long_bag_among_programs_and_give_the_same_bits(monkeypatch):
    table, weights = torch.randn(50, 20, device=DEVICE), torch.randn(203, device=DEVICE)
    rows, offsets = torch.arange(203, device=DEVICE) % 50, offsets_of([0, 0, 201, 0, 2])
    grids, run = [], launch.run
    borders = 202 // 4
    monkeypatch.setattr(launch, "run", lambda kernel, grid, *a, **k: (grids.append(grid), run(kernel, grid, *a, **k)))
    found = fast.bags(table, rows, weights, offsets)
    assert grids == [(5 + borders, 2), (borders, 2)]
    assert found.equal(fast.bags(table, rows, weights, offsets))
    torch.testing.assert_close(found, reference.bags(table, rows, weights, offsets), rtol=1e-4, atol=1e-5)


def prefixes_by(operations, case, biased=False):
    """(sums, what is left, the gradients)"""
    W_dec, values, pattern, target, widths, scale = case
    bias = target[0] if biased else None
    sums, left = operations.prefix_errors(W_dec, values, *pattern.located, target, bias, widths)
    parts = left, scale, W_dec, values, pattern.by_latent, widths
    return sums, left.clone(), *operations.prefix_gradients(*parts, each_row=not biased)


@examples(15)
@given(nested(torch.float32, DEVICE), st.booleans())
def test_prefix_errors_and_their_gradients(case, biased):
    found = prefixes_by(fast, case, biased)
    torch.testing.assert_close(found, prefixes_by(reference, case, biased), rtol=1e-5, atol=1e-4)


def test_nested_errors_learn_as_the_dense_formula_does_and_give_the_same_bits():
    """Of a latent on all rows (a long one), of empty rings, of a row without entries."""
    batch, d_sae, d, widths = 11, 14, 19, (3, 4, 8, 14)
    generator = torch.Generator().manual_seed(0)
    pre, W_dec, target = (
        torch.randn(*shape, generator=generator) for shape in ((batch, d_sae), (d_sae, d), (batch, d))
    )
    active = pre > 0.3
    active[:, 5], active[:, 3], active[4] = True, False, False
    exact = [x.double().requires_grad_() for x in (pre, W_dec, target)]
    y_hat = torch.stack([(exact[0] * active)[:, :n] @ exact[1][:n] for n in widths])
    expected = (exact[2] - y_hat).square().sum(-1).mean(-1)
    theirs = torch.autograd.grad(0.7 * expected.sum(), exact)
    runs = []
    with kernels.using(fast):
        for _ in range(2):
            ours = [x.to(DEVICE).requires_grad_() for x in (pre, W_dec, target)]
            latents = from_mask(ours[0], active.flatten().nonzero().squeeze(1).to(DEVICE))
            errors, total, excess = nested_errors(latents, *ours[1:], widths)
            runs.append([errors, excess, *torch.autograd.grad(0.7 * total, ours)])
    assert all(a.equal(b) for a, b in zip(*runs, strict=True))
    for a, b in zip(runs[0], [expected, y_hat[-1] - exact[2], *theirs], strict=True):
        torch.testing.assert_close(a.cpu().double(), b, rtol=1e-5, atol=1e-5, check_stride=False)


@st.composite
def taught_weights(draw):
    """A matrix of unit rows, in registers as a whole or in pieces, and other weights, early and late in training. Its
    first row is zeros; of each weight one row has no gradient."""
    rows, d = draw(st.integers(1, 7)), draw(SIZES)
    shapes = draw(st.lists(st.sampled_from([(1,), (16,), (33,), (5, 9)]), max_size=3))
    shapes.insert(draw(st.integers(0, len(shapes))), (rows, d))
    step, generator = draw(st.sampled_from([0, 1, 999])), torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    taught = []
    for shape in shapes:
        parameter, gradient, mean, square = torch.randn(4, *shape, generator=generator)
        gradient[draw(st.integers(0, len(gradient) - 1))] = 0
        if unit_rows := shape == (rows, d):
            parameter = torch.nn.functional.normalize(parameter, dim=1)
            parameter[0] = 0
        moments = (mean, square.square()) if step else (torch.zeros_like(mean), torch.zeros_like(square))
        tensors = (x.contiguous().to(DEVICE) for x in (parameter, gradient, *moments, torch.tensor(float(step))))
        forgetful = not unit_rows and draw(st.booleans())  # whether nothing is left of a row's is a matter of rounding
        taught.append(Taught(*tensors, unit_rows, forgetful))
    return taught


def copies(taught, dtype=torch.float32):
    return [Taught(*(x.to(dtype, copy=True) for x in one[:4]), one.step.clone(), *one[5:]) for one in taught]


@examples(60)
@given(taught_weights(), st.sampled_from([1e-3, 1e6]), st.sampled_from([(0.9, 0.999), (0.0, 0.99)]), st.booleans())
def test_adam(taught, largest_norm, betas, rate_on_device):
    exact, again = copies(taught, torch.float64), copies(taught)
    lr = torch.tensor(1e-2, device=DEVICE) if rate_on_device else 1e-2
    norm = fast.adam_(taught, lr, betas, largest_norm)
    torch.testing.assert_close(norm, reference.adam_(exact, 1e-2, betas, largest_norm).float())
    for ours, theirs in zip(taught, exact, strict=True):
        for name in ("parameter", "exp_avg", "exp_avg_sq", "step"):
            close = {"rtol": 1e-5, "atol": 1e-6, "check_dtype": False, "msg": name}
            torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), **close)
    assert norm.equal(fast.adam_(again, lr, betas, largest_norm))
    for ours, same in zip(taught, again, strict=True):
        assert all(a.equal(b) for a, b in zip(ours[:5], same[:5], strict=True))


@pytest.mark.parametrize("version", [fast, reference])
def test_forgetful_weights_move_only_where_they_have_a_gradient(version):
    before, gradient, mean, square = torch.rand(4, 3, 5, generator=torch.Generator().manual_seed(0)).to(DEVICE) + 0.1
    gradient[1] = 0
    for forgetful in False, True:
        one = Taught(
            before.clone(), gradient.clone(), mean.clone(), square.clone(), torch.ones((), device=DEVICE), False
        )
        version.adam_([one._replace(forgetful=forgetful)], 1e-2, (0.9, 0.999), 1e6)
        moved, remembered = (one.parameter != before).all(1), (one.exp_avg != 0).all(1)
        assert moved.tolist() == remembered.tolist() == [True, not forgetful, True]


def test_adam_leaves_rows_of_zeros_without_a_gradient_as_they_are():
    parameter, gradient, *moments = torch.zeros(4, 3, 5, device=DEVICE)
    fast.adam_([Taught(parameter, gradient, *moments, torch.zeros((), device=DEVICE), True)], 1e-2, (0.9, 0.999), 1.0)
    assert not parameter.any()


def test_adam_knows_the_norm_of_what_is_left_of_nearly_parallel_gradients():
    rows, others = torch.randn(2, 6, 40, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    parameter = torch.nn.functional.normalize(rows, dim=1)
    taught = [
        Taught(parameter, 1e5 * parameter + others, *torch.zeros(2, 6, 40).to(DEVICE), torch.zeros(()).to(DEVICE), True)
    ]
    exact = copies(taught, torch.float64)
    norm, expected = (
        operations.adam_(x, 1e-2, (0.9, 0.999), 1.0) for operations, x in ((fast, taught), (reference, exact))
    )
    torch.testing.assert_close(norm, expected.float(), rtol=1e-6, atol=0)


def test_adam_shows_a_gradient_that_is_not_finite():
    parameter, gradient, *moments = torch.ones(4, 2, 5, device=DEVICE)
    gradient[1, 2] = torch.nan
    norm = fast.adam_(
        [Taught(parameter, gradient, *moments, torch.zeros((), device=DEVICE), False)], 1e-2, (0.9, 0.999), 1.0
    )
    assert norm.isnan()
    assert parameter.isnan().all(), "all are divided by the norm"


def test_adam_is_five_launches_and_reads_the_weights_twice(monkeypatch):
    """Whatever the number of weights without unit rows."""
    launches = []
    monkeypatch.setattr(launch, "run", lambda kernel, grid, *_, **__: launches.append((kernel.fn.__name__, grid)))
    shapes = ((600, 12), True), ((600, 10), False), ((600,), False), ((10,), False)
    taught = [Taught(*torch.ones(4, *shape), torch.zeros(()), unit_rows) for shape, unit_rows in shapes]
    fast.adam_(taught, torch.tensor(1e-2), (0.9, 0.999), 1.0)
    blocks = [sum(-(-n // size) for n in (6000, 600, 10)) for size in (optimising.MEASURED, optimising.LEARNED)]
    assert launches == [
        ("_measure", (blocks[0],)),
        ("_measure_rows", (300,)),
        ("_settle", (1,)),
        ("_learn", (blocks[1],)),
        ("_learn_rows", (600,)),
    ]


@examples(30)
@given(TABLES, SIZES, st.sampled_from([-9.0, 0.0, 9.0]), st.sampled_from([0, 1, 2, 40]), st.data())
def test_a_threshold_follows_the_smallest_positive_value(dtype, entries, shift, steps, data):
    values = data.draw(random_tensors(entries, dtype=dtype)) + shift
    ours, theirs = ((torch.tensor(2.5, device=DEVICE), torch.tensor(steps, device=DEVICE)) for _ in range(2))
    fast.follow_smallest_(*ours, values, 0.8)
    reference.follow_smallest_(*theirs, values, 0.8)
    torch.testing.assert_close(ours, theirs)
    assert ours[1] == steps + (values > 0).any()


@examples(30)
@given(bag_lengths(), st.data())
def test_silence_ends_where_an_entry_is_positive(lengths, data):
    by = transposed(lengths, data)
    values = data.draw(integers(2, sum(lengths))).float() * data.draw(integers(2, sum(lengths)))
    ours = data.draw(integers(1000, len(lengths)))
    theirs = ours.clone()
    fast.count_silence_(ours, values, by, 7)
    reference.count_silence_(theirs, values, by, 7)
    assert ours.equal(theirs)


@pytest.mark.parametrize("version", [fast, reference])
@pytest.mark.parametrize("where", ["x", "term", "sum of both", None])
def test_terms_are_added_up_and_the_first_bad_step_is_kept(version, where):
    x, terms = torch.ones(5, 3, device=DEVICE), [torch.tensor(float(i), device=DEVICE) for i in range(4)]
    terms[1], sums = None, torch.full((4,), 0.5, dtype=torch.float64, device=DEVICE)
    if where == "x":
        x[2, 1] = torch.nan
    elif where is not None:
        terms[3], x[0, 0] = torch.tensor(torch.inf, device=DEVICE), 1 if where == "term" else -torch.inf
    for before, bad in (-1, -1 if where is None else 6), (3, 3):
        bad_step = torch.tensor(before, device=DEVICE)
        version.tally_(sums, terms, x, bad_step, torch.tensor(6, device=DEVICE))
        assert bad_step == bad
    last = 6.5 if where in ("x", None) else torch.inf
    assert sums.tolist() == [0.5, 0.5, 4.5, last]


@examples(20)
@given(st.integers(1, 9), SIZES, st.data())
def test_variance(batch, d, data):
    y = data.draw(random_tensors(batch, d)) + 3
    torch.testing.assert_close(fast.variance(y), reference.variance(y.double()).float())


def test_what_is_overwritten_must_be_contiguous():
    one = Taught(*torch.zeros(4, 3, 8, device=DEVICE)[..., ::2], torch.zeros((), device=DEVICE), False)
    with pytest.raises(ValueError, match="contiguous"):
        fast.adam_([one], 1e-2, (0.9, 0.999), 1.0)


def test_float64_is_left_to_the_reference():
    x = torch.randn(4, 30, dtype=torch.float64, device=DEVICE)
    i = torch.tensor([0, 3, 2], device=DEVICE)
    assert fast.topk(x, 3).equal(reference.topk(x, 3).sort(dim=1).values)
    assert fast.batch_topk(x, 9).equal(reference.batch_topk(x, 9))
    assert fast.dots(x, x, i, i).equal(reference.dots(x, x, i, i))
    assert fast.bags(x, i, x[0, :3], offsets_of([1, 2])).equal(reference.bags(x, i, x[0, :3], offsets_of([1, 2])))
    case = x, x[0, :3], Pattern(i, offsets_of([1, 2]), 4), x[:2], torch.tensor([2, 4], device=DEVICE), x[0, 0]
    assert all(a.equal(b) for a, b in zip(prefixes_by(fast, case), prefixes_by(reference, case), strict=True))
    ours, theirs = x.clone(), x.clone()
    for operations, each in (fast, ours), (reference, theirs):
        one = Taught(each[:2], each[2:], *torch.zeros_like(each).split(2), torch.zeros((), device=DEVICE), True)
        operations.adam_([one], 1e-2, (0.9, 0.999), 1.0)
    assert ours.equal(theirs)
    assert not ours[:2].equal(x[:2])


def test_every_kernel_compiles_for_an_h100(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(tmp_path)}
    program = [sys.executable, str(Path(__file__).with_name("compile_triton.py"))]
    run = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=200)
    assert run.returncode == 0, run.stderr
    modules = bookkeeping, patterns, selection, sums, prefixes, quantising, optimising
    everything = {name: value for module in modules for name, value in vars(module).items()}
    parts = {"_below", "_keep_largest", "_digits", "_codes", "_bag_at", "_piece_of", "_moved"}  # of kernels
    kernels = {name for name, value in everything.items() if hasattr(value, "fn")} - parts
    assert {line.split()[0] for line in run.stdout.splitlines()} == kernels


@pytest.fixture
def real_blocks(monkeypatch):
    """The blocks as users have them."""
    set_blocks(monkeypatch, REAL_BLOCKS)


@pytest.mark.gpu
@pytest.mark.skipif(not GPU, reason="no GPU")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.usefixtures("real_blocks")
def test_at_the_sizes_of_a_training_step(dtype):
    batch, d_sae, d, k = 2048, 65536, 2304, 32
    pre = torch.randn(batch, d_sae, device=DEVICE).to(dtype)
    pre[:, 7] += 9  # a dense latent: one bag of 2048 entries
    got, expected = (pre.gather(1, i).sort(dim=1).values for i in (fast.topk(pre, k), reference.topk(pre, k)))
    assert got.equal(expected)
    positions = fast.batch_topk(pre, k * batch)
    assert positions.equal(reference.batch_topk(pre, k * batch))
    order, offsets = fast.group(positions % d_sae, d_sae)
    expected_order, expected_offsets = reference.group(positions % d_sae, d_sae)
    assert order.equal(expected_order)
    assert offsets.equal(expected_offsets)
    x, weight = torch.randn(batch, d, device=DEVICE).to(dtype), torch.randn(d_sae, d, device=DEVICE).to(dtype)
    i, j, values = (positions // d_sae)[order], (positions % d_sae)[order], pre.flatten()[positions][order]
    close = {"rtol": 1e-3, "atol": 1e-3}
    torch.testing.assert_close(fast.dots(x, weight, i, j), reference.dots(x.float(), weight.float(), i, j), **close)
    expected = reference.bags(x.float(), i, values.float(), offsets)
    torch.testing.assert_close(fast.bags(x, i, values, offsets), expected, **close)
    latents, widths = from_mask(pre.float(), positions), torch.tensor([d_sae // 16, d_sae // 4, d_sae], device=DEVICE)
    case = weight.float() / d**0.5, latents.values, latents.pattern, x.float(), widths, torch.tensor(0.1, device=DEVICE)
    torch.testing.assert_close(prefixes_by(fast, case), prefixes_by(reference, case), **close)


@pytest.mark.gpu
@pytest.mark.skipif(not GPU, reason="no GPU")
@pytest.mark.parametrize("d", [2304, 9216])
@pytest.mark.usefixtures("real_blocks")
def test_adam_at_the_sizes_of_a_training_step(d):
    """Rows as a whole, and rows in pieces that are read again."""
    d_sae = 65536 * 2304 // d
    shapes = ((d_sae, d), True), ((d_sae, d), False), ((d_sae,), False), ((d,), False)
    generator = torch.Generator(DEVICE).manual_seed(0)
    ours = []
    for shape, unit_rows in shapes:
        p, g, mean, square = (torch.randn(*shape, device=DEVICE, generator=generator) for _ in range(4))
        if unit_rows:
            reference.normalise_rows_(p)
        ours.append(Taught(p, g, mean, square.square_().add_(0.1), torch.tensor(9.0, device=DEVICE), unit_rows))
    theirs = copies(ours)
    norms = [operations.adam_(x, 1e-3, (0.9, 0.999), 1.0) for operations, x in ((fast, ours), (reference, theirs))]
    torch.testing.assert_close(*norms)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close((a.parameter, *a[2:5]), (b.parameter, *b[2:5]), rtol=1e-4, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not GPU, reason="no GPU")
@pytest.mark.usefixtures("real_blocks")
def test_a_cuda_graph_captures_all_of_it():
    """Capture fails at the first host sync."""
    pre, x = torch.randn(256, 4096, device=DEVICE).bfloat16(), torch.randn(256, 768, device=DEVICE)
    lr = torch.tensor(1e-2, device=DEVICE)
    widths = torch.tensor([512, 4096], device=DEVICE)

    def step():
        selected = fast.topk(pre, 16)
        positions = fast.batch_topk(pre, 5000)
        cut = fast.batch_topk(pre.flatten()[positions].float()[None], 4096)
        located = fast.locate(positions, 256, 4096)
        by = fast.transpose(*located[:2], 4096)
        (_, rows, starts), _, by = fast.keep(cut, located, pre.flatten()[positions].float(), by)
        _, i, j, offsets = by
        positions = positions[cut]
        bags = fast.bags(x, i, fast.dots(x, x, i, j % 256), offsets)
        errors, left = fast.prefix_errors(bags, x[rows, 0], positions % 4096, rows, starts, x, x[0], widths)
        parts = left, errors[0].rsqrt(), bags, x[rows, 0], by, widths
        gradients = fast.prefix_gradients(*parts, each_row=False)
        one = Taught(left[0], left[1], *torch.zeros_like(left), x.new_zeros(()), True)
        norm = fast.adam_([one], lr, (0.9, 0.999), 1.0)
        proposed = fast.product(x, x[:64].T, x[:64, 0], "fp8")
        return selected, proposed, positions, bags, errors, left, norm, *gradients

    step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    pre.copy_(torch.randn_like(pre))
    x.copy_(torch.randn_like(x))
    lr.fill_(3e-3)
    graph.replay()
    assert all(a.equal(b) for a, b in zip(captured, step(), strict=True))
