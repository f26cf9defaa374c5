"""Numbers and text from the data as a model card shows them."""

import html
import re
from collections.abc import Mapping, Sequence
from typing import Any

from hymate_training.files import markdown_table


def estimate_text(report: Mapping, name: str) -> str:
    """A metric of a report with its interval; a dash where there is none."""
    value = report.get("metrics", {}).get(name)
    if value is None:
        return "not defined" if name in report.get("undefined", {}) else "-"
    interval = report.get("confidence_intervals", {}).get(name)
    return number_text(value) if interval is None else f"{number_text(value)} [{interval_text(interval)}]"


def interval_text(interval: Sequence[float]) -> str:
    """An interval in words."""
    return f"{number_text(interval[0])} to {number_text(interval[1])}"


def number_text(value: float) -> str:
    """A number to three decimals, or one where it is large."""
    return f"{value:.3f}" if abs(value) < 10 else f"{value:,.1f}"


def level_text(bootstrap: Mapping) -> str:
    """How much an interval covers."""
    return f"{100 * bootstrap.get('level', 0.95):.4g}%"


def count_text(value: Any) -> str:
    """A count, or text as code; a dash for None."""
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else as_code(value)


def as_code(text: Any) -> str:
    """Text as code, whatever it holds."""
    line = " ".join(str(text).split())
    ticks = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    return f"{ticks}{line}{ticks}" if len(ticks) == 1 else f"{ticks} {line} {ticks}"


def fenced(text: str, language: str) -> str:
    """A block of code, whatever it holds."""
    ticks = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{ticks}{language}\n{text}\n{ticks}"


def as_name(text: Any) -> str:
    """A name from the data in one line, its characters no Markdown and no HTML."""
    line = html.escape(" ".join(str(text).split()), quote=False)
    return re.sub(r"([\\`*\[\]])", r"\\\1", line)


def as_prose(text: Any) -> str:
    """Markdown from the data: no tag of HTML begins in it."""
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", str(text)).strip()


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return markdown_table([head, *rows])
