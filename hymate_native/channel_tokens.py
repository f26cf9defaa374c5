"""One token per channel and prediction time, with piecewise-linear functions of its statistics, as an operator."""

from typing import Any

import torch
from torch import Tensor

from hymate_native import library
from hymate_native.argument_checks import check_float32, check_shapes
from hymate_native.custom_operator import CustomOperator, no_second_derivative
from hymate_native.structures import TokenArguments, pointer

_INPUTS = (
    "Tensor mask, Tensor statistics, Tensor present, Tensor channel_ids, Tensor embedding, Tensor knots, int bins"
)


@CustomOperator("channel_tokens", f"(Tensor pooled, {_INPUTS}) -> Tensor")
def tokens_operator(pooled, *inputs):
    output = torch.empty_like(pooled)
    arguments = _arguments(*inputs)
    arguments.pooled, arguments.out = pointer(pooled), pointer(output)
    library.call("tokens_forward", arguments)
    return output


@tokens_operator.register_fake
def _(pooled, *_):
    return torch.empty_like(pooled)


@CustomOperator("channel_tokens_backward", f"(Tensor grad, {_INPUTS}) -> (Tensor, Tensor, Tensor)")
def _tokens_backward(grad, *inputs):
    embedding, knots = inputs[4:6]
    grads = tuple(map(torch.empty_like, (grad, embedding, knots)))
    arguments = _arguments(*inputs)
    arguments.grad_out = pointer(grad)
    arguments.grad_pooled, arguments.grad_embedding, arguments.grad_knots = map(pointer, grads)
    library.call("tokens_backward", arguments)
    return grads


@_tokens_backward.register_fake
def _(grad, mask, statistics, present, channel_ids, embedding, knots, bins):
    return tuple(map(torch.empty_like, (grad, embedding, knots)))


def _keep(ctx, inputs, output):
    _pooled, *tensors, ctx.bins = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx, grad):
    grad_pooled, *grads = torch.ops.hymate.channel_tokens_backward(grad.contiguous(), *ctx.saved_tensors, ctx.bins)
    return grad_pooled, *(None,) * 4, *grads, None


tokens_operator.register_autograd(_differentiate, setup_context=_keep)
_tokens_backward.register_autograd(no_second_derivative("channel tokens"))


def _arguments(mask, statistics, present, channel_ids, embedding, knots, bins) -> Any:
    variables, width = embedding.shape
    return TokenArguments(
        *(*mask.shape, width, statistics.shape[-1], bins, variables, library.threads()),
        None,
        *map(pointer, (mask, statistics, present, channel_ids, embedding, knots)),
    )


def channel_tokens(
    pooled: Tensor,
    mask: Tensor,
    statistics: Tensor,
    present: Tensor,
    channel_ids: Tensor,
    embedding: Tensor,
    knots: Tensor,
    num_bins: int,
) -> Tensor:
    """What was pooled, plus the embedding of the channel's variable, plus the sum of piecewise-linear functions of its
    statistics, on the CPU in float32.

    The functions are those of `modeling_hymate.channel_statistics.piecewise_linear`. What was pooled, the embedding
    and the knots have gradients, the statistics have none.

    Args:
        pooled: `(batch, predictions, channels, hidden)`.
        mask: boolean, `(batch, predictions, channels)`. What it leaves out is not looked at.
        statistics: finite, `(batch, predictions, channels, statistics)`. present: boolean, of the same shape.
        channel_ids: variable of each channel, `(batch, channels)`, valid wherever the mask keeps a channel.
        embedding: `(variables, hidden)`.
        knots: `(variables * statistics * (num_bins + 1), hidden)`, in that order.

    Returns:
        `(batch, predictions, channels, hidden)`, 0 where the mask leaves out.

    Raises:
        ValueError: a shape, device or dtype does not fit.
        RuntimeError: the kernels are not available, or a second derivative is asked for.
    """
    batch, predictions, channels, width = pooled.shape
    (variables, _), cells, count = embedding.shape, (batch, predictions, channels), statistics.shape[-1]
    floats: dict[str, tuple[Tensor, tuple[int, ...]]]
    floats = {"pooled": (pooled, (*cells, width)), "statistics": (statistics, (*cells, count))}
    floats |= {"embedding": (embedding, (variables, width))}
    floats |= {"knots": (knots, (variables * count * (num_bins + 1), width))}
    check_shapes(
        **floats, mask=(mask, cells), present=(present, (*cells, count)), channel_ids=(channel_ids, (batch, channels))
    )
    check_float32(**{name: tensor for name, (tensor, _) in floats.items()})
    tensors = (pooled, mask.bool(), statistics, present.bool(), channel_ids.long(), embedding, knots)
    return torch.ops.hymate.channel_tokens(*(tensor.contiguous() for tensor in tensors), num_bins)
