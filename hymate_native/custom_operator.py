"""How the kernels become PyTorch operators."""

from collections.abc import Callable

import torch
from torch import Tensor


class CustomOperator:
    """An operator of the CPU's: `torch.library.custom_op` without its checks at every call, which cost as much as the
    kernels of a short record.

    Attributes:
        run: the function behind it, for callers that need neither gradients nor tracing: it skips PyTorch's dispatch.
    """

    run: Callable

    def __init__(self, name: str, schema: str):
        self.name = f"hymate::{name}"
        torch.library.define(self.name, schema, tags=(torch.Tag.pt2_compliant_tag,))

    def __call__(self, function):
        torch.library.impl(self.name, "CPU", function)
        self.run = function
        return self

    def register_fake(self, function):
        torch.library.register_fake(self.name, function)
        return function

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
