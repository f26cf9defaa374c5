"""What experiments write into pages of the documentation, between comments that name it."""

from pathlib import Path

from hymate_training.files import write_file


def write_block(page: Path, name: str, text: str) -> None:
    """Replaces what a page has between the comments `<!-- begin NAME -->` and `<!-- end NAME -->`.

    Raises:
        SystemExit: if the page lacks them.
    """
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    before, found, rest = page.read_text(encoding="utf-8").partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise SystemExit(f"{page} lacks the comments {begin} and {end}")
    write_file(page, f"{before}{begin}\n\n{text}\n\n{end}{after}")
