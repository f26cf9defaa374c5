"""The Triton kernels on plain tensors: no autograd, no checks of shapes. Tiles are chosen by shape and device."""

import contextlib
import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .triton_convolution import convolution_grad_kernel, convolution_kernel
from .triton_scan import carry_grad_kernel, carry_kernel, scan_grad_kernel, scan_kernel, triton

CHUNK = 8  # steps from one kept state to the next: a tile of the backward pass
SHORTEST_SEGMENT = 256  # steps; what the cuts of time cost is small beside these
WARPS_PER_MULTIPROCESSOR = 8  # fewer leave a multiprocessor waiting for its own memory
CONVOLUTION_TILE = {"STEPS": 32, "LANES": 64}
MOST_WARPS = 16  # of a program; a GPU takes 32 at most
MOST_PARTS = 2**16 - 1  # of a grid along its second and third axis


class Tile(NamedTuple):
    """How much of a row one program takes at a time: steps by channels; its warps, among which its states are
    divided; and the tiles that it has on their way from memory or in its registers."""

    steps: int
    lanes: int
    warps: int
    stages: int = 3


def padded_states(state: int) -> int:
    return max(4, triton.next_power_of_2(state))


def forward_tiles(state: int) -> tuple[Tile, Tile]:
    """A wide tile, which does less work twice; and one that gives few channels to more programs. Measured on an H200
    (docs/speed.md), as `backward_tile`."""
    warps = min(MOST_WARPS, max(1, padded_states(state) // 16))
    return Tile(8, 16, warps), Tile(8, 8, warps)


def backward_tile(state: int) -> Tile:
    """Its steps are those between kept states; a wider one would spill registers."""
    return Tile(CHUNK, 8, min(MOST_WARPS, max(1, padded_states(state) // 16)))


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """Independent processors of a GPU; 1 for Triton's interpreter on a CPU."""
    if device.type == "cpu":
        return 1
    properties = torch.get_device_module(device).get_device_properties(device)
    return getattr(properties, "multi_processor_count", 0) or getattr(properties, "gpu_subslice_count", 0) or 64


def choose_tile(tiles: tuple[Tile, Tile], batch: int, inner: int, device: torch.device) -> Tile:
    """The wide tile where it fills the device, else the narrow one."""
    wide, narrow = tiles
    warps = batch * triton.cdiv(inner, wide.lanes) * wide.warps
    return wide if 3 * multiprocessors(device) <= warps else narrow


def choose_segments(tile: Tile, batch: int, length: int, inner: int, device: torch.device) -> tuple[int, int]:
    """Number of segments of time, and steps in each. Cut time costs twice the work, so three segments are the
    fewest that pay."""
    warps = batch * triton.cdiv(inner, tile.lanes) * tile.warps
    wanted = WARPS_PER_MULTIPROCESSOR * multiprocessors(device) // max(1, warps)
    count = min(wanted, length // SHORTEST_SEGMENT)
    if count < 3:
        count = 1
    segment = max(CHUNK, triton.cdiv(triton.cdiv(length, count), CHUNK) * CHUNK)
    return max(1, triton.cdiv(length, segment)), segment


def kept_shape(batch: int, length: int, inner: int, state: int) -> tuple[int, int, int, int]:
    """Shape of the states that a training forward keeps for its backward, one at each chunk's start."""
    return batch, (length + CHUNK - 1) // CHUNK, state, inner


class _Scan:
    """The arguments that every kernel of a scan shares, on tensors whose rows are dense."""

    def __init__(self, u, delta, A, B, C, D, z, delta_bias, delta_softplus, lengths):
        self.u, self.delta, self.B, self.C, self.z = map(_dense_rows, (u, delta, B, C, z))
        self.A, self.D, self.bias, self.lengths = map(_dense, (A, D, delta_bias, lengths))
        self.batch, self.length, self.inner = u.shape
        self.state = A.shape[1]
        self.softplus = delta_softplus

    def new(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self.u.device)

    def like(self, tensor: Any) -> Any:
        return None if tensor is None else torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)

    def grid(self, tile: Tile, segments: int) -> tuple[int, int]:
        return self.batch * triton.cdiv(self.inner, tile.lanes), segments

    def constants(self, tile: Tile) -> dict[str, Any]:
        states = {"STATE": self.state, "STATES": padded_states(self.state)}
        return {**states, "LANES": tile.lanes, "num_warps": tile.warps}

    def loop(self, tile: Tile) -> dict[str, Any]:
        """The constants of kernels that walk through time."""
        return {"SOFTPLUS": self.softplus, "STEPS": tile.steps, "STAGES": tile.stages, **self.constants(tile)}

    def carry(self, tile: Tile, own: Tensor, elapsed: Tensor, first: Tensor | None, *, reverse: bool):
        """States, or gradients of states, at the cuts, `(batch, segments, state, inner)`, and beyond the last."""
        carried, last = torch.empty_like(own), self.new(self.batch, self.state, self.inner)
        grid, constants = self.grid(tile, 1), self.constants(tile)
        carry_kernel[grid](
            *(self.A, own, elapsed, first, carried, last, self.inner, own.shape[1]), REVERSE=reverse, **constants
        )
        return carried, last


def scan_forward(
    *inputs: Any, initial_state: Tensor | None, return_final_state: bool, keep_states: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns y, the final state and the kept states; what was not asked for has no elements.

    Args:
        inputs: u, delta, A, B, C, D, z, delta_bias, delta_softplus, lengths.
    """
    scan = _Scan(*inputs)
    sizes = scan.batch, scan.length, scan.inner
    tile = choose_tile(forward_tiles(scan.state), scan.batch, scan.inner, scan.u.device)
    segments, segment = choose_segments(tile, *sizes, scan.u.device)

    def run(entering, y, kept, leaving, elapsed):
        scan_kernel[scan.grid(tile, segments)](
            *(scan.u, scan.delta, scan.A, scan.B, scan.C, scan.D, scan.z, scan.bias, scan.lengths),
            *(entering, y, kept, leaving, elapsed, scan.length, scan.inner, segment),
            *_strides(scan.u, scan.delta, scan.B, scan.C, scan.z),
            CHUNK=CHUNK,
            **scan.loop(tile),
        )

    y = scan.new(*sizes, dtype=scan.u.dtype)
    kept = scan.new(*kept_shape(*sizes, scan.state)) if keep_states else None
    entering = _state_first(initial_state)
    final = scan.new(scan.batch, scan.state, scan.inner) if return_final_state else None
    with _on(scan.u):
        if segments > 1:
            own, elapsed = (
                scan.new(scan.batch, segments, scan.state, scan.inner),
                scan.new(scan.batch, segments, scan.inner),
            )
            run(None, None, None, own, elapsed)
            entering, final = scan.carry(tile, own, elapsed, entering, reverse=False)
        run(entering, y, kept, final if segments == 1 else None, None)
    empty = scan.new(0)
    final = _state_last(final) if return_final_state else empty
    return y, final, empty if kept is None else kept


def scan_backward(
    grad_y: Tensor,
    grad_final_state: Tensor | None,
    kept: Tensor,
    *inputs: Any,
    needs_initial_state: bool = False,
    grad_z: Tensor | None = None,
) -> tuple[Any, ...]:
    """Returns the gradients of u, delta, A, B, C, D, z, delta_bias and initial_state.

    Args:
        inputs: u, delta, A, B, C, D, z, delta_bias, delta_softplus, lengths.
        grad_z: where to write the gradient of z; its rows must be dense.
    """
    scan = _Scan(*inputs)
    grad_y = _dense_rows(grad_y)
    sizes = scan.batch, scan.length, scan.inner
    tile = backward_tile(scan.state)
    segments, segment = choose_segments(tile, *sizes, scan.u.device)
    blocks = triton.cdiv(scan.inner, tile.lanes)
    # rows that no program writes, those of padding, must be zero
    new = torch.empty if scan.lengths is None else torch.zeros
    part_B, part_C = (new(*sizes[:2], blocks, scan.state, device=scan.u.device) for _ in range(2))
    grad_A = scan.new(scan.batch, segments, scan.state, scan.inner)
    grad_D, grad_bias = (
        None if tensor is None else scan.new(scan.batch, segments, scan.inner) for tensor in (scan.D, scan.bias)
    )
    grad_u, grad_delta = scan.like(scan.u), scan.like(scan.delta)
    grad_z = scan.like(scan.z) if grad_z is None else grad_z
    arriving = _state_first(grad_final_state)
    departing = scan.new(scan.batch, scan.state, scan.inner) if needs_initial_state else None
    with _on(scan.u):
        if segments > 1:
            own, elapsed = scan.new(*grad_A.shape), scan.new(scan.batch, segments, scan.inner)
            carry_grad_kernel[scan.grid(tile, segments)](
                *(scan.delta, scan.A, scan.C, scan.z, scan.bias, scan.lengths, grad_y, own, elapsed),
                *(scan.length, scan.inner, segment, *_strides(scan.delta, scan.C, scan.z, grad_y)),
                **scan.loop(tile),
            )
            arriving, departing = scan.carry(tile, own, elapsed, arriving, reverse=True)
        scan_grad_kernel[scan.grid(tile, segments)](
            *(scan.u, scan.delta, scan.A, scan.B, scan.C, scan.D, scan.z, scan.bias, scan.lengths, kept, grad_y),
            *(arriving, grad_u, grad_delta, grad_z, grad_A, part_B, part_C, grad_D, grad_bias),
            *(departing if segments == 1 else None, scan.length, scan.inner, segment),
            *_strides(scan.u, scan.delta, scan.B, scan.C, scan.z, grad_y, grad_z),
            **scan.loop(tile),
        )
    return (
        grad_u,
        grad_delta,
        grad_A.sum((0, 1)).t().contiguous(),
        part_B.sum(2).to(scan.B.dtype),
        part_C.sum(2).to(scan.C.dtype),
        None if grad_D is None else grad_D.sum((0, 1)),
        grad_z,
        None if grad_bias is None else grad_bias.sum((0, 1)),
        _state_last(departing) if needs_initial_state else None,
    )


def convolution_forward(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, lengths: Tensor | None) -> Tensor:
    """x (batch, length, inner), weight (inner, kernel) float32; returns a tensor of x's shape."""
    x = _dense_rows(x)
    weight, bias, lengths = map(_dense, (weight, bias, lengths))
    batch, length, inner = x.shape
    y = torch.empty((batch, length, inner), dtype=x.dtype, device=x.device)
    with _on(x):
        convolution_kernel[_convolution_grid(x)](
            *(x, weight, bias, lengths, y, length, inner, *_strides(x)),
            **{"SILU": silu, "KERNEL": weight.shape[1], **CONVOLUTION_TILE},
        )
    return y


def convolution_backward(
    grad_y: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, lengths: Tensor | None, grad_x: Tensor
) -> tuple[Tensor, Any]:
    """Writes the gradient of x into `grad_x`, whose rows must be dense; returns those of weight and bias."""
    x, grad_y = _dense_rows(x), _dense_rows(grad_y)
    weight, bias, lengths = map(_dense, (weight, bias, lengths))
    inner, kernel = weight.shape
    grid = _convolution_grid(x)
    parts = grid[1] * grid[2]
    part_weight = torch.empty((len(x), parts, kernel, inner), device=x.device)
    part_bias = None if bias is None else torch.empty((len(x), parts, inner), device=x.device)
    with _on(x):
        convolution_grad_kernel[grid](
            *(grad_y, x, weight, bias, lengths, grad_x, part_weight, part_bias, x.shape[1], inner),
            *_strides(grad_y, x, grad_x),
            **{"SILU": silu, "KERNEL": kernel, **CONVOLUTION_TILE},
        )
    return part_weight.sum((0, 1)).t().contiguous(), None if part_bias is None else part_bias.sum((0, 1))


def _convolution_grid(x: Tensor) -> tuple[int, int, int]:
    batch, length, inner = x.shape
    parts = triton.cdiv(length, CONVOLUTION_TILE["STEPS"])
    layers = max(1, triton.cdiv(parts, MOST_PARTS))
    return batch * triton.cdiv(inner, CONVOLUTION_TILE["LANES"]), triton.cdiv(parts, layers), layers


def _on(tensor: Tensor) -> contextlib.AbstractContextManager:
    """Triton launches on the current device, which must be the tensor's."""
    if tensor.device.type == "cpu":
        return contextlib.nullcontext()
    return torch.get_device_module(tensor.device).device(tensor.device)


def _strides(*tensors: Tensor | None) -> list[int]:
    return [0 if tensor is None else tensor.stride(axis) for tensor in tensors for axis in (0, 1)]


def _dense_rows(tensor: Any) -> Any:
    """The tensor itself if its last dimension is contiguous, else a contiguous copy; None stays None."""
    return tensor if tensor is None or tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def _dense(tensor: Any) -> Any:
    return None if tensor is None else tensor.contiguous()


def _state_first(state: Tensor | None) -> Tensor | None:
    """(batch, inner, state) as kernels hold it, (batch, state, inner)."""
    return None if state is None else state.transpose(1, 2).contiguous()


def _state_last(state: Any) -> Any:
    return state.transpose(1, 2).contiguous()
