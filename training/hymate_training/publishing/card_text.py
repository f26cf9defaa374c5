"""Numbers and text from the data as a model card shows them."""

from collections.abc import Mapping, Sequence
from typing import Any

from hymate_training.files import markdown_table
from hymate_training.markdown import as_code


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


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return markdown_table([head, *rows])
