"""What the documentation shows works, and it builds without a warning."""

import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from hymate_training.cli.main import COMMANDS, MODULES, main

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
TUTORIAL = "tutorial.md"
# pages whose python blocks run one after the other, as a reader would run them
EXECUTED = [TUTORIAL, "model.md", "how-to/own-data.md", "how-to/trainer.md"]


def blocks(page: str) -> list[tuple[str, str]]:
    """Language and content of each block of code, in order."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(r"^```([\w -]*)\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def commands(block: str) -> list[list[str]]:
    return [shlex.split(line, comments=True) for line in block.replace("\\\n", " ").splitlines() if line.strip()]


@pytest.mark.parametrize("page", EXECUTED)
def test_examples_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace: dict = {}
    for number, (language, content) in enumerate(blocks(page)):
        if language == "python":
            exec(compile(content, f"{page}, block {number}", "exec"), namespace)
        elif language == "bash" and page == TUTORIAL:
            for command in commands(content):
                if command[0] == "hymate":
                    assert main(command[1:]) == 0


def test_all_python_is_executed():
    """A page that shows code either runs here or says in its block that it cannot."""
    shown = {page for page in PAGES for language, _ in blocks(page) if language == "python"}
    assert shown - {"data.md", "explanations.md"} == set(EXECUTED)


@pytest.mark.parametrize("page", PAGES)
def test_commands_parse(page, monkeypatch):
    parsed = []
    for language, content in blocks(page):
        for command in commands(content) if language == "bash" else []:
            while "=" in command[0]:
                command = command[1:]  # noqa: PLW2901 - variables of the environment come before the command
            if command[0] == "torchrun":
                command = ["hymate", *command[command.index("hymate_training") + 1 :]]  # noqa: PLW2901
            if command[0] == "hymate" and "..." not in command:
                assert command[1] in COMMANDS
                module = importlib.import_module(MODULES[command[1]])
                monkeypatch.setattr(module, "run", lambda args: parsed.append(args) or "")
                assert main(command[1:]) == 0, command
            if command[:1] == ["python"] and command[1].endswith(".py"):
                script = (ROOT / command[1]).read_text(encoding="utf-8")
                for flag in (word for word in command if word.startswith("--")):
                    assert f'"{flag}"' in script, (command, flag)


def test_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    reference = (tmp_path / "site" / "reference.html").read_text(encoding="utf-8")
    for name in ("HyMaTEForSequenceClassification", "selective_scan", "PreparedFolderWriter", "TaskCollator"):
        assert f".{name}" in reference
