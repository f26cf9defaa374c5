"""Builds the page of commands from the commands themselves: a line `{{ help of NAME }}` becomes its `--help`."""

import contextlib
import io
import os
import re

from hymate_training.cli.main import main

WIDTH = "88"  # characters, as wide as a block of code on the page


def on_page_markdown(markdown: str, **_) -> str:
    return re.sub(r"^\{\{ help of ([\w -]+) \}\}$", lambda match: _help(match[1].split()), markdown, flags=re.MULTILINE)


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
