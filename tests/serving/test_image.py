"""The Dockerfile: what it starts is a command that exists, by a user without rights."""

import argparse
import json
import re
from pathlib import Path

from hymate_training.cli import serve

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")


def test_what_the_image_starts_is_a_command():
    (entry,) = re.findall(r"^ENTRYPOINT (.*)$", DOCKERFILE, flags=re.MULTILINE)
    name, command, *arguments = json.loads(entry)
    assert (name, command) == ("hymate", "serve")
    parser = argparse.ArgumentParser()
    serve.add_arguments(parser)
    parsed = parser.parse_args(arguments)
    assert f"VOLUME {parsed.state.parent}\n" in DOCKERFILE
    assert f"EXPOSE {parsed.port}\n" in DOCKERFILE
    assert f"127.0.0.1:{parsed.port}/health" in DOCKERFILE


def test_the_image_runs_without_rights_and_without_the_hub():
    last = DOCKERFILE.rpartition("\nFROM ")[2]
    (user,) = re.findall(r"^USER (\d+)$", last, flags=re.MULTILINE)
    assert int(user) > 0
    assert "HF_HUB_OFFLINE=1" in last
    assert "pip" not in last


def test_what_is_built_from_is_copied():
    """`.dockerignore` lets through what it names alone, so that no data or checkpoints get into an image."""
    first, *allowed = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    assert first == "*"
    names = {line[1:] for line in allowed if line.startswith("!")}
    assert all((ROOT / name).exists() for name in names)
    assert {"setup.cfg", "setup.py", "pyproject.toml", "README.md", "hymate", "training", "constraints.txt"} <= names
    assert not names & {"runs", "model_cards", "tests", ".git"}
