"""A prepared folder, a classifier that fits it, and how a command's complaint is judged."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from hymate_training.cli.main import main
from tests.support.runs import event_frame, save_untrained


@pytest.fixture(scope="session")
def classifier(synthetic_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of in-hospital mortality that was never trained. Read it only."""
    return save_untrained(synthetic_folder, tmp_path_factory.mktemp("classifier") / "run")


@pytest.fixture(scope="session")
def events(synthetic_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of events of a few of its records."""
    path = tmp_path_factory.mktemp("events") / "events.parquet"
    event_frame(synthetic_folder)[0].write_parquet(path)
    return path


@pytest.fixture
def complaint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture) -> Callable[..., str]:
    """Runs a command in an empty folder, and returns its complaint, which is one line, and all that it leaves."""
    place = tmp_path / "here"
    place.mkdir()
    monkeypatch.chdir(place)

    def run(*arguments: object) -> str:
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stopped:  # by argparse
            code = stopped.code
        shown = capfd.readouterr().err
        assert code == 2, shown
        assert "Traceback" not in shown
        lines = [line for line in shown.replace("\r", "\n").splitlines() if line.startswith("hymate")]
        assert len(lines) == 1, shown
        assert lines[0].startswith((f"hymate {arguments[0]}: ", f"hymate {arguments[0]} ")), shown
        assert not os.listdir(place)
        return lines[0]

    return run
