"""Where compiled kernels may stand in for layers."""

import torch
from torch import nn

from .scan import resolve_backend


def is_plain(layer: nn.Module) -> bool:
    """Whether a layer may be read for its weight: one that an adapter (LoRA) wraps, that is quantized or pruned, that
    has hooks or whose `forward` is another (accelerate's offload replaces it) must be called."""
    own = layer.__dict__
    for name in HOOKS:
        if own[name]:
            return False
    for name in REPLACEMENTS:
        if name in own:
            return False
    if not type(layer).__module__.startswith(_OUR_LAYERS):
        return False
    weight = own["_parameters"].get("weight")
    return weight is None or type(weight) is nn.Parameter


HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
REPLACEMENTS = ("forward", "_hf_hook")  # attributes of a layer's own where another forward is called
_OUR_LAYERS = ("torch.nn.modules.", "transformers.activations", __name__.rpartition(".")[0] + ".")


def runs_natively(tensor: torch.Tensor, *layers: nn.Module) -> bool:
    """Whether a kernel that computes in float32 alone may take the place of plain layers applied to `tensor`."""
    if tensor.dtype != torch.float32 or torch.is_autocast_enabled("cpu") or resolve_backend(tensor) != "native":
        return False
    for layer in layers:
        weight = layer.__dict__["_parameters"].get("weight")
        if not is_plain(layer) or (weight is not None and weight.dtype != torch.float32):
            return False
    return True
