"""The fast operations on a CPU against `reference`: over shapes, ties, empty rows and bags, dtypes and strides."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nested import nested

from matryoshka.coder.kernels import Taught, cpu, operations, reference

FLOATS = st.sampled_from([torch.bfloat16, torch.float32, torch.float64])
CHECK = settings(max_examples=60)


def normal(*shape, seed, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@st.composite
def matrices(draw, dtypes=FLOATS):
    """Pre-activations: few or many latents, all different or full of ties, some rows without a positive entry, and
    sometimes a view of a wider or a transposed tensor."""
    batch, d_sae = draw(st.integers(1, 6)), draw(st.one_of(st.integers(1, 40), st.integers(500, 1200)))
    pre = normal(batch, d_sae, seed=draw(st.integers(0, 99)), dtype=draw(dtypes))
    if draw(st.booleans()):
        pre = (2 * pre).round()  # ties
    pre[: draw(st.integers(0, batch))] *= draw(st.sampled_from([1, -1, 0]))
    if draw(st.booleans()):
        pre -= 3  # few are positive
    match draw(st.sampled_from(["contiguous", "columns", "transposed"])):
        case "columns":
            pre = torch.cat([pre, pre], dim=1)[:, :d_sae]
        case "transposed":
            pre = pre.T.contiguous().T
    return pre


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "fp8"])
@pytest.mark.parametrize("transposed", [False, True])
def test_the_product_is_addmm_of_operands_of_its_precision(precision, transposed):
    inputs, W, b = normal(9, 40, seed=0), normal(40, 70, seed=1), normal(70, seed=2)
    if transposed:
        W = W.T.contiguous().T
    ours, theirs = (version.product(inputs, W, b, precision) for version in (cpu, reference))
    assert ours.dtype == theirs.dtype == (torch.float32 if precision == "float32" else torch.bfloat16)
    torch.testing.assert_close(ours, theirs)
    tolerance = {"float32": 1e-5, "bfloat16": 0.1, "fp8": 1.0}[precision]
    torch.testing.assert_close(ours.float(), inputs @ W + b, rtol=0, atol=tolerance)


@CHECK
@given(pre=matrices(), data=st.data())
def test_topk_selects_the_k_largest_positive_entries_of_each_row(pre, data):
    k = data.draw(st.integers(1, min(pre.shape[1], 50)))
    indices = cpu.topk(pre, k)
    assert indices.shape == (len(pre), k)
    assert all(len(row.unique()) == k for row in indices)
    ours = pre.gather(1, indices).relu().sort(1).values
    assert torch.equal(ours, pre.gather(1, reference.topk(pre, k)).relu().sort(1).values)


@pytest.mark.parametrize("width", [50, 100])
def test_topk_names_distinct_latents_where_all_are_minus_zero(width):
    found = cpu.topk(torch.full((3, width), -0.0), 3)
    assert found.max() < width
    assert all(len(set(row)) == len(row) for row in found.tolist())


@CHECK
@given(pre=matrices(), data=st.data())
def test_batch_topk_selects_what_a_stable_sort_selects(pre, data):
    n = data.draw(st.integers(1, min(pre.numel(), 400)))
    assert torch.equal(cpu.batch_topk(pre, n), reference.batch_topk(pre, n))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_selection_is_exact_at_the_size_of_a_training_batch(dtype):
    pre = normal(256, 6150, seed=0, dtype=dtype)
    pre[:, ::7] = pre[:, 1::7][:, : pre[:, ::7].shape[1]]  # ties within rows
    assert torch.equal(cpu.batch_topk(pre, 32 * 256), reference.batch_topk(pre, 32 * 256))
    ours, theirs = (pre.gather(1, module.topk(pre, 32)).sort(1).values for module in (cpu, reference))
    assert torch.equal(ours, theirs)


@CHECK
@given(pre=matrices(), threshold=st.sampled_from([-10.0, 0.0, 1.0, 10.0]))
def test_nonzero_lists_a_mask(pre, threshold):
    assert torch.equal(cpu.nonzero(pre > threshold), reference.nonzero(pre > threshold))


@CHECK
@given(n=st.sampled_from([1, 3, 70_000, 2**18]), entries=st.integers(0, 300), seed=st.integers(0, 99))
def test_group_is_a_stable_sort(n, entries, seed):
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randint(max(0, n - 100_000), n, (entries,), generator=generator)
    keys[: entries // 2] = n - 1
    for ours, theirs in zip(cpu.group(keys, n), reference.group(keys, n), strict=True):
        assert torch.equal(ours, theirs)


@st.composite
def tables(draw):
    """(two tables, entries into both, weights, bags of very different length)"""
    d, n, m, entries = (
        draw(st.integers(1, 40)),
        draw(st.integers(1, 9)),
        draw(st.integers(1, 9)),
        draw(st.integers(0, 60)),
    )
    seed, dtype = draw(st.integers(0, 99)), draw(st.sampled_from([torch.float32, torch.float64]))
    generator = torch.Generator().manual_seed(seed)
    a, b = normal(n, d, seed=seed, dtype=dtype), normal(m, d, seed=seed + 1, dtype=dtype)
    if draw(st.booleans()):
        b = b.T.contiguous().T
    i, j = (torch.randint(0, size, (entries,), generator=generator) for size in (n, m))
    inner = sorted(draw(st.lists(st.sampled_from([0, 1, entries // 2, entries]), max_size=5)))
    offsets = torch.tensor([0, *(min(x, entries) for x in inner), entries])
    return a, b, i, j, normal(entries, seed=seed + 2, dtype=dtype), offsets


@CHECK
@given(tables())
def test_dots_are_inner_products(case):
    a, b, i, j, _, _ = case
    torch.testing.assert_close(cpu.dots(a, b, i, j), reference.dots(a, b, i, j), rtol=1e-5, atol=1e-5)


@CHECK
@given(tables())
def test_bags_are_weighted_sums_and_empty_ones_zero(case):
    _, b, _, j, weights, offsets = case
    ours = cpu.bags(b, j, weights, offsets)
    torch.testing.assert_close(ours, reference.bags(b, j, weights, offsets), rtol=1e-5, atol=1e-5)
    assert (ours[offsets.diff() == 0] == 0).all()


@CHECK
@given(cases=nested(), biased=st.booleans())
def test_prefix_errors_and_their_gradients(cases, biased):
    W_dec, values, pattern, target, widths, scale = cases
    rows = pattern.indices, pattern.rows, pattern.offsets
    found, bias = [], target[0] if biased else None
    for module in (cpu, reference):
        sums, left = module.prefix_errors(W_dec, values, *rows, target, bias, widths)
        excess, parts = left[-1].clone(), (left, scale, W_dec, values, pattern.by_latent, widths)
        found.append([sums, excess, *module.prefix_gradients(*parts, each_row=not biased)])
    torch.testing.assert_close(*found)


def test_prefix_errors_in_float32_add_up_in_float64():
    none, offsets = torch.zeros(0, dtype=torch.int64), torch.zeros(40_001, dtype=torch.int64)
    target = torch.full((40_000, 16), 1.1)
    sums, _ = cpu.prefix_errors(target[:1], torch.zeros(0), none, none, offsets, target, None, torch.tensor([1]))
    assert sums.item() == pytest.approx(40_000 * 16 * 1.1**2, rel=1e-6)


def test_rows_of_all_blocks_are_projected_and_normalised():
    gradient, rows = normal(2 * cpu.ROW_BLOCK + 3, 5, seed=0), normal(2 * cpu.ROW_BLOCK + 3, 5, seed=1)
    rows[7] = 0
    expected_gradient, expected_rows = gradient.clone(), rows.clone()
    cpu.normalise_rows_(rows)
    reference.normalise_rows_(expected_rows)
    torch.testing.assert_close(rows, expected_rows)
    assert not rows[7].any()
    cpu.project_rows_(gradient, rows)
    reference.project_rows_(expected_gradient, rows)
    torch.testing.assert_close(gradient, expected_gradient)


def test_projected_rows_are_orthogonal_and_normalised_ones_keep_their_direction():
    rows, gradient = normal(32, 4, seed=0, dtype=torch.float64), normal(32, 4, seed=1, dtype=torch.float64)
    units, projected = rows.clone(), gradient.clone()
    reference.normalise_rows_(units)
    reference.project_rows_(projected, units)
    torch.testing.assert_close(units, torch.nn.functional.normalize(rows))
    assert (projected * units).sum(1).abs().max() < 1e-12
    torch.testing.assert_close(projected, gradient - (gradient * units).sum(1, keepdim=True) * units)


@pytest.mark.parametrize("largest_norm", [1e-2, 1e6])
def test_adam_is_that_of_torch_on_projected_and_clipped_gradients(largest_norm):
    rows, gradient = normal(40, 6, seed=0), normal(40, 6, seed=1)
    reference.normalise_rows_(rows)
    plain, free = torch.nn.Parameter(rows.clone()), torch.nn.Parameter(rows.clone())
    adam = torch.optim.Adam([plain, free], lr=1e-2)
    taught = [
        [
            Taught(rows.clone(), gradient, *torch.zeros(2, 40, 6), torch.zeros(()), unit_rows)
            for unit_rows in (True, False)
        ]
        for _ in range(2)
    ]
    for step in range(3):
        plain.grad, free.grad = gradient - (gradient * plain).sum(1, keepdim=True) * plain, gradient.clone()
        norm = torch.nn.utils.clip_grad_norm_([plain, free], largest_norm)
        adam.step()
        with torch.no_grad():
            plain /= plain.norm(dim=1, keepdim=True)
        for version, weights in zip((cpu, reference), taught, strict=True):
            weights = [one._replace(gradient=gradient.clone()) for one in weights]
            torch.testing.assert_close(version.adam_(weights, 1e-2, (0.9, 0.999), largest_norm), norm)
            torch.testing.assert_close([one.parameter for one in weights], [plain, free], msg=f"step {step}")


def test_a_cpu_tensor_is_dispatched_to_the_fast_operations():
    assert operations(torch.zeros(1)) is cpu
    assert operations(torch.zeros(1, device="meta")) is reference
