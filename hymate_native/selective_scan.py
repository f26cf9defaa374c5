"""The selective scan of Mamba as a PyTorch operator: with autograd, compiled, in half precision."""

import torch
from torch import Tensor

from hymate_native import library
from hymate_native.argument_checks import as_float, check_shapes, checked_lengths, row_dtype
from hymate_native.custom_operator import CustomOperator, needs_grad, no_second_derivative
from hymate_native.structures import CHUNK, DTYPES, ScanArguments, dense, dense_rows, describe, pointer

# An operator returns tensors only: what was not asked for has no elements.

_SCAN_INPUTS = (
    "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? delta_bias, "
    "bool delta_softplus, Tensor? lengths, Tensor? initial_state"
)


@CustomOperator("scan", f"({_SCAN_INPUTS}, bool return_final_state, bool keep_states) -> (Tensor, Tensor, Tensor)")
def _scan(
    u,
    delta,
    A,
    B,
    C,
    D,
    z,
    delta_bias,
    delta_softplus,
    lengths,
    initial_state,
    return_final_state,
    keep_states,
):
    return _launch_forward(
        *(u, delta, A, B, C, D, z, delta_bias, delta_softplus, lengths, initial_state),
        return_final_state=return_final_state,
        keep_states=keep_states,
    )


@_scan.register_fake
def _(u, delta, A, B, C, D, z, delta_bias, delta_softplus, lengths, initial_state, return_final_state, keep_states):
    batch, length, inner = u.shape
    state = A.shape[1]
    return (
        u.new_empty((batch, length, inner)),
        A.new_empty((batch, inner, state) if return_final_state else 0),
        A.new_empty(states_size(batch, length, inner, state) if keep_states else 0),
    )


@CustomOperator(
    "scan_backward",
    f"(Tensor? grad_y, Tensor? grad_final_state, Tensor states, {_SCAN_INPUTS}) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _scan_backward(
    grad_y, grad_final_state, states, u, delta, A, B, C, D, z, delta_bias, delta_softplus, lengths, initial_state
):
    grad_u, grad_delta, grad_B, grad_C = (torch.empty(tensor.shape, dtype=tensor.dtype) for tensor in (u, delta, B, C))
    grad_z = None if z is None else torch.empty(z.shape, dtype=z.dtype)
    if grad_y is None:
        grad_y = torch.zeros_like(u)
    grad_A, grad_D, grad_bias, grad_initial = _launch_backward(
        *(grad_y, grad_final_state, states, u, delta, A, B, C, D, z, delta_bias, delta_softplus, lengths),
        grad_rows=(grad_u, grad_delta, grad_z, grad_B, grad_C),
        needs_initial_state=initial_state is not None,
    )
    grads = (grad_u, grad_delta, grad_A, grad_B, grad_C, grad_D, grad_z, grad_bias, grad_initial)
    return tuple(torch.empty(0) if grad is None else grad for grad in grads)


@_scan_backward.register_fake
def _(grad_y, grad_final_state, states, u, delta, A, B, C, D, z, delta_bias, delta_softplus, lengths, initial_state):
    return tuple(
        A.new_empty(0) if tensor is None else tensor.new_empty(tensor.shape)
        for tensor in (u, delta, A, B, C, D, z, delta_bias, initial_state)
    )


def _keep_scan(ctx, inputs, output):
    u, delta, A, B, C, D, z, delta_bias, delta_softplus, lengths, initial_state, _, keep_states = inputs
    ctx.set_materialize_grads(False)
    ctx.delta_softplus = delta_softplus
    ctx.keep_states = keep_states
    ctx.save_for_backward(output[2], u, delta, A, B, C, D, z, delta_bias, lengths, initial_state)


def _differentiate_scan(ctx, grad_y, grad_final_state, grad_states):
    if not ctx.keep_states:
        raise RuntimeError("the states that backward needs were not kept: call the scan with keep_states=True")
    *before, lengths, initial_state = ctx.saved_tensors
    states, u, delta, A, B, C, D, z, delta_bias = before
    if grad_final_state is not None and not grad_final_state.numel():
        grad_final_state = None
    grads = torch.ops.hymate.scan_backward(
        *(grad_y, grad_final_state, states, u, delta, A, B, C, D, z, delta_bias),
        *(ctx.delta_softplus, lengths, initial_state),
    )
    optional = (D, z, delta_bias, initial_state)
    grad_D, grad_z, grad_bias, grad_initial = (
        None if tensor is None else grad for tensor, grad in zip(optional, grads[5:], strict=True)
    )
    return *grads[:5], grad_D, grad_z, grad_bias, None, None, grad_initial, None, None


_scan.register_autograd(_differentiate_scan, setup_context=_keep_scan)
_scan_backward.register_autograd(no_second_derivative("selective scan"))


