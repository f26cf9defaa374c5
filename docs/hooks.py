"""What mkdocs does to pages: `{{ help of COMMAND }}` becomes its `--help`."""

import contextlib
import io
import os
import re

from hymate_training.cli.main import main

HELP = re.compile(r"^\{\{ help of ([\w -]+) \}\}$", re.MULTILINE)
CELL = re.compile(r"<td[^>]*>.*?</td>")
NO_RUN = re.compile(  # a word to the tests, which run the other blocks
    r"^(```\w+) no-run$", re.MULTILINE
)
INTERVAL = re.compile(r"\[([-+]?[\d.]+), ([-+]?[\d.]+)\]")
WIDTH = "84"  # characters, as wide as a block of code on the page


def on_page_markdown(markdown: str, **_) -> str:
    markdown = NO_RUN.sub(r"\1", markdown)
    return HELP.sub(lambda match: _help(match[1].split()), markdown)


def on_page_content(html: str, **_) -> str:
    """Keeps the two ends of an interval on one line of a narrow table."""
    return CELL.sub(lambda cell: INTERVAL.sub(r"[\1,&nbsp;\2]", cell[0]), html)


def _help(command: list[str]) -> str:
    text = io.StringIO()
    columns = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = WIDTH
    try:
        with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
            main([*command[1:], "--help"])
    finally:
        os.environ.pop("COLUMNS")
        if columns is not None:
            os.environ["COLUMNS"] = columns
    return f"```text\n{text.getvalue()}```"
