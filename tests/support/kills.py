"""Runs in processes of their own that are killed at a chosen write."""

import math
import multiprocessing
import os
import signal
import sys
from pathlib import Path
from typing import Any

from hymate_training.fitting.finetuning import FinetuneOptions, finetune
from tests.support.runs import TASK

WRITES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir"}

# processes come from a server that has imported everything and started no threads, which a fork would not survive
CONTEXT = multiprocessing.get_context("forkserver") if hasattr(os, "fork") else None
if CONTEXT is not None:
    CONTEXT.set_forkserver_preload([__name__])


def killed_at_write(data: Path, output: Path, options: dict[str, Any], at: float, resume: bool = False) -> bool:
    """Fine-tunes in a process that is killed just before its `at`-th write below `output`.

    Returns:
        Whether it was killed; if it ended before, its number of writes lies in the file `writes` beside `output`.
    """
    assert CONTEXT is not None
    process = CONTEXT.Process(target=_run, args=(data, output, options, at, resume))
    process.start()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def num_writes(data: Path, output: Path, options: dict[str, Any]) -> int:
    """How often a whole run writes below `output`."""
    assert not killed_at_write(data, output, options, math.inf)
    return int(output.with_name("writes").read_text())


def _run(data: Path, output: Path, options: dict[str, Any], at: float, resume: bool) -> None:
    writes = 0

    def kill(event: str, arguments: tuple) -> None:
        nonlocal writes
        is_write = event in WRITES or (event == "open" and isinstance(arguments[1], str) and "w" in arguments[1])
        if is_write and str(arguments[0]).startswith(str(output)):
            writes += 1
            if writes == at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(kill)
    finetune(data, TASK, output, FinetuneOptions(**options), resume=resume)
    output.with_name("writes").write_text(str(writes))
