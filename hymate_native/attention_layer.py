"""A Transformer layer across the tokens of each group as one PyTorch operator."""

from typing import Any

import torch
from torch import Tensor

from hymate_native import library
from hymate_native.argument_checks import check_float32, check_shapes
from hymate_native.custom_operator import CustomOperator, no_second_derivative
from hymate_native.structures import AttentionArguments, pointer

# In the order of the struct; a projection's weight is (outputs, inputs).
_WEIGHTS = (
    *("attention_norm", "q_weight", "q_bias", "k_weight", "k_bias", "v_weight", "v_bias", "o_weight", "o_bias"),
    *("mlp_norm", "up_weight", "up_bias", "down_weight", "down_bias"),
)
_INPUTS = (
    "Tensor tokens, Tensor mask, Tensor[] weights, int heads, float eps, float dropout, float attention_dropout, "
    "Tensor seed"
)


@CustomOperator("attention_layer", f"({_INPUTS}) -> Tensor")
def layer_operator(tokens, mask, weights, heads, eps, dropout, attention_dropout, seed):
    output = torch.empty_like(tokens)
    arguments = _arguments(tokens, mask, weights, heads, eps, dropout, attention_dropout, seed)
    arguments.out = pointer(output)
    library.call("attention_forward", arguments)
    return output


@layer_operator.register_fake
def _(tokens, *_):
    return torch.empty_like(tokens)


@CustomOperator("attention_layer_backward", f"(Tensor grad, {_INPUTS}) -> (Tensor, Tensor[])")
def _layer_backward(grad, tokens, mask, weights, heads, eps, dropout, attention_dropout, seed):
    grad = grad.contiguous()
    grad_tokens, grad_weights = torch.empty_like(tokens), [torch.empty_like(weight) for weight in weights]
    arguments = _arguments(tokens, mask, weights, heads, eps, dropout, attention_dropout, seed)
    arguments.grad_out, arguments.grad_x = pointer(grad), pointer(grad_tokens)
    for name, grad_weight in zip(_WEIGHTS, grad_weights, strict=True):
        setattr(arguments, f"grad_{name}", pointer(grad_weight))
    library.call("attention_backward", arguments)
    return grad_tokens, grad_weights


@_layer_backward.register_fake
def _(grad, tokens, mask, weights, *_):
    return torch.empty_like(tokens), [torch.empty_like(weight) for weight in weights]


def _keep(ctx, inputs, output):
    tokens, mask, weights, *ctx.numbers, seed = inputs
    ctx.save_for_backward(tokens, mask, seed, *weights)


def _differentiate(ctx, grad):
    tokens, mask, seed, *weights = ctx.saved_tensors
    grad_tokens, grad_weights = torch.ops.hymate.attention_layer_backward(
        grad, tokens, mask, weights, *ctx.numbers, seed
    )
    return grad_tokens, None, grad_weights, None, None, None, None, None


layer_operator.register_autograd(_differentiate, setup_context=_keep)
_layer_backward.register_autograd(no_second_derivative("attention layer"))


def _arguments(tokens, mask, weights, heads, eps, dropout, attention_dropout, seed) -> Any:
    groups, count, width = tokens.shape
    inside = weights[_WEIGHTS.index("up_weight")].shape[0]
    return AttentionArguments(
        *(groups, count, width, heads, inside, library.threads(), int(seed), eps, dropout, attention_dropout),
        *map(pointer, (tokens, mask, *weights)),
    )


def attention_layer(
    tokens: Tensor,
    mask: Tensor,
    *,
    attention_norm: Tensor,
    q_proj: tuple[Tensor, Tensor],
    k_proj: tuple[Tensor, Tensor],
    v_proj: tuple[Tensor, Tensor],
    o_proj: tuple[Tensor, Tensor],
    mlp_norm: Tensor,
    up_proj: tuple[Tensor, Tensor],
    down_proj: tuple[Tensor, Tensor],
    num_heads: int,
    eps: float,
    dropout: float = 0.0,
    attention_dropout: float = 0.0,
    seed: Tensor | None = None,
) -> Tensor:
    """A pre-norm Transformer layer among the tokens of each group, on the CPU in float32.

    `y = x + dropout(o(attention(q(n), k(n), v(n))))` with `n = norm(x)`, and `y + dropout(down(gelu(up(norm(y)))))`.
    Norms are root mean square ones. What dropout drops is a function of the seed (`tests/native` has it in PyTorch).

    Args:
        tokens: `(groups, tokens, hidden)`.
        mask: boolean, `(groups, tokens)`. What it leaves out is not looked at, and its output is 0.
        attention_norm, mlp_norm: gains, `(hidden,)`.
        q_proj, k_proj, v_proj, o_proj: weight `(hidden, hidden)` and bias `(hidden,)`.
        up_proj: weight `(intermediate, hidden)` and bias. down_proj: weight `(hidden, intermediate)` and bias.
        num_heads: a divisor of hidden.
        eps: of both norms.
        dropout, attention_dropout: probabilities of dropping an entry of what either half adds, and a weight.
        seed: an integer tensor of no dimension; required with dropout.

    Returns:
        `(groups, tokens, hidden)`.

    Raises:
        ValueError: a shape, device or dtype does not fit.
        RuntimeError: the kernels are not available, or a second derivative is asked for.
    """
    groups, count, width = tokens.shape
    inside = up_proj[0].shape[0]
    projections = {"q_proj": q_proj, "k_proj": k_proj, "v_proj": v_proj, "o_proj": o_proj}
    projections |= {"up_proj": up_proj, "down_proj": down_proj}
    sizes = dict.fromkeys(projections, (width, width)) | {"up_proj": (inside, width), "down_proj": (width, inside)}
    shapes = {
        "tokens": (tokens, tuple(tokens.shape)),
        "attention_norm": (attention_norm, (width,)),
        "mlp_norm": (mlp_norm, (width,)),
    }
    for name, (weight, bias) in projections.items():
        shapes |= {f"{name} weight": (weight, sizes[name]), f"{name} bias": (bias, sizes[name][:1])}
    check_shapes(mask=(mask, (groups, count)), **shapes)
    check_float32(**{name: tensor for name, (tensor, _) in shapes.items()})
    if width % num_heads:
        raise ValueError(f"num_heads must divide the hidden size {width}, got {num_heads}")
    for name, probability in {"dropout": dropout, "attention_dropout": attention_dropout}.items():
        if not 0 <= probability < 1:
            raise ValueError(f"{name} must be at least 0 and below 1, got {probability}")
    if seed is None:
        if dropout or attention_dropout:
            raise ValueError("dropout needs a seed")
        seed = torch.zeros((), dtype=torch.int64)
    weights = [attention_norm, *q_proj, *k_proj, *v_proj, *o_proj, mlp_norm, *up_proj, *down_proj]
    return torch.ops.hymate.attention_layer(
        *(tokens.contiguous(), mask.bool().contiguous(), [weight.contiguous() for weight in weights]),
        *(num_heads, eps, dropout, attention_dropout, seed),
    )
