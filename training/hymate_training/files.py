"""Files and folders that are whole or not there, and the one Markdown table."""

import shutil
from pathlib import Path


def replace_folder(new: Path, output: Path) -> None:
    if not output.exists():
        new.rename(output)
        return
    old = new.with_name(new.name + "-old")
    output.rename(old)
    try:
        new.rename(output)
    except BaseException:
        old.rename(output)
        raise
    shutil.rmtree(old)
