"""The whole Mamba mixer as one PyTorch operator."""

from collections.abc import Sequence

import torch
from torch import Tensor

from hymate_native import launch
from hymate_native.library import MAX_KERNEL, threads
from hymate_native.operators import (
    Operator,
    as_float,
    check,
    check_dtype,
    checked_lengths,
    needs_grad,
    no_second_derivative,
)

_MIXER_INPUTS = (
    "Tensor rows, Tensor? in_weight, Tensor? in_bias, Tensor conv_weight, Tensor? conv_bias, Tensor x_proj_weight, "
    "Tensor dt_proj_weight, Tensor? dt_proj_bias, Tensor A, Tensor D, Tensor? out_weight, Tensor? out_bias, "
    "Tensor? lengths"
)


_GROUP_FLOATS = 1 << 22  # of rows, about 8 inner widths each


_MIXER_WEIGHTS = (
    *("in_weight", "in_bias", "conv_weight", "conv_bias", "x_proj_weight", "dt_proj_weight", "dt_proj_bias"),
    *("A", "D", "out_weight", "out_bias"),
)


def _flat(rows: Tensor) -> Tensor:
    return rows.flatten(0, 1)


def _backward(flat_grad: Tensor, rows: Tensor, weight: Tensor, grad_rows: Tensor) -> Tensor:
    return launch.linear_backward((flat_grad, _flat(rows), weight, _flat(grad_rows), False))[0]


