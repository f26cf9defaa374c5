"""Time and memory of a call, and the table that shows them."""

import ctypes
import gc
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from hymate_training.files import markdown_table, write_file

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


def processor() -> str:
    """The processor's name, as far as the system tells it."""
    described = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*:\s*(.+)", described.read_text()) if described.exists() else []
    return names[0] if names else platform.processor() or platform.machine()


def write_section(page: Path, title: str, text: str):
    """Puts text under a heading of second rank: in place of what stands there, or at the end of the page."""
    parts = re.split(r"(?m)^(?=## )", page.read_text(encoding="utf-8"))
    section = f"## {title}\n\n{text}\n"
    places = [at for at, part in enumerate(parts) if part.startswith(f"## {title}\n")] or [len(parts)]
    parts[places[0] : places[0] + 1] = [section]
    write_file(page, "\n".join(part.rstrip("\n") + "\n" for part in parts))


def titled_table(title: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table under a title; numbers in a few significant digits, None as a dash."""
    return f"### {title}\n\n{markdown_table([header, *(list(map(_cell, row)) for row in rows)])}"


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)
