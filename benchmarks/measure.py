"""Time and memory of a call, and the table that shows them."""

import ctypes
import gc
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from hymate_training.files import markdown_table

LINUX = sys.platform == "linux"


def median_seconds(call: Callable[[], object], budget: float = 1.0, most: int = 25) -> float:
    """Median over repeated calls, after one that warms up: at least three, then until `budget` seconds are spent."""
    call()
    times: list[float] = []
    while len(times) < 3 or (sum(times) < budget and len(times) < most):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def extra_megabytes(call: Callable[[], object]) -> float | None:
    """Growth of the resident set while `call` runs, beyond what is there before; None outside of Linux.

    The larger of two, after a call that warms up: memory that is free but still resident before a call hides a
    part of what it takes.
    """
    if not LINUX:
        return None
    call()
    growth = 0.0
    for _ in range(2):
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # sets the peak back to what is resident now
        before = _resident("VmRSS")
        call()
        growth = max(growth, (_resident("VmHWM") - before) / 1024)
    return growth


def _resident(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1])  # kB
    raise RuntimeError(f"/proc/self/status holds no {field}")


def titled_table(title: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table under a title; numbers in a few significant digits, None as a dash."""
    return f"### {title}\n\n{markdown_table([header, *(list(map(_cell, row)) for row in rows)])}"


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)