def states_size(batch: int, length: int, inner: int, state: int) -> int:
    """Number of floats of the states that a training forward keeps for its backward, one at each chunk's start."""
    return batch * ((length + CHUNK - 1) // CHUNK) * state * ((inner + 15) // 16 * 16)


def new_states(batch: int, length: int, inner: int, state: int) -> Tensor:
    """Room for the states that a training forward keeps."""
    # builds of narrower vectors leave lanes beyond `inner` unwritten, and what stands there would differ between calls
    new = torch.zeros if inner % 16 else torch.empty
    return new(states_size(batch, length, inner, state))


def _launch_forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    lengths: Tensor | None,
    initial_state: Tensor | None,
    *,
    return_final_state: bool,
    keep_states: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns y, the final state and the kept states; what was not asked for has no elements."""
    u, delta, z, B, C = (dense_rows(tensor) for tensor in (u, delta, z, B, C))
    A, D, delta_bias, lengths, initial_state = map(dense, (A, D, delta_bias, lengths, initial_state))
    batch, length, inner = u.shape
    state = A.shape[1]
    y = torch.empty((batch, length, inner), dtype=u.dtype)
    final_state = torch.empty((batch, inner, state) if return_final_state else 0)
    states = new_states(batch if keep_states else 0, length, inner, state)
    arguments = ScanArguments(
        *(batch, length, inner, state, DTYPES[u.dtype], delta_softplus, library.threads()),
        *map(describe, (u, delta, z, B, C)),
        *map(pointer, (A, D, delta_bias, lengths, initial_state)),
        describe(y),
        pointer(final_state if return_final_state else None),
        pointer(states if keep_states else None),
    )
    library.call("scan_forward", arguments)
    return y, final_state, states


def _launch_backward(
    grad_y: Tensor,
    grad_final_state: Tensor | None,
    states: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    lengths: Tensor | None,
    *,
    grad_rows: tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor],
    needs_initial_state: bool = False,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Writes the gradients of u, delta, z, B, C into `grad_rows`; returns those of A, D, delta_bias, initial_state."""
    u, delta, z, B, C, grad_y = (dense_rows(tensor) for tensor in (u, delta, z, B, C, grad_y))
    A, D, delta_bias, lengths, grad_final_state = map(dense, (A, D, delta_bias, lengths, grad_final_state))
    batch, length, inner = u.shape
    state = A.shape[1]
    grad_A = torch.empty((inner, state))
    grad_D = None if D is None else torch.empty(inner)
    grad_bias = None if delta_bias is None else torch.empty(inner)
    grad_initial = torch.empty((batch, inner, state)) if needs_initial_state else None
    arguments = ScanArguments(
        *(batch, length, inner, state, DTYPES[u.dtype], delta_softplus, library.threads()),
        *map(describe, (u, delta, z, B, C)),
        *map(pointer, (A, D, delta_bias, lengths, None)),
        describe(None),
        *map(pointer, (None, states)),
        describe(grad_y),
        pointer(grad_final_state),
        *map(describe, grad_rows),
        *map(pointer, (grad_A, grad_D, grad_bias, grad_initial)),
    )
    library.call("scan_backward", arguments)
    return grad_A, grad_D, grad_bias, grad_initial


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = True,
    lengths: Tensor | None = None,
    initial_state: Tensor | None = None,
    return_final_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """The selective scan of Mamba on the CPU.

    With `d_t = softplus(delta_t + delta_bias)`: `h_t = exp(d_t A) h_{t-1} + d_t B_t u_t` and
    `y_t = (C_t . h_t + D u_t) silu(z_t)`. The state is float32 whatever the dtype of the rows.

    Args:
        u, delta, z: `(batch, length, inner)`, float32, bfloat16 or float16. Time and batch may have any stride.
        A: `(inner, state)`. B, C: `(batch, length, state)`. D, delta_bias: `(inner,)`.
        lengths: `(batch,)` integers. Steps at or after a record's length give 0, take no gradient, do not move the
            state and cost nothing; lengths beyond the rows' count as the rows'.
        initial_state: `(batch, inner, state)`.

    Returns:
        y `(batch, length, inner)` in u's dtype; with `return_final_state` also the float32 state after the last valid
        step, `(batch, inner, state)`.

    Raises:
        ValueError: a shape, device or dtype does not fit.
        RuntimeError: the kernels are not available, or a second derivative is asked for.
    """
    if u.dim() != 3 or A.dim() != 2:
        raise ValueError(f"u must have 3 dimensions and A 2, got {u.dim()} and {A.dim()}")
    batch, length, inner = u.shape
    state = A.shape[1]
    if not inner:
        raise ValueError(f"u must have channels, got {tuple(u.shape)}")
    check_shapes(
        u=(u, (batch, length, inner)),
        delta=(delta, (batch, length, inner)),
        z=(z, (batch, length, inner)),
        A=(A, (inner, state)),
        B=(B, (batch, length, state)),
        C=(C, (batch, length, state)),
        D=(D, (inner,)),
        delta_bias=(delta_bias, (inner,)),
        initial_state=(initial_state, (batch, inner, state)),
    )
    dtype = row_dtype(u, delta, B, C, z)
    y, final_state, _ = torch.ops.hymate.scan(
        *(u.to(dtype), delta.to(dtype), A.float(), B.to(dtype), C.to(dtype)),
        *(as_float(D), None if z is None else z.to(dtype), as_float(delta_bias), delta_softplus),
        *(checked_lengths(lengths, batch, length), as_float(initial_state), return_final_state),
        needs_grad(u, delta, A, B, C, D, z, delta_bias, initial_state),
    )
    y = y.to(u.dtype)
    return (y, final_state) if return_final_state else y
