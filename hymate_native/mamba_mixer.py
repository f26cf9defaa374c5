"""The whole Mamba mixer as one PyTorch operator."""

from collections.abc import Sequence
from ctypes import Structure
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hymate_native import library
from hymate_native.argument_checks import as_float, check_dtype, check_shapes, checked_lengths
from hymate_native.custom_operator import CustomOperator, needs_grad, no_second_derivative
from hymate_native.selective_scan import new_states, states_size
from hymate_native.structures import DTYPES, MAX_KERNEL, MixerArguments, dense, dense_rows, describe, pointer

_INPUTS = (
    "Tensor rows, Tensor? in_weight, Tensor? in_bias, Tensor conv_weight, Tensor? conv_bias, Tensor x_weight, "
    "Tensor dt_weight, Tensor? dt_bias, Tensor A, Tensor D, Tensor? out_weight, Tensor? out_bias, Tensor? norm, "
    "Tensor? factors, Tensor? lengths, float eps"
)


MIXER_WEIGHTS = (
    *("in_weight", "in_bias", "conv_weight", "conv_bias", "x_weight", "dt_weight", "dt_bias", "A", "D"),
    *("out_weight", "out_bias", "norm", "factors"),
)


@CustomOperator("mamba_mixer", f"({_INPUTS}, bool keep) -> (Tensor, Tensor, Tensor, Tensor, Tensor)")
def _mixer(rows, *inputs):
    """Returns the output, and with `keep` what backward needs: the projected and the convolved rows, (time step, B, C)
    and the scan's states. A projection without a weight is the caller's."""
    *weights, lengths, eps, keep = inputs
    return _launch_forward(rows, weights, lengths, eps, keep=keep)


@_mixer.register_fake
def _(rows, *inputs):
    *weights, _lengths, _eps, keep = inputs
    in_weight, x_weight, A, out_weight = (
        weights[MIXER_WEIGHTS.index(name)] for name in ("in_weight", "x_weight", "A", "out_weight")
    )
    batch, length, _ = rows.shape
    inner, state = A.shape

    def new(width):
        return rows.new_empty((batch, length, width))

    output = new(inner if out_weight is None else out_weight.shape[0])
    if not keep:
        return output, *(rows.new_empty(0) for _ in range(3)), A.new_empty(0)
    projected = rows.new_empty(0) if in_weight is None else new(2 * inner)
    states = A.new_empty(states_size(batch, length, inner, state))
    return output, projected, new(inner), new(x_weight.shape[0]), states


@CustomOperator(
    "mamba_mixer_backward",
    f"(Tensor grad, Tensor projected, Tensor convolved, Tensor parameters, Tensor states, {_INPUTS}) -> "
    f"({', '.join(['Tensor'] * 14)})",
)
def _mixer_backward(grad, projected, convolved, parameters, states, rows, *inputs):
    """Returns the gradients of the tensors but `lengths`; those of absent ones have no elements."""
    *weights, lengths, eps = inputs
    grad_rows, grads = _launch_backward(grad, projected, convolved, parameters, states, rows, weights, lengths, eps)
    return grad_rows, *(torch.empty(0) if weight_grad is None else weight_grad for weight_grad in grads)


@_mixer_backward.register_fake
def _(grad, projected, convolved, parameters, states, *inputs):
    *tensors, _factors, _lengths, _eps = inputs
    grads = (states.new_empty(0) if tensor is None else tensor.new_empty(tensor.shape) for tensor in tensors)
    return *grads, states.new_empty(0)


def _keep_mixer(ctx, inputs, output):
    *tensors, ctx.eps, ctx.keep = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output[1:], *tensors)


def _differentiate_mixer(ctx, grad, *_):
    if not ctx.keep:
        raise RuntimeError("what backward needs was not kept: call mamba_mixer with keep=True")
    if grad is None:
        return (None,) * 17
    kept_and_inputs = ctx.saved_tensors
    *grads, _ = torch.ops.hymate.mamba_mixer_backward(grad, *kept_and_inputs, ctx.eps)
    inputs = kept_and_inputs[4:-2]
    return *(None if tensor is None else grad for tensor, grad in zip(inputs, grads, strict=True)), *(None,) * 4


_mixer.register_autograd(_differentiate_mixer, setup_context=_keep_mixer)
_mixer_backward.register_autograd(no_second_derivative("Mamba mixer"))


