"""Compile every Triton kernel for an H100, on any machine: what the interpreter takes a compiler may refuse.

Run as a program, because a process has Triton either interpreted or compiled. Launches are recorded instead of run, at
shapes that stand for B=8192, d=2304, F=65,536, k=32 and for odd ones; prints a line for each kernel.
"""

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from matryoshka.coder.kernels import triton as fast
from matryoshka.coder.kernels.triton import launch

TYPES = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int16: "i16",
    torch.float8_e4m3fn: "fp8e4nv",
}
compiled = set()


def compile_launch(kernel, grid, *args, **constants):
    """In place of a launch: compile it as Triton's launcher would, specialised on alignment and on ones."""
    options = {"num_warps": constants.pop("num_warps", 4)}
    signature, attributes = {}, {}
    for i, (name, value) in enumerate(zip(kernel.arg_names, args, strict=False)):
        if isinstance(value, torch.Tensor):
            value.zero_()  # positions read by later steps
            signature[name] = f"*{TYPES[value.dtype]}"
        elif value == 1:
            constants[name] = 1
        else:
            signature[name] = "i32" if value < 2**31 else "i64"
        if isinstance(value, torch.Tensor) or value % 16 == 0:
            attributes[(i,)] = [["tt.divisibility", 16]]
    signature |= dict.fromkeys(constants, "constexpr")
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
            rings = torch.zeros(5, 64, d)
            fast.prefix_errors_(rings, table)
            fast.suffix_sums_(rings, torch.ones(5))
            fast.project_rows_(table.clone(), table)
            fast.normalise_rows_(table)
            fast.quantise_rows(table)


if __name__ == "__main__":
    main()
