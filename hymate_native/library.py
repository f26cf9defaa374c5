"""Opens the build of the kernels that suits this processor, and refuses one that this Python code does not fit."""

import ctypes
import functools
import logging
import os
import platform
from pathlib import Path

import torch  # before any library is opened: its OpenMP runtime must be the only one in the process

from hymate_native.structures import DTYPES, INTERFACE

logger = logging.getLogger(__name__)

# Best first. Each is the same source compiled for one level; "portable" is for whatever the compiler's default is.
BUILDS = {"x86-64-v4": 4, "x86-64-v3": 3, "x86-64-v2": 2, "portable": 1}

_AGAIN = "Install hymate again (pip install --force-reinstall --no-deps hymate, or pip install -e . in a clone)."
_MISSING = (
    "hymate's native CPU kernels were not built when the package was installed, so slower PyTorch code runs in their "
    "place. Install a C++ compiler (Debian and Ubuntu: apt install g++; Fedora: dnf install gcc-c++; macOS: "
    f"xcode-select --install). {_AGAIN}"
)


FUNCTIONS = (
    *("scan_forward", "scan_backward", "convolution_forward", "convolution_backward"),
    *("mixer_forward", "mixer_backward", "mixer_step"),
    *("attention_forward", "attention_backward", "fusion_forward", "fusion_backward"),
    *("running_forward", "running_backward", "running_shares", "tokens_forward", "tokens_backward"),
    *("embedding_forward", "embedding_backward", "projection_forward", "projection_backward", "pooled_forward"),
    *("arrange_events", "channel_statistics", "remember_channels", "recall_channels", "occlusion_forward"),
)


def _path(build: str) -> Path:
    return Path(__file__).parent / f"kernels-{build}.so"


class _InterfaceEntry(ctypes.Structure):
    _fields_ = (("name", ctypes.c_char_p), ("value", ctypes.c_int64))


@functools.cache
def _open(build: str) -> ctypes.CDLL:
    """Opens a build.

    Raises:
        OSError: it does not load, or its functions or structures are not those that this Python code calls.
    """
    library = ctypes.CDLL(str(_path(build)))
    difference = _difference(library)
    if difference:
        raise OSError(f"it is of another version of hymate than the Python code beside it ({difference})")
    for function in FUNCTIONS:
        getattr(library, f"hymate_{function}").argtypes = (ctypes.c_void_p,)
    return library


def _difference(library: ctypes.CDLL) -> str | None:
    """The first way in which a library is not what this Python code takes it for."""
    for function in ("interface", "supports", "multiplies", *FUNCTIONS):
        if not hasattr(library, f"hymate_{function}"):
            return f"it has no function hymate_{function}"
    library.hymate_interface.restype = ctypes.POINTER(_InterfaceEntry)
    found = {}
    for entry in library.hymate_interface():
        if entry.name is None:
            break
        found[entry.name.decode()] = entry.value
    for name in INTERFACE | found:
        if INTERFACE.get(name) != found.get(name):
            return f"{name} is {found.get(name, 'absent')} there, {INTERFACE.get(name, 'absent')} here"
    return None


@functools.cache
def runnable_builds() -> tuple[str, ...]:
    """Names of the builds that are installed, that this processor can run and that fit this code, best first."""
    try:
        supports = _open("portable").hymate_supports
    except OSError:
        return ()
    builds = []
    for build, level in BUILDS.items():
        if _path(build).exists() and supports(level):
            try:
                _open(build)
            except OSError as error:
                logger.warning("hymate leaves %s aside: %s. %s", _path(build).name, error, _AGAIN)
            else:
                builds.append(build)
    return tuple(builds)


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
        problem = f"hymate's native CPU kernels were installed but do not load on this {platform.machine()}"
        return f"{problem}: {error}. {_AGAIN}"
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


def call(function: str, arguments: ctypes.Structure, *, may_refuse: bool = False) -> bool:
    """Runs one kernel. Returns whether it took its arguments, which without `may_refuse` it must.

    Raises:
        MemoryError: its scratch memory could not be had.
    """
    status = getattr(kernels(), f"hymate_{function}")(ctypes.addressof(arguments))
    if status == 1:
        raise MemoryError(f"out of memory for the scratch space of hymate_native's {function}")
    if status and not may_refuse:
        raise RuntimeError(f"hymate_native's {function} refused its arguments")  # unreachable: checked beforehand
    return not status
