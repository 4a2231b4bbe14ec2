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

from matryoshka.coder.kernels import reference

if fast is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

from matryoshka.coder.kernels.triton import launch, quantising, selection, sums

BLOCKS = [
    (selection, {"TOPK_ROUNDS": 4, "TOPK_MAX_GROUPS": 8, "BLOCK": 64, "PROGRAMS": 4, "TILE": 128}),
    (sums, {"DOTS_COLUMNS": 16, "PIECE": 4, "BAG_ROWS": 2, "BAG_COLUMNS": 16, "ELEMENTS": 32, "ROW_COLUMNS": 16}),
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
    return draw(st.lists(st.sampled_from([0, 0, 1, 2, 3, 4, 5, 7, 8, 9, 12, 61]), min_size=1, max_size=9))


def offsets_of(lengths):
    return torch.tensor([0, *lengths]).cumsum(0).to(DEVICE)


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


@examples(20)
@given(st.integers(0, 40), st.data())
def test_places_are_those_of_what_is_true(entries, data):
    mask = data.draw(integers(2, entries)) > 0
    assert fast.places(mask, int(mask.sum())).equal(reference.places(mask, 0))


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
    keys = data.draw(integers(n, entries))
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


def test_bags_of_no_entries_are_zeros():
    none = torch.zeros(0, dtype=torch.int64, device=DEVICE)
    found = fast.bags(torch.ones(3, 5, device=DEVICE), none, none.float(), offsets_of([0, 0]))
    assert found.equal(torch.zeros(2, 5, device=DEVICE))


def test_bags_share_a_long_bag_among_programs_and_give_the_same_bits(monkeypatch):
    table, weights = torch.randn(50, 20, device=DEVICE), torch.randn(203, device=DEVICE)
    rows, offsets = torch.arange(203, device=DEVICE) % 50, offsets_of([0, 0, 201, 0, 2])
    grids, run = [], launch.run
    monkeypatch.setattr(launch, "run", lambda kernel, grid, *a, **k: (grids.append(grid), run(kernel, grid, *a, **k)))
    found = fast.bags(table, rows, weights, offsets)
    assert grids == [(5 + 203 // 4, 2), (203 // 4, 2)]
    assert found.equal(fast.bags(table, rows, weights, offsets))
    torch.testing.assert_close(found, reference.bags(table, rows, weights, offsets), rtol=1e-4, atol=1e-5)


@examples(15)
@given(st.integers(1, 5), st.integers(1, 4), SIZES, TABLES, st.data())
def test_prefix_errors(m, batch, d, dtype, data):
    rings = data.draw(random_tensors(m, batch, d)).contiguous()
    target = data.draw(random_tensors(batch, d, dtype=dtype))
    expected_rings = rings.clone()
    expected = reference.prefix_errors_(expected_rings, target.float())
    torch.testing.assert_close(fast.prefix_errors_(rings, target), expected)
    torch.testing.assert_close(rings, expected_rings)


@examples(15)
@given(st.integers(1, 5), st.integers(1, 4), SIZES, st.data())
def test_suffix_sums(m, batch, d, data):
    errors, weights = data.draw(random_tensors(m, batch, d)).contiguous(), data.draw(random_tensors(m))
    expected = errors.clone()
    reference.suffix_sums_(expected, weights)
    fast.suffix_sums_(errors, weights)
    torch.testing.assert_close(errors, expected)


@examples(15)
@given(TABLES, TABLES, st.integers(1, 4), SIZES, st.data())
def test_rows_are_projected(dtype, row_dtype, n, d, data):
    x = data.draw(random_tensors(n, d, dtype=dtype)).contiguous()
    unit = torch.nn.functional.normalize(data.draw(random_tensors(n, d)), dim=1).to(row_dtype)
    expected = x.float()
    reference.project_rows_(expected, unit.float())
    fast.project_rows_(x, unit)
    torch.testing.assert_close(x, expected.to(dtype))


@examples(15)
@given(TABLES, st.integers(1, 4), SIZES, st.data())
def test_rows_are_normalised_and_zeros_stay(dtype, n, d, data):
    x = data.draw(random_tensors(n, d, dtype=dtype)).contiguous()
    x[0] = 0
    expected = x.float()
    reference.normalise_rows_(expected)
    fast.normalise_rows_(x)
    torch.testing.assert_close(x, expected.to(dtype))


def test_what_is_overwritten_must_be_contiguous():
    rings = torch.zeros(2, 3, 8, device=DEVICE)[..., ::2]
    with pytest.raises(ValueError, match="contiguous"):
        fast.prefix_errors_(rings, rings[0])
    with pytest.raises(ValueError, match="contiguous"):
        fast.suffix_sums_(rings, torch.ones(2, device=DEVICE))
    with pytest.raises(ValueError, match="contiguous"):
        fast.project_rows_(rings[0], rings[1])
    with pytest.raises(ValueError, match="contiguous"):
        fast.normalise_rows_(rings[0])


def test_float64_is_left_to_the_reference():
    x = torch.randn(4, 30, dtype=torch.float64, device=DEVICE)
    i = torch.tensor([0, 3, 2], device=DEVICE)
    assert fast.topk(x, 3).equal(reference.topk(x, 3).sort(dim=1).values)
    assert fast.batch_topk(x, 9).equal(reference.batch_topk(x, 9))
    assert fast.dots(x, x, i, i).equal(reference.dots(x, x, i, i))
    assert fast.bags(x, i, x[0, :3], offsets_of([1, 2])).equal(reference.bags(x, i, x[0, :3], offsets_of([1, 2])))
    ours, theirs = x.clone(), x.clone()
    for operations, each in (fast, ours), (reference, theirs):
        operations.normalise_rows_(each[:2])
        operations.project_rows_(each[2:], each[:2])
    assert ours.equal(theirs)


def test_every_kernel_compiles_for_an_h100(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(tmp_path)}
    program = [sys.executable, str(Path(__file__).with_name("compile_triton.py"))]
    run = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=200)
    assert run.returncode == 0, run.stderr
    everything = {**vars(selection), **vars(sums), **vars(quantising)}
    parts = {"_keep_largest", "_digits", "_codes"}
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


@pytest.mark.gpu
@pytest.mark.skipif(not GPU, reason="no GPU")
@pytest.mark.usefixtures("real_blocks")
def test_a_cuda_graph_captures_all_of_it():
    """Capture fails at the first host sync."""
    pre, x = torch.randn(256, 4096, device=DEVICE).bfloat16(), torch.randn(256, 768, device=DEVICE)

    def step():
        selected = fast.topk(pre, 16)
        positions = fast.batch_topk(pre, 5000)
        cut = fast.batch_topk(pre.flatten()[positions].float()[None], 4096)
        positions = positions[
            fast.places(torch.zeros(5000, dtype=torch.bool, device=DEVICE).index_fill(0, cut, True), 4096)
        ]
        order, offsets = fast.group(positions % 4096, 4096)
        i, j = (positions // 4096)[order], (positions % 4096)[order]
        bags = fast.bags(x, i, fast.dots(x, x, i, j % 256), offsets)
        rings = bags[:512].view(2, 256, 768).clone()
        errors = fast.prefix_errors_(rings, x)
        fast.suffix_sums_(rings, errors.rsqrt())
        fast.normalise_rows_(rings[0])
        fast.project_rows_(rings[1], rings[0])
        proposed = fast.product(x, x[:64].T, x[:64, 0], "fp8")
        return selected, positions, bags, errors, rings, proposed

    step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    pre.copy_(torch.randn_like(pre))
    x.copy_(torch.randn_like(x))
    graph.replay()
    assert all(a.equal(b) for a, b in zip(captured, step(), strict=True))
