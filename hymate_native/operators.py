"""How the kernels become PyTorch operators, and the checks of their arguments."""

import torch
from torch import Tensor

from hymate_native.library import DTYPES


class Operator:
    """An operator of the CPU's: `torch.library.custom_op` without its checks at every call, which cost as much as the
    kernels of a short record."""

    def __init__(self, name: str, schema: str):
        self.name = f"hymate::{name}"
        torch.library.define(self.name, schema, tags=(torch.Tag.pt2_compliant_tag,))

    def __call__(self, function):
        torch.library.impl(self.name, "CPU", function)
        return self

    def register_fake(self, function):
        torch.library.register_fake(self.name, function)

    def register_autograd(self, backward, *, setup_context=None):
        torch.library.register_autograd(self.name, backward, setup_context=setup_context)


def no_second_derivative(name: str):
    def backward(ctx, *grads):
        raise RuntimeError(
            f"hymate's native {name} has no second derivative. For double backward run the model with the environment "
            "variable HYMATE_SCAN_BACKEND=reference."
        )

    return backward


def needs_grad(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def as_float(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.float()


def check_dtype(dtype: torch.dtype) -> None:
    if dtype not in DTYPES:
        raise ValueError(f"the native kernels compute in float32, bfloat16 or float16, got {dtype}")


def row_dtype(*tensors: Tensor | None) -> torch.dtype:
    dtype, *others = {tensor.dtype for tensor in tensors if tensor is not None}
    for other in others:
        dtype = torch.promote_types(dtype, other)
    check_dtype(dtype)
    return dtype


def check(**shapes: tuple[Tensor | None, tuple[int, ...]]) -> None:
    for name, (tensor, expected) in shapes.items():
        if tensor is None:
            continue
        if tensor.device.type != "cpu":
            raise ValueError(f"{name} must be on the CPU, got {tensor.device}")
        if tensor.shape != expected:
            raise ValueError(f"{name} must have the shape {tuple(expected)}, got {tuple(tensor.shape)}")


def checked_lengths(lengths: Tensor | None, batch: int, length: int) -> Tensor | None:
    if lengths is None:
        return None
    check(lengths=(lengths, (batch,)))
    if lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool:
        raise ValueError(f"lengths must be integers, got {lengths.dtype}")
    return lengths.long()
