"""Opens the build of the kernels that suits this processor, and describes their arguments to ctypes."""

import ctypes
import functools
import os
import platform
from pathlib import Path

import torch  # before any library is opened: its OpenMP runtime must be the only one in the process

# Best first. Each is the same source compiled for one level; "portable" is for whatever the compiler's default is.
BUILDS = {"x86-64-v4": 4, "x86-64-v3": 3, "x86-64-v2": 2, "portable": 1}
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
MAX_KERNEL = 8  # widest causal convolution, kLargeKernel in convolution.h
CHUNK = 16  # steps between two kept states, kChunk in tasks.h

_MISSING = (
    "hymate's native CPU kernels were not built when the package was installed, so slower PyTorch code runs in their "
    "place. Install a C++ compiler (Debian and Ubuntu: apt install g++; Fedora: dnf install gcc-c++; macOS: "
    "xcode-select --install) and install hymate again (pip install --force-reinstall --no-deps hymate, or "
    "pip install -e . in a clone)."
)


class Rows(ctypes.Structure):
    """A (batch, length, channels) tensor whose channels are contiguous; strides count elements."""

    _fields_ = (("data", ctypes.c_void_p), ("batch_stride", ctypes.c_int64), ("time_stride", ctypes.c_int64))


def _structure(name: str, *groups: tuple[type, str]) -> type[ctypes.Structure]:
    fields = [(field, kind) for kind, names in groups for field in names.split()]
    return type(name, (ctypes.Structure,), {"_fields_": fields})


# The order is that of the structs in scan.h, convolution.h and division.h.
ScanArguments = _structure(
    "ScanArguments",
    (ctypes.c_int64, "batch length inner state dtype softplus threads"),
    (Rows, "u delta z B C"),
    (ctypes.c_void_p, "A D bias lengths initial"),
    (Rows, "out"),
    (ctypes.c_void_p, "final states"),
    (Rows, "grad_out"),
    (ctypes.c_void_p, "grad_final"),
    (Rows, "grad_u grad_delta grad_z grad_B grad_C"),
    (ctypes.c_void_p, "grad_A grad_D grad_bias grad_initial"),
)
ConvolutionArguments = _structure(
    "ConvolutionArguments",
    (ctypes.c_int64, "batch length inner kernel dtype silu threads"),
    (Rows, "x"),
    (ctypes.c_void_p, "weight bias lengths"),
    (Rows, "out grad_out grad_x"),
    (ctypes.c_void_p, "grad_weight grad_bias"),
)
MixerArguments = _structure(
    "MixerArguments",
    (ctypes.c_int64, "batch length width inner state rank kernel outputs dtype threads"),
    (Rows, "rows"),
    (ctypes.c_void_p, "in_weight in_bias conv_weight conv_bias x_weight dt_weight dt_bias A D out_weight out_bias"),
    (ctypes.c_void_p, "lengths"),
    (Rows, "out projected convolved parameters"),
    (ctypes.c_void_p, "states"),
    (Rows, "grad_out grad_rows"),
    (ctypes.c_void_p, "grad_in_weight grad_in_bias grad_conv_weight grad_conv_bias grad_x_weight grad_dt_weight"),
    (ctypes.c_void_p, "grad_dt_bias grad_A grad_D grad_out_weight grad_out_bias"),
)
FUNCTIONS = (
    *("scan_forward", "scan_backward", "convolution_forward", "convolution_backward"),
    *("mixer_forward", "mixer_backward"),
)


def _path(build: str) -> Path:
    return Path(__file__).parent / f"kernels-{build}.so"


@functools.cache
def _open(build: str) -> ctypes.CDLL:
    library = ctypes.CDLL(str(_path(build)))
    for function in FUNCTIONS:
        getattr(library, f"hymate_{function}").argtypes = (ctypes.c_void_p,)
    return library


@functools.cache
def runnable_builds() -> tuple[str, ...]:
    """Names of the builds that are installed and that this processor can run, best first."""
    if not _path("portable").exists():
        return ()
    try:
        supports = _open("portable").hymate_supports
    except OSError:
        return ()
    return tuple(build for build, level in BUILDS.items() if _path(build).exists() and supports(level))


@functools.cache
def _choose(wanted: str) -> str | None:
    builds = runnable_builds()
    if wanted and wanted not in builds:
        raise ValueError(f"HYMATE_NATIVE_ISA is {wanted!r}, but the builds that run here are: {', '.join(builds)}")
    return wanted or next(iter(builds), None)


def selected_build() -> str | None:
    """The build in use: the best one, or the one named by the environment variable HYMATE_NATIVE_ISA.

    Raises:
        ValueError: that build is not installed or this processor cannot run it.
    """
    return _choose(os.environ.get("HYMATE_NATIVE_ISA", ""))


@torch.compiler.assume_constant_result
def is_available() -> bool:
    """Whether the native kernels are installed and run on this processor."""
    return selected_build() is not None


@torch.compiler.assume_constant_result
def multiplies(dtype: torch.dtype) -> bool:
    """Whether this processor has instructions for products of matrices of a half type: PyTorch uses them, and its
    products are then faster than float32's."""
    return dtype != torch.float32 and bool(kernels().hymate_multiplies(DTYPES[dtype]))


@torch.compiler.assume_constant_result
def unavailable_reason() -> str | None:
    """What is missing and how to get it, or None where the kernels are available."""
    if is_available():
        return None
    if not _path("portable").exists():
        return _MISSING
    try:
        _open("portable")
    except OSError as error:
        return f"hymate's native CPU kernels were installed but do not load on this {platform.machine()}: {error}"
    return None


_process = os.getpid()


def threads() -> int:
    """torch's number of threads, but one in a forked child: OpenMP's threads did not survive the fork."""
    return torch.get_num_threads() if os.getpid() == _process else 1


def kernels() -> ctypes.CDLL:
    """The library in use.

    Raises:
        RuntimeError: the kernels are not available.
    """
    build = selected_build()
    if build is None:
        raise RuntimeError(unavailable_reason())
    return _open(build)


def call(function: str, arguments: ctypes.Structure) -> None:
    """Runs one kernel.

    Raises:
        MemoryError: its scratch memory could not be had.
    """
    status = getattr(kernels(), f"hymate_{function}")(ctypes.addressof(arguments))
    if status == 1:
        raise MemoryError(f"out of memory for the scratch space of hymate_native's {function}")
    if status:
        raise RuntimeError(f"hymate_native's {function} refused its arguments")  # unreachable: checked beforehand


def describe(tensor: torch.Tensor | None) -> Rows:
    """Describes a (batch, length, channels) tensor; None becomes an absent one."""
    if tensor is None:
        return Rows(None, 0, 0)
    return Rows(tensor.data_ptr(), tensor.stride(0), tensor.stride(1))


def pointer(tensor: torch.Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