def _group_size(batch: int, length: int, inner: int) -> int:
    """How many records are worked on at a time: enough for all threads, few enough for a large cache."""
    return max(1, min(batch, max(2 * threads(), _GROUP_FLOATS // max(1, 8 * inner * length))))


def _split(projected: Tensor, inner: int) -> Sequence[Tensor]:
    return projected[..., :inner], projected[..., inner:]


def _split_parameters(parameters: Tensor, rank: int, state: int) -> Sequence[Tensor]:
    return parameters[..., :rank], parameters[..., rank : rank + state], parameters[..., rank + state :]


@Operator("mamba_mixer", f"({_MIXER_INPUTS}, bool keep) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)")
def _mixer(
    rows,
    in_weight,
    in_bias,
    conv_weight,
    conv_bias,
    x_proj_weight,
    dt_proj_weight,
    dt_proj_bias,
    A,
    D,
    out_weight,
    out_bias,
    lengths,
    keep,
):
    """Returns the output, and what backward needs: the projected and the convolved rows, (time step, B, C), delta, the
    gated rows and the kept states. A projection without a weight is the caller's."""
    (inner, state), rank = A.shape, dt_proj_weight.shape[1]
    batch, length, _ = rows.shape
    size = _group_size(batch, length, inner)
    kept = batch if keep else size  # without gradients each group of records uses the same memory

    def new(count, width):
        return torch.empty((count, length, width), dtype=rows.dtype)

    projected = rows if in_weight is None else new(kept, 2 * inner)
    convolved, parameters, delta = (new(kept, width) for width in (inner, rank + 2 * state, inner))
    gated = new(batch if out_weight is None else kept, inner)
    output = gated if out_weight is None else new(batch, len(out_weight))
    states = launch.new_states(batch if keep else 0, length, inner, state)
    states_of_one = launch.states_size(1, length, inner, state)
    for start in range(0, max(1, batch), size):
        group = slice(start, start + size)
        part = group if keep else slice(min(size, batch - start))
        if in_weight is not None:
            launch.linear_forward((_flat(rows[group]), in_weight, in_bias, _flat(projected[part])))
        x, gate = _split(projected[group if in_weight is None else part], inner)
        group_lengths = None if lengths is None else lengths[group]
        launch.convolution_forward(x, conv_weight, conv_bias, True, group_lengths, convolved[part])
        time_step, B, C = _split_parameters(parameters[part], rank, state)
        launch.linear_forward(
            (_flat(convolved[part]), x_proj_weight, None, _flat(parameters[part])),
            (_flat(time_step), dt_proj_weight, None, _flat(delta[part])),
        )
        y = gated[group if out_weight is None else part]
        launch.scan_forward(
            *(convolved[part], delta[part], A, B, C, D, gate, dt_proj_bias, True, group_lengths, None),
            return_final_state=False,
            keep_states=keep,
            y=y,
            states=states[start * states_of_one : (start + size) * states_of_one] if keep else None,
        )
        if out_weight is not None:
            launch.linear_forward((_flat(y), out_weight, out_bias, _flat(output[group])))
    if not keep:
        return output, *(rows.new_empty(0) for _ in range(5)), states
    saved = [None if in_weight is None else projected, convolved, parameters, delta]
    saved.append(None if out_weight is None else gated)
    return output, *(rows.new_empty(0) if tensor is None else tensor for tensor in saved), states


@_mixer.register_fake
def _(
    rows,
    in_weight,
    in_bias,
    conv_weight,
    conv_bias,
    x_proj_weight,
    dt_proj_weight,
    dt_proj_bias,
    A,
    D,
    out_weight,
    out_bias,
    lengths,
    keep,
):
    batch, length, _ = rows.shape
    inner, state = A.shape

    def new(width):
        return rows.new_empty((batch, length, width))

    output = new(inner if out_weight is None else out_weight.shape[0])
    if not keep:
        return output, *(rows.new_empty(0) for _ in range(5)), A.new_empty(0)
    return (
        output,
        rows.new_empty(0) if in_weight is None else new(2 * inner),
        *(new(width) for width in (inner, x_proj_weight.shape[0], inner)),
        rows.new_empty(0) if out_weight is None else new(inner),
        A.new_empty(launch.states_size(batch, length, inner, state)),
    )


@Operator(
    "mamba_mixer_backward",
    "(Tensor grad, Tensor projected, Tensor convolved, Tensor parameters, Tensor delta, Tensor gated, Tensor states, "
    f"{_MIXER_INPUTS}) -> ({', '.join(['Tensor'] * 12)})",
)
def _mixer_backward(
    grad,
    projected,
    convolved,
    parameters,
    delta,
    gated,
    states,
    rows,
    in_weight,
    in_bias,
    conv_weight,
    conv_bias,
    x_proj_weight,
    dt_proj_weight,
    dt_proj_bias,
    A,
    D,
    out_weight,
    out_bias,
    lengths,
):
    """Returns the gradients of the inputs but `lengths`; those of absent ones have no elements."""
    (inner, state), rank = A.shape, dt_proj_weight.shape[1]
    batch, length, _ = rows.shape
    size = _group_size(batch, length, inner)

    def new(*shape):
        return torch.empty(shape, dtype=rows.dtype)

    # Every gradient is written where it belongs, into a part of a wider tensor, so that nothing has to be joined. All
    # but those that are returned use the same memory for each group of records.
    grad_rows = new(*rows.shape)
    grad_projected = new(size, length, 0 if in_weight is None else 2 * inner)
    grad_gated = new(size, length, 0 if out_weight is None else inner)
    grad_parameters, grad_convolved, grad_delta = (
        new(size, length, width) for width in (parameters.shape[-1], inner, inner)
    )
    states = states.view(batch, launch.states_size(1, length, inner, state))
    sums: dict[str, Tensor] = {}

    def add(**grads):
        for name, value in grads.items():
            if value is not None:
                sums[name] = value if name not in sums else sums[name] + value

    for start in range(0, max(1, batch), size):
        group, part = slice(start, start + size), slice(min(size, batch - start))
        grad_y = grad[group]
        if out_weight is not None:
            grad_y, flat_grad = grad_gated[part], _flat(grad_y)
            add(
                out_weight=_backward(flat_grad, gated[group], out_weight, grad_y),
                out_bias=None if out_bias is None else flat_grad.sum(0),
            )
        x, gate = _split((rows if in_weight is None else projected)[group], inner)
        grad_x_and_gate = grad_rows[group] if in_weight is None else grad_projected[part]
        grad_x, grad_gate = _split(grad_x_and_gate, inner)
        time_step, B, C = _split_parameters(parameters[group], rank, state)
        grad_time_step, grad_B, grad_C = _split_parameters(grad_parameters[part], rank, state)
        group_lengths = None if lengths is None else lengths[group]
        grad_A, grad_D, grad_dt_bias, _ = launch.scan_backward(
            *(grad_y, None, states[group], convolved[group], delta[group], A, B, C, D, gate, dt_proj_bias, True),
            group_lengths,
            grad_rows=(grad_convolved[part], grad_delta[part], grad_gate, grad_B, grad_C),
        )
        add(A=grad_A, D=grad_D, dt_proj_bias=grad_dt_bias)
        flat_parameters, flat_convolved = _flat(grad_parameters[part]), _flat(grad_convolved[part])
        grad_dt_weight, grad_x_weight = launch.linear_backward(
            (_flat(grad_delta[part]), _flat(time_step), dt_proj_weight, _flat(grad_time_step), False),
            (flat_parameters, _flat(convolved[group]), x_proj_weight, flat_convolved, True),
        )
        add(dt_proj_weight=grad_dt_weight, x_proj_weight=grad_x_weight)
        grad_conv_weight, grad_conv_bias = launch.convolution_backward(
            grad_convolved[part], x, conv_weight, conv_bias, True, group_lengths, grad_x
        )
        add(conv_weight=grad_conv_weight, conv_bias=grad_conv_bias)
        if in_weight is not None:
            flat_grad = _flat(grad_x_and_gate)
            add(
                in_weight=_backward(flat_grad, rows[group], in_weight, grad_rows[group]),
                in_bias=None if in_bias is None else flat_grad.sum(0),
            )
    return grad_rows, *(sums[name] if name in sums else torch.empty(0) for name in _MIXER_WEIGHTS)


@_mixer_backward.register_fake
def _(grad, projected, convolved, parameters, delta, gated, states, *inputs):
    *tensors, _lengths = inputs
    return tuple(states.new_empty(0) if tensor is None else tensor.new_empty(tensor.shape) for tensor in tensors)


def _keep_mixer(ctx, inputs, output):
    *tensors, ctx.keep = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output[1:], *tensors)


def _differentiate_mixer(ctx, grad, *_):
    if not ctx.keep:
        raise RuntimeError("what backward needs was not kept: call mamba_mixer with keep=True")
    tensors = ctx.saved_tensors
    if grad is None:
        return (None,) * 14
    grads = torch.ops.hymate.mamba_mixer_backward(grad, *tensors)
    return *(None if tensor is None else grad for tensor, grad in zip(tensors[6:18], grads, strict=True)), None, None


_mixer.register_autograd(_differentiate_mixer, setup_context=_keep_mixer)
_mixer_backward.register_autograd(no_second_derivative("Mamba mixer"))


def mamba_mixer(
    states: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    x_proj_weight: Tensor,
    dt_proj_weight: Tensor,
    dt_proj_bias: Tensor | None,
    A: Tensor,
    D: Tensor,
    lengths: Tensor | None = None,
    *,
    in_proj_weight: Tensor | None = None,
    in_proj_bias: Tensor | None = None,
    out_proj_weight: Tensor | None = None,
    out_proj_bias: Tensor | None = None,
) -> Tensor:
    """A Mamba mixer on the CPU as one differentiable function.

    Projection to states and gate, convolution with SiLU, projection to time step, B and C, projection of the time
    step, gated selective scan, projection of the output. Rows and matrix products take the dtype of `states`, or
    autocast's; A, D, the convolution, the time step's bias and the state are float32. Without `in_proj_weight` or
    `out_proj_weight` that projection is left to the caller.

    Args:
        states: `(batch, length, hidden)`; without `in_proj_weight` `(batch, length, 2 inner)`, states and then gate.
        conv_weight: `(inner, 1, kernel)`, a kernel of at most 8. conv_bias: `(inner,)`.
        x_proj_weight: `(rank + 2 state, inner)`. dt_proj_weight: `(inner, rank)`. dt_proj_bias: `(inner,)`.
        A: `(inner, state)`, already negative. D: `(inner,)`.
        lengths: `(batch,)` integers, as in `selective_scan`.
        in_proj_weight: `(2 inner, hidden)`. in_proj_bias: `(2 inner,)`.
        out_proj_weight: `(out, inner)`. out_proj_bias: `(out,)`.

    Returns:
        `(batch, length, out)`; without `out_proj_weight` `(batch, length, inner)`.

    Raises:
        ValueError: a shape, device or dtype does not fit.
        RuntimeError: the kernels are not available, or a second derivative is asked for.
    """
    if states.dim() != 3 or A.dim() != 2 or conv_weight.dim() != 3 or dt_proj_weight.dim() != 2:
        raise ValueError("states and conv_weight must have 3 dimensions, A and dt_proj_weight 2")
    batch, length, width = states.shape
    (inner, state), rank, kernel = A.shape, dt_proj_weight.shape[1], conv_weight.shape[2]
    if not 1 <= kernel <= MAX_KERNEL:
        raise ValueError(f"conv_weight must have a kernel of 1 to {MAX_KERNEL}, got {kernel}")
    out_width = 0 if out_proj_weight is None else out_proj_weight.shape[0]
    check(
        states=(states, (batch, length, 2 * inner if in_proj_weight is None else width)),
        conv_weight=(conv_weight, (inner, 1, kernel)),
        conv_bias=(conv_bias, (inner,)),
        x_proj_weight=(x_proj_weight, (rank + 2 * state, inner)),
        dt_proj_weight=(dt_proj_weight, (inner, rank)),
        dt_proj_bias=(dt_proj_bias, (inner,)),
        A=(A, (inner, state)),
        D=(D, (inner,)),
        in_proj_weight=(in_proj_weight, (2 * inner, width)),
        in_proj_bias=(in_proj_bias, (2 * inner,)),
        out_proj_weight=(out_proj_weight, (out_width, inner)),
        out_proj_bias=(out_proj_bias, (out_width,)),
    )
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else states.dtype
    check_dtype(dtype)

    def cast(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.to(dtype)

    tensors = (
        *(states.to(dtype), cast(in_proj_weight), cast(in_proj_bias)),
        *(conv_weight.squeeze(1).float(), as_float(conv_bias), x_proj_weight.to(dtype), dt_proj_weight.to(dtype)),
        *(as_float(dt_proj_bias), A.float(), D.float(), cast(out_proj_weight), cast(out_proj_bias)),
    )
    lengths = checked_lengths(lengths, batch, length)
    return torch.ops.hymate.mamba_mixer(*tensors, lengths, needs_grad(*tensors))[0]
