"""Numbers and tables as HTML, every cell escaped, and the templates of an explanation report."""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

TEMPLATES = Path(__file__).parent / "templates"


def table_html(rows: Sequence[tuple], caption: str, folded: bool = False) -> Markup:
    """A table that can be reached and scrolled by keyboard; the first row is the head, numbers stand to the right."""
    head = "".join(f'<th scope="col">{html.escape(str(cell))}</th>' for cell in rows[0])
    body = []
    for row in rows[1:]:
        first = f'<th scope="row">{html.escape(str(row[0]))}</th>'
        cells = "".join(f"<td{_alignment(cell)}>{html.escape(_shown(cell))}</td>" for cell in row[1:])
        body.append(f"<tr>{first}{cells}</tr>")
    caption = html.escape(caption)
    table = (
        f'<div class="scroll" role="region" aria-label="{caption}" tabindex="0"><table><caption>{caption}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )
    if folded:
        table = f"<details><summary>{caption} as a table</summary>{table}</details>"
    return Markup(table)  # every cell was escaped above


def _alignment(cell: Any) -> str:
    return "" if isinstance(cell, str) and not cell[:1].isdigit() and cell[:1] not in "+-" else ' class="number"'


def _shown(cell: Any) -> str:
    if cell is None:
        return "none"
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)


def percent(mean: float, low: float | None = None, high: float | None = None) -> str:
    """A share, with its interval where one is given."""
    return f"{mean:.1%}" if low is None or high is None else f"{mean:.1%} [{low:.1%}, {high:.1%}]"


def estimate(found: Mapping[str, Any], scale: float = 1.0, digits: int = 2, sign: bool = False) -> str:
    """The mean and the interval that `faithfulness.mean_with_interval` found, as text."""
    if found["mean"] is None:
        return "not defined"
    form = f"{{:{'+' if sign else ''}.{digits}f}}"
    text = form.format(scale * found["mean"])
    if found["interval"] is None:
        return text
    return f"{text} [{', '.join(form.format(scale * end) for end in found['interval'])}]"


def render(template: str, folder: Path = TEMPLATES, **context: Any) -> str:
    """A page from one of the templates in a folder, which may build on those of a report."""
    environment = Environment(
        loader=FileSystemLoader((folder, TEMPLATES)),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**context)
