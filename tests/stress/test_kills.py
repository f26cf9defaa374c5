"""Runs killed at random moments, alone and as two processes: they resume to the same bits, and lose nothing."""

import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from hymate_training.inference.checkpoints import load_extractor
from tests.support.runs import TASK, TINY, assert_same_weights, weights

NUM_KILLS = int(os.environ.get("HYMATE_KILLS", "40"))  # of each of the four runs
COMMANDS = {
    "pretrain": ["pretrain", "--epochs", "2", "--save-steps", "2"],
    "finetune": ["finetune", "--task", TASK, "--epochs", "2", "--save-steps", "2", "--ema-decay", "0.9"],
}
LAUNCHERS = {1: [], 2: ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]}

pytestmark = pytest.mark.timeout(3600)


def start(arguments: Sequence[object], launcher: Sequence[str]) -> subprocess.Popen:
    command = [sys.executable, *launcher, "-m", "hymate_training", *map(str, arguments)]
    return subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
    )


def killed_after(process: subprocess.Popen, seconds: float) -> bool:
    """Kills a run with all its processes; False where it was over before."""
    try:
        _, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        root = psutil.Process(process.pid)
        root.suspend()  # it must not start another while they are counted, which would hold its pipe
        everyone = [root, *root.children(recursive=True)]  # torchrun's workers are in sessions of their own
        for one in everyone:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        psutil.wait_procs(everyone)
        process.communicate()
        return True
    assert process.returncode == 0, errors[-2000:]
    return False


def assert_readable(run: Path) -> None:
    """What a run shows under a name is whole, whenever it was killed."""
    for folder in (run, run / "last"):
        if (folder / "model.safetensors").exists():
            weights(folder)
            load_extractor(folder)


@pytest.mark.parametrize("processes", LAUNCHERS)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_killed_run_resumes_to_the_same_bits(command, processes, synthetic_folder, tmp_path):
    arguments = [*COMMANDS[command], "--data", synthetic_folder, *TINY]
    whole, began = tmp_path / "whole", time.monotonic()
    assert not killed_after(start([*arguments, "--output", whole], LAUNCHERS[processes]), 600)
    lasts, draw = time.monotonic() - began, random.Random(0)
    kills, output = 0, tmp_path / "killed"
    while kills < NUM_KILLS:
        resume = ["--resume"] if output.is_dir() else []
        run = start([*arguments, "--output", output, *resume], LAUNCHERS[processes])
        if killed_after(run, draw.uniform(0.2, 1) * lasts):
            kills += 1
            assert_readable(output)
        else:
            assert_same_weights(whole, output)
            shutil.rmtree(output)
    resume = ["--resume"] if output.is_dir() else []
    assert not killed_after(start([*arguments, "--output", output, *resume], LAUNCHERS[processes]), 600)
    assert_same_weights(whole, output)
