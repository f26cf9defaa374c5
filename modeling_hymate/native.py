"""Where compiled kernels may stand in for layers."""

import torch
from torch import nn

from .scan import resolve_backend


def is_plain(layer: nn.Module) -> bool:
    """Whether a layer may be read for its weight: one that an adapter (LoRA) wraps, that is quantized or pruned, that
    has hooks or whose `forward` is another (accelerate's offload replaces it) must be called."""
    has_hooks = layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks
    is_replaced = getattr(layer.forward, "__func__", None) is not type(layer).forward or hasattr(layer, "_hf_hook")
    is_known = type(layer).__module__.startswith(("torch.nn.modules.", __package__ + "."))
    weight = getattr(layer, "weight", None)
    return is_known and (weight is None or type(weight) is nn.Parameter) and not (has_hooks or is_replaced)


def runs_natively(tensor: torch.Tensor, *layers: nn.Module) -> bool:
    """Whether a kernel that computes in float32 alone may take the place of plain layers applied to `tensor`."""
    if tensor.dtype != torch.float32 or resolve_backend(tensor) != "native" or torch.is_autocast_enabled("cpu"):
        return False
    weights = (getattr(layer, "weight", None) for layer in layers)
    return all(map(is_plain, layers)) and all(weight is None or weight.dtype == tensor.dtype for weight in weights)
