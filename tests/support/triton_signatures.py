"""Compiles the Triton kernels for an NVIDIA GPU without having one, as a launch on it would."""

import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

KERNELS = ("scan_kernel", "scan_grad_kernel", "carry_grad_kernel", "carry_kernel")
KERNELS += ("convolution_kernel", "convolution_grad_kernel")
COUNTS = ("length", "inner", "segment", "segments")
ROWS = ("u", "delta", "B", "C", "z", "y", "x", "grad_y", "grad_u", "grad_delta", "grad_z", "grad_x")
POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16"}
HOPPER = 90


def compile_kernel(name: str, dtype: torch.dtype, state: int) -> Iterator:
    """The kernel in each of the tiles that a launch may choose, every optional argument given."""
    import triton  # noqa: PLC0415 - the tests that need it are skipped without it
    from triton.backends.compiler import GPUTarget  # noqa: PLC0415
    from triton.compiler import ASTSource  # noqa: PLC0415

    from modeling_hymate import triton_launch  # noqa: PLC0415

    kernel = getattr(triton_launch, name)
    for tile in _tiles(name, state):
        constants = {"SOFTPLUS": True, "SILU": True, "REVERSE": True, "KERNEL": 4, "CHUNK": triton_launch.CHUNK}
        constants |= {"STATE": state, "STATES": triton_launch.padded_states(state)}
        constants |= {"STEPS": tile.steps, "LANES": tile.lanes, "STAGES": tile.stages}
        signature = {argument: _type(argument, dtype) for argument in kernel.arg_names}
        places = {argument: (place,) for place, argument in enumerate(kernel.arg_names)}
        source = ASTSource(
            fn=kernel,
            signature=signature,
            constexprs={
                places[argument]: constants[argument] for argument, kind in signature.items() if kind == "constexpr"
            },
            attrs={
                places[argument]: [["tt.divisibility", 16]]
                for argument, kind in signature.items()
                if kind != "constexpr" and argument not in ("length", "segment")
            },
        )
        yield triton.compile(source, target=GPUTarget("cuda", HOPPER, 32), options={"num_warps": tile.warps})


def _tiles(name: str, state: int):
    from modeling_hymate import triton_launch  # noqa: PLC0415

    if name.startswith("convolution"):
        tile = triton_launch.CONVOLUTION_TILE
        return [triton_launch.Tile(tile["STEPS"], tile["LANES"], 4)]
    if name == "scan_kernel":
        return triton_launch.forward_tiles(state)
    return [triton_launch.backward_tile(state)]


def _type(argument: str, dtype: torch.dtype) -> str:
    if argument.isupper() and len(argument) > 1:
        return "constexpr"
    if argument in COUNTS or argument.endswith(("_batch", "_time")):
        return "i32"
    if argument == "lengths":
        return "*i64"
    return POINTERS[dtype] if argument in ROWS else "*fp32"


def stack_bytes(compiled) -> int:
    """What each thread keeps in memory because its registers do not suffice."""
    import triton  # noqa: PLC0415

    program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        listed = subprocess.run([program, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    return int(re.search(r"STACK:(\d+)", listed).group(1))
