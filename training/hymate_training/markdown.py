"""Text from the data in Markdown: whatever it holds, it begins no markup of its own."""

import html
import re
from typing import Any


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
