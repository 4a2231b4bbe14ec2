"""In which precision the dense product selects, on the device that this is.

It proposes candidates only (`matryoshka.coder.candidates`), so whatever is fastest will do.
"""

import logging

import torch

from matryoshka.coder.kernels import Precision, has_triton
from matryoshka.coder.kernels.cpu import has_bfloat16_product, has_native_bfloat16
from matryoshka.training.recipe import SelectName

logger = logging.getLogger("matryoshka")
LEAST_FP8 = 2**25
"""Weights of an encoder from which FP8 is taken unasked: to round a smaller one takes what its product saves."""
FP8_CAPABILITY = (8, 9)
"""Of the first GPUs that multiply FP8."""
FP8_ALIGNMENT = 16
"""What both sizes of such a product are multiples of."""


def choose(select: SelectName, d_in: int, d_sae: int, device: torch.device) -> Precision:
    """What `training.select` means for an encoder of d_in × d_sae on `device`. Where a precision is asked for that is
    not to be had there, the next one is taken, with one line that says why."""
    if select == "auto":
        return _fastest(d_in, d_sae, device)
    if select == "fp8" and (reason := _without_fp8(d_in, d_sae, device)):
        logger.warning(f"training.select fp8: {reason}; bfloat16 is used")
        select = "bfloat16"
    if select == "bfloat16" and device.type == "cpu" and not has_bfloat16_product():
        logger.warning("training.select bfloat16: this processor has no such product; float32 is used")
        select = "float32"
    return select


def _fastest(d_in: int, d_sae: int, device: torch.device) -> Precision:
    match device.type:
        case "cuda" if d_in * d_sae >= LEAST_FP8 and _without_fp8(d_in, d_sae, device) is None:
            return "fp8"
        case "cuda":
            return "bfloat16"
        case "cpu" if has_native_bfloat16():
            return "bfloat16"
    return "float32"


def _without_fp8(d_in: int, d_sae: int, device: torch.device) -> str | None:
    """Why such a product cannot be made in FP8; None if it can."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < FP8_CAPABILITY:
        return f"{device} has no such product"
    if d_in % FP8_ALIGNMENT or d_sae % FP8_ALIGNMENT:
        return f"it takes multiples of {FP8_ALIGNMENT}, not {d_in} activations and {d_sae} latents"
    return None if has_triton() else "it takes Triton"
