"""Disks that are full and folders that cannot be written: a line that says so, and what was there stays as it was."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hymate_training.cli.main import main
from hymate_training.inference.checkpoints import load_checkpoint
from modeling_hymate import Stream
from tests.support.kills import CONTEXT, killed_after, start_command
from tests.support.prepared import content
from tests.support.runs import TASK, TINY, assert_same_weights, event_frame, save_untrained

SIZE, PAGE = 4 << 20, 4096  # bytes
pytestmark = pytest.mark.timeout(1200)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own, of 4 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", place], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("nothing may be mounted here")
    yield place
    subprocess.run(["umount", place], check=True)


def fill(disk: Path, left: int) -> Path:
    """A file that leaves so many bytes of a disk."""
    path = disk / "filling"
    path.write_bytes(bytes(shutil.disk_usage(disk).free - left))
    return path


def lock(disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)


@pytest.fixture(scope="module")
def inputs(synthetic_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("inputs")
    event_frame(synthetic_folder)[0].write_parquet(folder / "events.parquet")
    return {"events": folder / "events.parquet", "checkpoint": save_untrained(synthetic_folder, folder / "run")}


COMMANDS: dict[str, Callable[[Path, dict[str, Path]], list[object]]] = {
    "prepare": lambda data, have: ["synthetic", "--num-records", 40],
    "pretrain": lambda data, have: ["--data", data, "--epochs", 1, *TINY],
    "finetune": lambda data, have: ["--data", data, "--task", TASK, "--epochs", 1, *TINY],
    "evaluate": lambda data, have: [
        *("--checkpoint", have["checkpoint"], "--data", data, "--task", TASK, "--split", "test")
    ],
    "predict": lambda data, have: ["--checkpoint", have["checkpoint"], "--events", have["events"], "--overwrite"],
    "embed": lambda data, have: ["--checkpoint", have["checkpoint"], "--events", have["events"], "--overwrite"],
    "export": lambda data, have: ["--checkpoint", have["checkpoint"]],
}
SUFFIX = {"evaluate": ".json", "predict": ".csv", "embed": ".parquet", "export": ".onnx"}
DISKS: dict[str, Callable[[Path], object]] = {
    "full": lambda disk: fill(disk, 0),
    "all but full": lambda disk: fill(disk, 2 * PAGE),
    "read-only": lock,
}


CASES = [
    (command, state)
    for command in COMMANDS
    for state in DISKS
    if not (state == "all but full" and command in ("predict", "embed"))  # whose few rows would fit
]


@pytest.mark.parametrize(("command", "state"), CASES)
def test_nothing_is_lost(command, state, disk, inputs, synthetic_folder, capfd):
    output = disk / f"out{SUFFIX.get(command, '')}"
    if "." in output.name:  # an earlier result, which the command would replace
        output.write_text('{"task": "kept", "split": "test", "variable_shares": {}}')
    (disk / "mine").write_text("kept")
    DISKS[state](disk)
    before = content(disk)
    code = main([command, *map(str, COMMANDS[command](synthetic_folder, inputs)), "--output", str(output)])
    shown = capfd.readouterr().err
    assert code == 2, shown
    lines = [line for line in shown.replace("\r", "\n").splitlines() if line.startswith(f"hymate {command}: ")]
    assert len(lines) == 1, shown
    assert "Traceback" not in shown
    assert "No space left" in lines[0] or "Read-only" in lines[0], lines[0]
    if command in ("pretrain", "finetune"):  # what is whole of an unfinished run stays, for --resume
        assert {name: data for name, data in content(disk).items() if not name.startswith("out/")} == before
    else:
        assert content(disk) == before


@pytest.mark.skipif(CONTEXT is None, reason="needs fork")
@pytest.mark.parametrize("left", [0, PAGE, 8 * PAGE, 64 * PAGE])
def test_a_run_whose_disk_was_full_resumes_to_the_same_bits(left, disk, synthetic_folder, tmp_path):
    arguments = ["finetune", "--data", synthetic_folder, "--task", TASK, "--epochs", "2", "--save-steps", "2", *TINY]
    whole, output, log = tmp_path / "whole", disk / "run", tmp_path / "log"
    assert not killed_after(start_command([*arguments, "--output", whole], 1, log), 600, log=log)
    (run,) = start_command([*arguments, "--output", output], 1, log)
    while not (output / "state" / "current").exists():
        assert run.exitcode is None, log.read_text()[-2000:]
        run.join(0.01)
    killed_after([run], 0)
    filling = fill(disk, left)
    (resumed,) = start_command([*arguments, "--output", output, "--resume"], 1, log)
    resumed.join(600)
    assert resumed.exitcode == 2, log.read_text()[-2000:]
    assert "No space left" in log.read_text()
    filling.unlink()
    assert not killed_after(start_command([*arguments, "--output", output, "--resume"], 1, log), 600, log=log)
    assert_same_weights(whole, output)
    assert_same_weights(whole / "last", output / "last")


def test_a_full_disk_leaves_the_last_state_of_a_stream(disk, inputs):
    checkpoint = load_checkpoint(inputs["checkpoint"])
    stream = Stream(checkpoint.model, checkpoint.extractor)
    path = disk / "state.safetensors"
    stream.state.save(path)
    before = path.read_bytes()
    fill(disk, PAGE)
    with pytest.raises(OSError, match="No space left on device"):
        stream.state.save(path)
    assert path.read_bytes() == before
    assert sorted(os.listdir(disk)) == ["filling", "state.safetensors"]
