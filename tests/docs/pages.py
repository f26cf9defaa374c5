"""Reading the code that a page shows, and running it as a reader would."""

import re
import shlex
import tarfile
from pathlib import Path

from hymate_training.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
QUICK = {  # flags that make a command of the docs take seconds
    "pretrain": ["--epochs", "1"],
    "finetune": ["--epochs", "1"],
    "explain": ["--num-records", "12"],
}


def blocks(page: Path) -> list[tuple[str, str]]:
    """Language and content of each block of code, in order."""
    text = page.read_text(encoding="utf-8")
    return re.findall(r"^```([\w -]*)\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def commands(block: str) -> list[list[str]]:
    """The commands of a block of shell, without comments."""
    return [shlex.split(line, comments=True) for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def run(page: Path, quick: dict[str, list[str]] = QUICK) -> dict:
    """Runs a page from top to bottom, its Python and its `hymate` commands; returns what its Python defined."""
    namespace: dict = {}
    for number, (language, content) in enumerate(blocks(page)):
        if language == "python":
            exec(compile(content, f"{page.name}, block {number}", "exec"), namespace)
        elif language == "bash":
            for command in commands(content):
                if command[0] == "hymate":
                    assert main([*command[1:], *quick.get(command[1], [])]) == 0, command
    return namespace


def trim_physionet2012(raw: Path, output: Path, stays: int) -> None:
    """A download of the first stays of set b: two thirds as set b, the rest under the name of set a."""
    with tarfile.open(raw / "set-b.tar.gz") as archive:
        members = [member for member in archive if member.isfile()][:stays]
        contents = {Path(member.name).stem: archive.extractfile(member).read() for member in members}
    header, *lines = (raw / "Outcomes-b.txt").read_text().splitlines()
    outcomes = {line.split(",")[0]: line for line in lines}
    names = list(contents)
    for letter, chosen in {"b": names[: 2 * stays // 3], "a": names[2 * stays // 3 :]}.items():
        (output / f"set-{letter}").mkdir(parents=True)
        for name in chosen:
            (output / f"set-{letter}" / f"{name}.txt").write_bytes(contents[name])
        text = "\n".join([header, *(outcomes[name] for name in chosen)])
        (output / f"Outcomes-{letter}.txt").write_text(text + "\n")