@CustomOperator(
    "mamba_mixer_stream", f"({_INPUTS}, Tensor? conv_state, Tensor? scan_state) -> (Tensor, Tensor, Tensor)"
)
def mixer_stream_operator(rows, *inputs):
    """Returns the output and both states after it. It has no gradient."""
    *weights, lengths, eps, conv_state, scan_state = inputs
    return _launch_stream(rows, weights, lengths, eps, conv_state, scan_state)


@mixer_stream_operator.register_fake
def _(rows, *inputs):
    conv_weight, A, out_weight = (inputs[MIXER_WEIGHTS.index(name)] for name in ("conv_weight", "A", "out_weight"))
    (batch, length, _), (inner, state) = rows.shape, A.shape
    output = rows.new_empty((batch, length, inner if out_weight is None else out_weight.shape[0]))
    return output, A.new_empty((batch, inner, conv_weight.shape[1] - 1)), A.new_empty((batch, inner, state))


def _launch_forward(
    rows: Tensor, weights: Sequence[Tensor | None], lengths: Tensor | None, eps: float, *, keep: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Returns the output and what backward needs: the projected and the convolved rows, (time step, B, C) and the kept
    states; without `keep` those have no elements.

    Args:
        weights: float32, in the order of the struct: in_weight, in_bias, conv_weight, conv_bias, x_weight, dt_weight,
            dt_bias, A, D, out_weight, out_bias, norm, factors. Without in_weight the rows are projected ones, without
            out_weight the gated rows are the output.
    """
    rows, lengths, weights = dense_rows(rows), dense(lengths), [dense(weight) for weight in weights]
    sizes = mixer_sizes(rows, weights)
    batch, length, inner, state = (sizes[name] for name in ("batch", "length", "inner", "state"))

    def new(width: int, kept: bool = keep) -> Tensor:
        return torch.empty((batch, length, width) if kept else 0, dtype=rows.dtype)

    output, projected = new(sizes["outputs"], True), new(2 * inner, keep and weights[0] is not None)
    convolved, parameters = new(inner), new(sizes["rank"] + 2 * state)
    states = new_states(batch if keep else 0, length, inner, state)
    kept = _kept(projected, convolved, parameters, states) if keep else {}
    kept |= {"out": describe(output), "eps": eps}
    library.call("mixer_forward", mixer_arguments(sizes, rows, weights, lengths, **kept))
    return output, projected, convolved, parameters, states


def _launch_stream(
    rows: Tensor,
    weights: Sequence[Tensor | None],
    lengths: Tensor | None,
    eps: float,
    conv_state: Tensor | None,
    scan_state: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    rows, lengths, weights = dense_rows(rows), dense(lengths), [dense(weight) for weight in weights]
    sizes = mixer_sizes(rows, weights)
    batch, length, inner, state = (sizes[name] for name in ("batch", "length", "inner", "state"))
    output = torch.empty((batch, length, sizes["outputs"]), dtype=rows.dtype)
    final = torch.empty((batch, inner, sizes["kernel"] - 1)), torch.empty((batch, inner, state))
    function = "mixer_step" if length <= _FEW_EVENTS else "mixer_forward"
    states = {
        **{"conv_initial": pointer(dense(conv_state)), "scan_initial": pointer(dense(scan_state))},
        **{"conv_final": pointer(final[0]), "scan_final": pointer(final[1]), "eps": eps},
    }
    library.call(function, mixer_arguments(sizes, rows, weights, lengths, out=describe(output), **states))
    return output, *final


def _launch_backward(
    grad_output: Tensor,
    projected: Tensor,
    convolved: Tensor,
    parameters: Tensor,
    states: Tensor,
    rows: Tensor,
    weights: Sequence[Tensor | None],
    lengths: Tensor | None,
    eps: float,
) -> tuple[Tensor, list[Tensor | None]]:
    """Returns the gradients of the rows and of the weights; that of an absent weight, and of the factors, is None."""
    grad_output, rows = dense_rows(grad_output), dense_rows(rows)
    lengths, weights = dense(lengths), [dense(weight) for weight in weights]
    grad_rows = torch.empty(rows.shape, dtype=rows.dtype)
    grad_weights = [None if weight is None else torch.empty(weight.shape) for weight in weights[:-1]]
    others = _kept(projected, convolved, parameters, states)
    others |= {"grad_out": describe(grad_output), "grad_rows": describe(grad_rows), "eps": eps}
    others |= {f"grad_{name}": pointer(grad) for name, grad in zip(MIXER_WEIGHTS, grad_weights, strict=False)}
    library.call("mixer_backward", mixer_arguments(mixer_sizes(rows, weights), rows, weights, lengths, **others))
    return grad_rows, [*grad_weights, None]


def mixer_sizes(rows: Tensor, weights: Sequence[Any]) -> dict[str, int]:
    conv_weight, dt_weight, A, out_weight = weights[2], weights[5], weights[7], weights[9]
    batch, length, width = rows.shape
    inner, state = A.shape
    outputs = inner if out_weight is None else out_weight.shape[0]
    return {
        **{"batch": batch, "length": length, "width": width, "inner": inner, "state": state},
        **{"rank": dt_weight.shape[1], "kernel": conv_weight.shape[1], "outputs": outputs},
    }


def _kept(projected: Tensor, convolved: Tensor, parameters: Tensor, states: Tensor) -> dict[str, Any]:
    rows = {"projected": projected, "convolved": convolved, "parameters": parameters}
    described = {name: describe(tensor) for name, tensor in rows.items() if tensor.dim() == 3}
    return {**described, "states": pointer(states)}


def mixer_arguments(
    sizes: dict[str, int], rows: Tensor, weights: Sequence[Tensor | None], lengths: Tensor | None, **others: Any
) -> Structure:
    named = dict(zip(MIXER_WEIGHTS, map(pointer, weights), strict=True))
    common = {
        "dtype": DTYPES[rows.dtype],
        "threads": library.threads(),
        "rows": describe(rows),
        "lengths": pointer(lengths),
    }
    return MixerArguments(**sizes, **common, **named, **others)


_FEW_EVENTS = 4  # of a record: packing the weights would cost more than multiplying with them as they lie


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
    norm: Tensor | None = None,
    eps: float = 0.0,
    factors: Tensor | None = None,
    initial_state: tuple[Tensor, Tensor] | None = None,
    return_final_state: bool = False,
) -> Tensor | tuple[Tensor, tuple[Tensor, Tensor]]:
    """A Mamba mixer on the CPU as one differentiable function.

    Projection to states and gate, convolution with SiLU, projection to time step, B and C, projection of the time
    step, gated selective scan, projection of the output. The rows take the dtype of `states`, or autocast's; weights
    and arithmetic are float32, but for the first and the last projection where the processor multiplies that dtype
    itself. Without `in_proj_weight` or `out_proj_weight` that projection is the caller's.

    Args:
        states: `(batch, length, hidden)`; without `in_proj_weight` `(batch, length, 2 inner)`, states and then gate.
        conv_weight: `(inner, 1, kernel)`, a kernel of at most 8. conv_bias: `(inner,)`.
        x_proj_weight: `(rank + 2 state, inner)`. dt_proj_weight: `(inner, rank)`. dt_proj_bias: `(inner,)`.
        A: `(inner, state)`, already negative. D: `(inner,)`.
        lengths: `(batch,)` integers, as in `selective_scan`.
        in_proj_weight: `(2 inner, hidden)`. in_proj_bias: `(2 inner,)`.
        out_proj_weight: `(out, inner)`. out_proj_bias: `(out,)`.
        norm: `(hidden,)`, the gain of a root mean square norm with `eps`. With it, all of this is inside a residual
            layer, `states + factors * mixer(norm(states))`, for float32 states and with both projections; padding
            gives 0 then.
        factors: `(batch, hidden)`, such as those of dropout of whole features. They have no gradient.
        initial_state: what the events before left behind, as `return_final_state` gave it: the last inputs of the
            convolution, `(batch, inner, kernel - 1)`, and the scan's state, `(batch, inner, state)`, both float32.
            Absent, a record begins here.
        return_final_state: also return the state after the last valid event.

    Returns:
        `(batch, length, out)`; without `out_proj_weight` `(batch, length, inner)`. With `return_final_state` the pair
        of it and the final state.

    Raises:
        ValueError: a shape, device or dtype does not fit.
        RuntimeError: the kernels are not available, a second derivative is asked for, or any derivative with an
            initial or a final state.
    """
    conv_state, scan_state = initial_state or (None, None)
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else states.dtype
    weights = {
        **{"in_proj_weight": in_proj_weight, "in_proj_bias": in_proj_bias},
        **{"conv_weight": conv_weight, "conv_bias": conv_bias, "x_proj_weight": x_proj_weight},
        **{"dt_proj_weight": dt_proj_weight, "dt_proj_bias": dt_proj_bias, "A": A, "D": D},
        **{"out_proj_weight": out_proj_weight, "out_proj_bias": out_proj_bias, "norm": norm, "factors": factors},
    }
    _check_mixer(dtype, states=states, **weights, conv_state=conv_state, scan_state=scan_state)
    rows = states.to(dtype)
    last: tuple[Tensor | None, Tensor | None] = (None, None)
    if library.multiplies(dtype):  # then PyTorch does the first and the last projection
        rows, last = _project(rows, in_proj_weight, in_proj_bias), (out_proj_weight, out_proj_bias)
        weights |= dict.fromkeys(("in_proj_weight", "in_proj_bias", "out_proj_weight", "out_proj_bias"))
    tensors = (rows, *map(as_float, (weights | {"conv_weight": conv_weight.squeeze(1)}).values()))
    lengths = checked_lengths(lengths, *states.shape[:2])
    if initial_state is None and not return_final_state:
        return _project(torch.ops.hymate.mamba_mixer(*tensors, lengths, eps, needs_grad(*tensors))[0], *last)
    if needs_grad(*tensors, conv_state, scan_state):
        raise RuntimeError(
            "a Mamba mixer that starts from a state or returns one has no gradient: use torch.no_grad()"
        )
    output, *final_state = torch.ops.hymate.mamba_mixer_stream(
        *tensors, lengths, eps, as_float(conv_state), as_float(scan_state)
    )
    output = _project(output, *last)
    return (output, tuple(final_state)) if return_final_state else output


def _project(rows: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    if weight is None:
        return rows
    return F.linear(rows, weight.to(rows.dtype), None if bias is None else bias.to(rows.dtype))


def _check_mixer(dtype: torch.dtype, **tensors: Any) -> None:
    """Raises ValueError if any argument of `mamba_mixer`, by name, does not fit the others or `dtype`."""
    states, conv_weight, A, dt_weight = (tensors[name] for name in ("states", "conv_weight", "A", "dt_proj_weight"))
    if states.dim() != 3 or A.dim() != 2 or conv_weight.dim() != 3 or dt_weight.dim() != 2:
        raise ValueError("states and conv_weight must have 3 dimensions, A and dt_proj_weight 2")
    batch, length, width = states.shape
    (inner, state), rank, kernel = A.shape, dt_weight.shape[1], conv_weight.shape[2]
    if not inner or not width:
        raise ValueError(f"states and A must have channels, got {tuple(states.shape)} and {tuple(A.shape)}")
    if not 1 <= kernel <= MAX_KERNEL:
        raise ValueError(f"conv_weight must have a kernel of 1 to {MAX_KERNEL}, got {kernel}")
    projects = tensors["in_proj_weight"] is not None
    outputs = 0 if tensors["out_proj_weight"] is None else tensors["out_proj_weight"].shape[0]
    expected = {
        "states": (batch, length, width if projects else 2 * inner),
        "conv_weight": (inner, 1, kernel),
        "conv_bias": (inner,),
        "x_proj_weight": (rank + 2 * state, inner),
        "dt_proj_weight": (inner, rank),
        "dt_proj_bias": (inner,),
        "A": (inner, state),
        "D": (inner,),
        "in_proj_weight": (2 * inner, width),
        "in_proj_bias": (2 * inner,),
        "out_proj_weight": (outputs, inner),
        "out_proj_bias": (outputs,),
        "norm": (width,),
        "factors": (batch, width),
        "conv_state": (batch, inner, kernel - 1),
        "scan_state": (batch, inner, state),
    }
    check_shapes(**{name: (tensor, expected[name]) for name, tensor in tensors.items()})
    check_dtype(dtype)
    if tensors["norm"] is not None and (not projects or outputs != width or dtype != torch.float32):
        raise ValueError(f"norm needs float32 states, in_proj_weight and an out_proj_weight of {width} outputs")
