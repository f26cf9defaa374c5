"""Runs killed at random moments, alone and as two processes: they resume to the same bits, and lose nothing."""

import json
import os
import random
import shutil
import time
from pathlib import Path

import pytest

from hymate_training.inference.checkpoints import load_extractor
from tests.support.kills import CONTEXT, killed_after, start_command
from tests.support.runs import TASK, TINY, assert_same_weights, weights

NUM_KILLS = int(os.environ.get("HYMATE_KILLS", "40"))  # of each of the four runs
COMMANDS = {
    "pretrain": ["pretrain", "--epochs", "2", "--save-steps", "2"],
    "finetune": ["finetune", "--task", TASK, "--epochs", "2", "--save-steps", "2", "--ema-decay", "0.9"],
}

pytestmark = [pytest.mark.timeout(3600), pytest.mark.skipif(CONTEXT is None, reason="needs fork")]


def best_score(run: Path) -> float | None:
    """Of the run's saved state, in which it is what a resumed run compares with."""
    pointer = run / "state" / "current"
    if not pointer.is_file():
        return None
    state = json.loads((run / "state" / json.loads(pointer.read_text())["state"] / "state.json").read_text())
    return state["progress"]["best_score"]


def assert_readable(run: Path) -> None:
    """What a run shows under a name is whole whenever it was killed, and a best checkpoint it counts on is there."""
    for folder in (run, run / "last"):
        if (folder / "model.safetensors").exists():
            weights(folder)
            load_extractor(folder)
    if best_score(run) is not None:
        assert (run / "model.safetensors").exists()


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_killed_run_resumes_to_the_same_bits(command, processes, synthetic_folder, tmp_path):
    arguments = [*COMMANDS[command], "--data", synthetic_folder, *TINY]
    whole, output, log = tmp_path / "whole", tmp_path / "killed", tmp_path / "log"
    killed_after(start_command(["--version"], 1, log), 600, log=log)  # by then the server of processes is there
    began = time.monotonic()
    assert not killed_after(start_command([*arguments, "--output", whole], processes, log), 600, log=log)
    lasts, draw = time.monotonic() - began, random.Random(0)
    kills = wholes = 0
    while kills < NUM_KILLS or output.exists():
        resume = ["--resume"] if output.is_dir() else []
        run = start_command([*arguments, "--output", output, *resume], processes, log)
        moment = draw.uniform(0, 1) * lasts if kills < NUM_KILLS else 600
        first = draw.choice([(), (0,), (1,)]) if processes == 2 else ()
        if killed_after(run, moment, first, log):
            kills += 1
            assert_readable(output)
        else:
            assert_same_weights(whole, output)
            assert_same_weights(whole / "last", output / "last")
            shutil.rmtree(output)
            wholes += 1
    assert wholes
