"""Compile every Triton kernel for an H100, on any machine: what the interpreter takes a compiler may refuse.

Run as a program, because a process has Triton either interpreted or compiled. Launches are recorded instead of run, at
shapes that stand for B=8192, d=2304, F=65,536, k=32 and for odd ones; prints a line for each kernel.
"""

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from matryoshka.coder.kernels import Taught
from matryoshka.coder.kernels import triton as fast
from matryoshka.coder.kernels.triton import launch

TYPES = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int16: "i16",
    torch.float8_e4m3fn: "fp8e4nv",
}
compiled = set()


def kind(path, value, constants, attributes):
    """The type of an argument, specialised on alignment and on ones as Triton's launcher does."""
    if isinstance(value, tuple):
        return tuple(kind((*path, i), part, constants, attributes) for i, part in enumerate(value))
    if value is None:
        constants[path] = None
        return "constexpr"
    if isinstance(value, float):
        return "fp32"
    if isinstance(value, int) and value == 1:
        constants[path] = 1
        return "constexpr"
    if isinstance(value, torch.Tensor) or value % 16 == 0:
        attributes[path] = [["tt.divisibility", 16]]
    if isinstance(value, torch.Tensor):
        value.zero_()  # positions read by later steps
        return f"*{TYPES[value.dtype]}"
    return "i32" if value < 2**31 else "i64"


def compile_launch(kernel, grid, *args, **constants):
    """In place of a launch: compile it."""
    options = {"num_warps": constants.pop("num_warps", 4)}
    names, attributes, signature = tuple(constants), {}, {}
    for i, (name, value) in enumerate(zip(kernel.arg_names, args, strict=False)):
        signature[name] = kind((i,), value, constants, attributes)
    signature |= dict.fromkeys(names, "constexpr")
    source = ASTSource(kernel, signature, constants, attributes)
    if str(source.hash()) not in compiled:
        compiled.add(str(source.hash()))
        triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
        print(kernel.fn.__name__, signature)


def main():
    launch.run = compile_launch
    i = torch.zeros(2048, dtype=torch.int64)
    for dtype in torch.bfloat16, torch.float32:
        for d_sae, k in (65536, 32), (7, 1):
            pre = torch.zeros(64, d_sae, dtype=dtype)
            fast.topk(pre, k)
            fast.batch_topk(pre, 64 * k)
            fast.batch_topk(pre[:, :k], 32 * k)
        for d in 2304, 1:
            table = torch.zeros(64, d, dtype=dtype)
            fast.dots(table, table, i, i)
            fast.bags(table, i, torch.zeros(len(i)), torch.tensor([0, len(i)]))
            by = i, i, i, torch.tensor([0, len(i)])
            fast.exact(table, table, torch.zeros(64), by)
            fast.encoder_gradients(table, torch.zeros(len(i)), by)
            for m in 5, 1:
                widths, located = torch.arange(1, m + 1), (i, i, torch.arange(65))
                for bias in None, table[0]:
                    _, left = fast.prefix_errors(table, torch.zeros(len(i)), *located, table, bias, widths)
                parts = left, torch.ones(()), table, torch.zeros(len(i)), by, widths
                fast.prefix_gradients(*parts, each_row=True)
            fast.quantise_rows(table)
    by = i, i, i, torch.tensor([0, len(i)])
    for n in 65_536, 70_000, 1:
        fast.transpose(i, i, n)
    for entries in 2048, 327_680, 1:
        values, kept = torch.zeros(entries), torch.zeros(max(1, entries * 4 // 5), dtype=torch.int64)
        located = fast.locate(torch.zeros(entries, dtype=torch.int64), 8192, 65_536)
        fast.keep(kept, located, values, (*(torch.zeros(entries, dtype=torch.int64) for _ in range(3)), i))
    for dtype in torch.bfloat16, torch.float32:
        fast.follow_smallest_(torch.zeros(()), i[0], torch.zeros(len(i), dtype=dtype), 0.8)
    fast.count_silence_(i[:1], torch.zeros(len(i)), by, 8192)
    for terms in 5, 3:
        parts = [torch.zeros(())] * terms
        fast.tally_(torch.zeros(terms, dtype=torch.float64), parts, torch.zeros(4, 4), i[0], i[1])
    for d in 2304, 60_000, 7:  # whole rows, and one in several pieces
        shapes = ((16, d), True), ((16, d), False), ((d,), False)
        taught = [Taught(*torch.zeros(4, *shape), torch.zeros(()), unit_rows) for shape, unit_rows in shapes]
        for forgetful in False, True:
            taught[1] = taught[1]._replace(forgetful=forgetful)
            fast.adam_(taught, 1e-3, (0.9, 0.999), 1.0)


if __name__ == "__main__":
    main()
