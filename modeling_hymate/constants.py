"""Small tensors of constants, kept on GPUs from one pass to the next."""

from collections.abc import Sequence

import torch

from .scan import GPUS

_kept: dict[tuple, torch.Tensor] = {}


def constants(numbers: Sequence[float], like: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """The numbers as a tensor on the device of `like`, in its data type by default. It must not be written to.

    A copy from the host to a GPU waits for all that the GPU is about to do, and cannot be recorded in a CUDA graph.
    """
    dtype = like.dtype if dtype is None else dtype
    if like.device.type not in GPUS or type(like) is not torch.Tensor or torch.compiler.is_compiling():
        return torch.tensor(numbers, dtype=dtype, device=like.device)
    key = (tuple(numbers), dtype, like.device)
    if key not in _kept:
        with torch.inference_mode(False):  # what is made in it could not take part in training later
            _kept[key] = torch.tensor(numbers, dtype=dtype, device=like.device)
    return _kept[key]
