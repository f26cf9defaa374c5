"""The checks of the operators' arguments, and what they make of data types."""

import torch
from torch import Tensor

from hymate_native.structures import DTYPES


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


def check_shapes(**shapes: tuple[Tensor | None, tuple[int, ...]]) -> None:
    for name, (tensor, expected) in shapes.items():
        if tensor is None:
            continue
        if tensor.device.type != "cpu":
            raise ValueError(f"{name} must be on the CPU, got {tensor.device}")
        if tensor.shape != expected:
            raise ValueError(f"{name} must have the shape {tuple(expected)}, got {tuple(tensor.shape)}")


def check_float32(**tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32:
            raise ValueError(f"{name} must be float32, got {tensor.dtype}")


def checked_lengths(lengths: Tensor | None, batch: int, length: int) -> Tensor | None:
    if lengths is None:
        return None
    check_shapes(lengths=(lengths, (batch,)))
    if lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool:
        raise ValueError(f"lengths must be integers, got {lengths.dtype}")
    return lengths.long()
